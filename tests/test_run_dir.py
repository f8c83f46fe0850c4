import json
from pathlib import Path

import pytest

from data2vec import __version__, cli
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run, default_run_dir, load_run_recipe, open_checkpoint


def run_folder(folder: Path, version: str | None) -> Path:
    """A run whose recipe has a key of version 0.1."""
    text = load_recipe("vision/v1-tiny").to_yaml()
    assert "weight_decay_on:" in text
    (folder / "recipe.yaml").write_text(text.replace("weight_decay_on:", "decay:"))
    if version is not None:
        (folder / "machine.json").write_text(json.dumps([{"step": 0, "data2vec": version}]))
    return folder


def test_resume_of_a_run_of_another_version_names_the_versions_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        open_checkpoint(run_folder(tmp_path, "0.1.0"), load_recipe("vision/v1-tiny"))
    assert str(raised.value) == (
        f"{tmp_path}: written by data2vec 0.1.0; this is {__version__}, which cannot read its recipe "
        "(train.decay: unknown setting; train.decay is now train.weight_decay_on); use data2vec 0.1.0, or train again"
    )


def test_report_command_of_a_run_of_another_version_names_the_versions_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(run_folder(tmp_path, "0.1.0"))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"written by data2vec 0.1.0; this is {__version__}" in line


@pytest.mark.parametrize("version", [None, __version__])
def test_load_run_recipe_of_an_invalid_recipe_of_this_or_an_unknown_version_names_the_key(
    version: str | None, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: train\.decay: unknown setting"):
        load_run_recipe(run_folder(tmp_path, version))


def test_default_run_dir_is_named_by_the_recipe_whatever_its_form() -> None:
    recipe = load_recipe("vision/v1-tiny")
    named = [default_run_dir(each) for each in ("vision/v1-tiny", "recipes/mine.yaml", Path("mine.yaml"), recipe)]
    assert named == [Path("runs") / name for name in ("vision-v1-tiny", "mine", "mine", "vision")]


LINES = {
    "text": '{"step": 2, "loss": "<b>"}',
    "a list": '{"step": 2, "loss": [1]}',
    "an object": '{"step": 2, "loss": {}}',
    "a number beyond float": f'{{"step": 2, "lr": 1{"0" * 400}}}',
    "a step beyond 64 bits": f'{{"step": {2**70}}}',
    "a step below zero": '{"step": -1}',
    "a step that is true": '{"step": true}',
    "nested": '{"step": 2, "x": ' + "[" * 5000 + "]" * 5000 + "}",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_line_of_metrics_that_no_run_logs_is_left_out(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        f'{{"step": 1, "loss": null, "lr": 1e-3, "overflow": true}}\n{line}\n{{"step": 3}}\n'
    )
    assert [each["step"] for each in Run(tmp_path).metrics] == [1, 3]


def test_links_of_a_run_folder_to_files_elsewhere_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "private").write_text('{"step": 1}\n')
    (tmp_path / "run").mkdir()
    for name in ("metrics.jsonl", "recipe.yaml"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "private")
    assert Run(tmp_path / "run").metrics == []
    with pytest.raises(UserError, match=r"recipe\.yaml: a link that leads out of the folder of the run; put the file itself"):
        load_run_recipe(tmp_path / "run")
    (tmp_path / "run" / "lines").write_text('{"step": 1}\n')
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("lines")
    assert [each["step"] for each in Run(tmp_path / "run").metrics] == [1]


@pytest.mark.parametrize(
    ("file", "run", "kind"),
    [
        ("folds.json", "fold-1", "a cross-validation, whose scores are in folds.json"),
        ("sweep.json", "lr=1e-4/seed-1", "a sweep, whose scores are in sweep.json"),
        ("results.json", "mae/probe/seed-1/run", "a comparison, whose scores are in results.json"),
        ("other.json", "fold-1", "several runs"),
    ],
)
def test_folder_of_several_runs_is_named_as_what_it_is_with_one_of_its_runs(
    file: str, run: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / run).mkdir(parents=True)
    (tmp_path / run / "recipe.yaml").touch()
    (tmp_path / file).write_text("{}")
    expected = f"; it is the folder of {kind}; name one of its runs, such as {tmp_path / run}"
    for words in (["evaluate"], ["evaluate", "@last"], ["report"], ["finetune", "--resume"]):
        last = f"{tmp_path}{words.pop()}" if words[-1] == "@last" else str(tmp_path)
        assert cli.main([*words, last]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert expected in line and ("or repeat the command" in line) == ("--resume" in words)
