"""Resuming a run by its folder alone: its own recipe is the base, and what changes is announced or refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.train.resumed_recipe import describe_new_length
from helpers.runs import crash_before, measured


@pytest.fixture(scope="module")
def settings(tiny: dict[str, Any]) -> dict[str, Any]:
    return tiny | {"train.steps": 6, "train.checkpoint_every": 3}


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run that nothing disturbs."""
    return data2vec.pretrain("vision/v1-tiny", overrides=settings, out=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def stopped(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, which ended after step 4 of 6."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with crash_before(5):
        data2vec.pretrain("vision/v1-tiny", overrides=settings, out=out)
    return Run(out)


@pytest.fixture
def run(stopped: Run, tmp_path: Path) -> Run:
    """A copy of the run that ended after step 4."""
    return Run(Path(shutil.copytree(stopped.folder, tmp_path / "run")))


def content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of error of a command that is refused."""
    capsys.readouterr()
    assert cli.main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data2vec: error:")]
    return line


def test_run_is_resumed_by_its_folder_alone_with_the_overrides_it_was_started_with(run: Run, whole: Run) -> None:
    assert cli.main(["pretrain", "--resume", str(run.folder)]) == 0
    assert measured(run) == measured(whole)


def test_python_resume_of_a_run_in_another_working_folder_finds_its_data(
    settings: dict[str, Any], pictures: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    with crash_before(5):
        data2vec.pretrain("vision/v1-tiny", pictures.name, settings, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert measured(data2vec.resume("run")) == measured(whole)


def test_shipped_recipe_with_resume_continues_the_run_by_its_own_settings(run: Run, whole: Run) -> None:
    assert cli.main(["pretrain", "vision/v1-tiny", "--out", str(run.folder), "--resume"]) == 0
    assert measured(run) == measured(whole)


def test_other_number_of_steps_is_announced_with_what_it_does_to_the_schedules(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pretrain", "--resume", str(run.folder), "train.steps=8"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data2vec: train.steps")]
    assert line.startswith("data2vec: train.steps: 6 -> 8; schedules that depend on the length of the run are those of 8 steps")
    assert "at step 5 the learning rate is " in line and "the teacher's decay " in line
    assert run.metrics[-1]["step"] == 8
    assert load_recipe(run.recipe).train.steps == 8


def test_description_of_a_new_length_gives_learning_rate_and_decay_before_and_after() -> None:
    old = load_recipe(
        "vision/v2-tiny",
        {"train.steps": 100, "train.schedule.warmup_steps": 0, "train.lr": 1.0} | {"train.schedule.final_lr": 0},
    )
    new = load_recipe(old, {"train.steps": 200})
    line = describe_new_length(old, new, 99)
    assert line is not None
    # Half a cosine ends at 0 at step 100 of 100, and is at its middle at step 100 of 200.
    assert "at step 100 the learning rate is 0.5 instead of 0 and the teacher's decay" in line
    assert describe_new_length(old, old, 99) is None


def test_finished_run_is_left_as_it_is(whole: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(whole.folder)
    assert cli.main(["pretrain", "--resume", str(whole.folder)]) == 0
    said = capsys.readouterr().err
    assert f"data2vec: {whole.folder} is finished, at step 6 of 6: nothing is changed" in said
    assert f"data2vec pretrain --resume {whole.folder} train.steps=12" in said
    assert content(whole.folder) == before


def test_fewer_steps_than_are_made_are_refused_and_as_many_end_the_run(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run.folder)
    line = error_of(capsys, "pretrain", "--resume", str(run.folder), "train.steps=3")
    assert line == (
        f"data2vec: error: --resume: train.steps is 3, but the run in {run.folder} has made 4; set train.steps=4 to end it "
        "there, or more"
    )
    assert content(run.folder) == before
    data2vec.resume(run.folder, {"train.steps": 4})
    assert run.metrics[-1]["step"] == 4
    assert data2vec.load(run.folder).recipe.train.steps == 4


def test_setting_that_cannot_change_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "pretrain", "--resume", str(run.folder), "train.lr=3.0")
    assert "train.lr is 3.0, but 0.003 in the run" in line
    warmup = error_of(capsys, "pretrain", "--resume", str(run.folder), "train.schedule.warmup_steps=9")
    assert "train.schedule.warmup_steps is 9, but" in warmup


def test_recipe_that_the_run_was_not_started_with_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(capsys, "pretrain", "vision/v2-tiny", "--out", str(run.folder), "--resume")
    assert f"{run.folder} was started with another recipe: " in line
    assert f"omit the recipe (--resume {run.folder})" in line
    with pytest.raises(UserError, match=r"train\.steps is 2000 in the one named, .* in that"):
        data2vec.pretrain(load_recipe("vision/v1-tiny", {"train.steps": 2000}), out=run.folder, resume=True)


def test_recipe_file_that_was_edited_since_the_start_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = load_recipe("vision/v1-tiny", {"train.steps": 5}).to_yaml()
    mine.write_text(text)
    overrides = {key: value for key, value in settings.items() if key != "train.steps"}
    with crash_before(3):
        data2vec.pretrain(mine, overrides=overrides, out=tmp_path / "run")
    mine.write_text(text.replace("\n  steps: 5\n", "\n  steps: 7\n"))
    with pytest.raises(UserError, match=r"train\.steps is 7 in the one named, 5 in that"):
        data2vec.pretrain(mine, out=tmp_path / "run", resume=True)
    mine.write_text(f"# a comment\n{text}")
    assert data2vec.pretrain(mine, out=tmp_path / "run", resume=True).metrics[-1]["step"] == 5


@pytest.mark.parametrize(("words", "said"), [
    (["pretrain", "--resume", "RUN", "--out", "other"], "--out other: is not the run of --resume RUN; omit --out"),
    (["pretrain", "--resume", "nowhere"], "--resume: nowhere is not a run folder"),
    (["pretrain", "--resume"], "--resume: names no run; name its folder"),
    (["finetune", "--resume", "RUN"], "--resume: RUN is a run of pre-training; use: data2vec pretrain --resume RUN"),
    (["finetune", "--resume", "RUN", "--model", "RUN"], "--model and --scratch are recorded in the run"),
])  # fmt: skip
def test_options_that_contradict_the_run_are_refused(
    words: list[str], said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(run.folder)
    line = error_of(capsys, *(str(run.folder) if word == "RUN" else word for word in words))
    assert said.replace("RUN", str(run.folder)) in line
    assert content(run.folder) == before


@pytest.mark.parametrize("words", [
    ["vision/v1-tiny", "--out", "RUN", "--resume", "train.steps=4"],
    ["--resume", "vision/v1-tiny", "--out", "RUN", "train.steps=4"],
    ["train.steps=4", "--resume", "--out", "RUN"],
    ["--resume", "RUN", "train.steps=4", "--out", "RUN"],
])  # fmt: skip
def test_recipe_run_and_settings_may_be_in_any_order(words: list[str], run: Run) -> None:
    assert cli.main(["pretrain", *(str(run.folder) if word == "RUN" else word for word in words)]) == 0
    assert run.metrics[-1]["step"] == 4


def test_pretrain_without_recipe_and_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["pretrain", "--out", "run"])
    assert exit.value.code == 2
    assert "RECIPE is missing; name a recipe, or a run by --resume RUN" in capsys.readouterr().err


def test_damaged_recipe_of_a_run_is_replaced_by_that_of_its_checkpoint(run: Run, whole: Run) -> None:
    run.recipe.write_text("modality: [")
    assert measured(data2vec.resume(run.folder)) == measured(whole)
    assert load_recipe(run.recipe) == load_recipe(whole.recipe)


def test_process_that_torchrun_restarts_resumes_by_either_command(
    run: Run, whole: Run, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    data2vec.pretrain("vision/v1-tiny", overrides=settings, out=run.folder)
    assert measured(run) == measured(whole)


def test_recipe_of_a_run_that_names_a_class_is_not_imported(run: Run, tmp_path: Path) -> None:
    text = run.recipe.read_text()
    run.recipe.write_text(text.replace("name: vision", "name: sneaky:Class", 1))
    for checkpoint in run.checkpoints:
        shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match="is a class outside the package, which is never imported because a file names it"):
        data2vec.resume(run.folder)
