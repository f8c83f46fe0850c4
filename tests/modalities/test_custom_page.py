"""docs/modalities.md from its beginning: its files are written to an empty folder, and its commands run in it."""

import re
import shlex
import sys
from pathlib import Path

import pytest

import data2vec
from data2vec import cli
from data2vec.modalities import custom_classes

PAGE = (Path(__file__).parents[2] / "docs" / "modalities.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
COMMANDS = [
    line for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, which is not on the Python path, as for an installed command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part not in ("", str(tmp_path))])
    monkeypatch.setattr(custom_classes, "_TRUSTED", {})
    monkeypatch.delitem(sys.modules, "sensors", raising=False)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_page_leads_from_nothing_to_predictions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [name for name in FILES if not (folder / name).is_file()] == []
    for name in ("sensor.yaml", "classify.yaml"):  # runs of a few steps
        text, count = re.subn(r"steps: \d+", "steps: 6", FILES[name])
        assert count == 1
        (folder / name).write_text(text, encoding="utf-8")
    verbs = []
    for command in COMMANDS:
        first, *words = shlex.split(command)
        if first == "python":
            exec(compile((folder / words[0]).read_text(encoding="utf-8"), words[0], "exec"), {})
            continue
        custom_classes._TRUSTED.clear()  # as in a process of its own
        assert cli.main(words) == 0, (command, capsys.readouterr().err)
        verbs.append(words[0])
    assert set(verbs) >= {"check-modality", "check", "plan", "finetune", "predict", "features", "export", "convert"}
    printed = capsys.readouterr().out
    assert "train.npy: sensors:Sensor" in printed
    assert "2: slow (128), fast (128)" in printed
    assert len((folder / "predictions.csv").read_text().splitlines()) == 1 + 64
    assert (folder / "run.pt2").is_file() and (folder / "features.npy").is_file()
    assert data2vec.load("model", modality="sensors:Sensor").modality.settings.model_dump() == {
        "name": "sensors:Sensor",
        "window": 8,
    }


def test_class_in_the_current_folder_is_imported_only_if_the_user_names_it(folder: Path) -> None:
    (folder / "side.py").write_text("open('imported', 'w').close()\nThing = dict\n")
    (folder / "recipe.yaml").write_text("modality: {name: vision}\n")
    before = list(sys.path)
    assert cli.main(["check", "nothing/"]) == 2
    assert sys.path == before and not (folder / "imported").exists()
    assert cli.main(["recipes", "recipe.yaml", "--modality", "nowhere:Thing"]) == 2
    assert sys.path == before
    assert cli.main(["recipes", "recipe.yaml", "--modality", "side:Thing"]) == 2
    assert (folder / "imported").exists()
    assert sys.path == [*before, str(folder)]  # searched last
