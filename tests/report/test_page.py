import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data2vec import cli
from data2vec.errors import UserError
from data2vec.report.page import build_report
from data2vec.run_dir import Run
from helpers import browser
from helpers.damaged_runs import DAMAGES, damage_endless, damage_folder, damage_hostile

CURVES = {"Loss", "Standard deviation", "Rank", "Gradient norm", "Update/weight ratio", "Learning rate", "EMA decay"}
CURVES |= {"Variance of the targets", "Prediction R²", "Throughput", "Data loading wait"}
EXAMPLES = {"Masked positions", "Loss by position", "Features", "Attention", "Variance of each block"}


def titles(path: Path) -> set[str]:
    return set(re.findall("<h3>(.*?)</h3>", path.read_text(encoding="utf-8")))


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Run:
    """A copy of the run, to modify."""
    shutil.copytree(run.folder, tmp_path / "run")
    return Run(tmp_path / "run")


def only(kind: str) -> Any:
    """Run a test with one kind of run only."""
    return pytest.mark.parametrize("run", [kind], indirect=True)


def test_report_has_every_figure_for_every_modality_and_is_self_contained(run: Run) -> None:
    text = run.report.read_text(encoding="utf-8")
    assert titles(run.report) == CURVES | EXAMPLES
    assert "<p>Missing" not in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\((?!["']?#)""", text)
    assert len(text) < 3_000_000
    assert len(re.findall('<svg role="img" aria-label="', text)) == len(CURVES | EXAMPLES)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here to open the page with")
def test_report_fits_wide_and_narrow_browser_windows(run: Run, tmp_path: Path) -> None:
    seen, console = browser.look(run.report, (1280, 400), tmp_path)
    assert console == []
    for at, width in zip(seen, (1280, 400), strict=True):
        assert at["width"] == width
        assert at["overflow"] <= 0
        assert len(at["pictures"]) == len(CURVES | EXAMPLES)
        assert all(340 <= w <= 480 and 90 <= h <= 1200 for w, h in at["pictures"])
        assert all(w > 200 and h > 5 for w, h in at["rasters"])
        assert min(at["labels"]) >= 9
        assert any(word in at["words"] for word in ("Healthy", "Too early to tell", "Watch", "Collapsed"))


@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no Chromium here to open the page with")
def test_browser_helper_detects_overflow_and_script_errors(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text('<!doctype html><div style="width:900px">x</div><script>nope()</script>')
    (seen,), console = browser.look(tmp_path / "bad.html", (400,), tmp_path)
    assert seen["overflow"] > 400 and seen["pictures"] == []
    assert "nope is not defined" in console[0]


@only("images")
def test_report_shows_recipe_and_machine(run: Run) -> None:
    text = run.report.read_text(encoding="utf-8")
    (start,) = json.loads((run.folder / "machine.json").read_text())
    assert start["processor"] in text and start["started"] in text
    assert "kind: fixed-block" in text  # of the recipe
    assert "step 3 of 3" in text


@only("images")
def test_report_of_a_collapsed_run_has_verdict_and_suggestion(copied: Run) -> None:
    lines = [line | {"target_std": 0.001, "step": 5000 + line["step"]} for line in copied.metrics]
    (copied.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = build_report(copied.folder).read_text(encoding="utf-8")
    verdict = re.search('<section class="verdict collapsed">(.*?)</section>', text, re.DOTALL)
    assert verdict
    assert "Collapsed" in verdict[1] and "Suggestion: " in verdict[1] and "objective.teacher.half_life" in verdict[1]


@only("images")
def test_report_of_a_stopped_run_shows_the_reason(copied: Run) -> None:
    path = copied.folder / "machine.json"
    path.write_text(json.dumps([start | {"exit_reason": "asked to stop"} for start in json.loads(path.read_text())]))
    text = build_report(copied.folder).read_text(encoding="utf-8")
    assert "The run stopped: asked to stop" in text and 'class="verdict collapsed"' not in text
    path.write_text(json.dumps([start | {"unhealthy": True} for start in json.loads(path.read_text())]))
    assert 'class="verdict collapsed"' in build_report(copied.folder).read_text(encoding="utf-8")


@only("images")
def test_report_plots_probe_values_logged_in_some_lines(copied: Run) -> None:
    first, *lines = copied.metrics
    first |= {"probe_linear": 0.25, "probe_knn": 0.2, "probe_linear_untrained": 0.1}
    (copied.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (first, *lines)))
    path = build_report(copied.folder)
    assert titles(path) == CURVES | EXAMPLES | {"Probe"}
    assert "linear, untrained" in path.read_text(encoding="utf-8")


@only("images")
def test_report_names_missing_figures_with_the_reason(run: Run, copied: Run, tmp_path: Path) -> None:
    shutil.rmtree(copied.folder / "checkpoints")
    shutil.rmtree(copied.model)
    path = build_report(copied.folder)
    assert titles(path) == CURVES | {"Masked positions"}
    assert "there is no complete checkpoint" in path.read_text(encoding="utf-8")
    shutil.copytree(run.folder / "checkpoints", copied.folder / "checkpoints")
    recipe = copied.recipe.read_text()
    copied.recipe.write_text(recipe.replace("ffn_width: 32", "ffn_width: 64"))
    assert "step-3 does not fit this recipe" in build_report(copied.folder).read_text(encoding="utf-8")
    recipe = re.sub("(?m)^  train: .*", f"  train: {tmp_path / 'gone'}", recipe)
    copied.recipe.write_text(recipe)
    for name in ("metrics.jsonl", "machine.json"):
        (copied.folder / name).unlink()
    text = build_report(copied.folder).read_text(encoding="utf-8")
    assert titles(path) == set()
    assert "the training data cannot be loaded" in text and "gone: there is no such folder" in text
    assert "No step logged yet" in text


@only("sensors")
def test_report_names_the_error_of_a_custom_modality(copied: Run, tmp_path: Path) -> None:
    copied.recipe.write_text(re.sub("(?m)^  train: .*", f"  train: {tmp_path / 'gone.npy'}", copied.recipe.read_text()))
    assert "FileNotFoundError" in build_report(copied.folder).read_text(encoding="utf-8")


@only("images")
def test_report_escapes_file_and_folder_names(copied: Run) -> None:
    """Names of files and folders, and the recipe, may hold anything."""
    evil = "<script>alert(1)</script>$name"
    (copied.folder / "corrupt_files.txt").write_text(f"{evil}.png: cannot be read\n" * 300, encoding="utf-8")
    starts = json.loads((copied.folder / "machine.json").read_text())
    starts[-1] |= {"step": evil, "exit_reason": f"\x1b[2J{evil}", evil: evil}
    (copied.folder / "machine.json").write_text(json.dumps(starts), encoding="utf-8")
    folder = copied.folder.rename(copied.folder.with_name("<b>x"))
    text = build_report(folder).read_text(encoding="utf-8")
    assert "<script" not in text and "<b>x" not in text and "\x1b" not in text
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;$name.png") == 200
    assert "100 more, in corrupt_files.txt" in text


def test_report_escapes_training_text(run: Run) -> None:
    assert "<b>more" not in run.report.read_text(encoding="utf-8")


@only("images")
def test_report_command_prints_the_path(copied: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied.report.unlink()
    assert cli.main(["report", str(copied.folder)]) == 0
    assert capsys.readouterr().out == f"{copied.report}\n"
    assert copied.report.is_file()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_build_report_without_a_run_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        build_report(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.removeprefix("damage_"))
@pytest.mark.parametrize("file", ["metrics.jsonl", "machine.json", "corrupt_files.txt"])
def test_report_of_a_run_with_a_damaged_file_is_built(
    copied: Run, file: str, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data2vec.report.page.collect_figures", lambda *arguments: ([], ""))
    damage(copied.folder / file)
    text = build_report(copied.folder).read_text()
    is_unknown = file == "corrupt_files.txt" and damage in (damage_hostile, damage_folder, damage_endless)
    assert ("Unknown: corrupt_files.txt" in text) == is_unknown
