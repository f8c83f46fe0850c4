"""Every small file of a run folder torn, empty, hostile, of another kind, or missing: the latest whole checkpoint resumes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run, check_run_dir, exclusive_lock, latest_checkpoint, open_checkpoint, set_aside_damaged
from helpers.damaged_runs import DAMAGES, FILES, damage_torn

TIMINGS = ("seconds", "samples_per_second", "data_wait")
EVERY_FILE = pytest.mark.parametrize("file", FILES)
EVERY_DAMAGE = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.removeprefix("damage_"))


@pytest.fixture(scope="module")
def settings(tiny: dict[str, Any]) -> dict[str, Any]:
    constant = {"train.schedule": {"name": "tri_stage", "warmup": 0, "hold": 1}}
    return tiny | constant | {"train.steps": 8, "train.checkpoint_every": 4}


@pytest.fixture(scope="module")
def begun(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 8 steps, with checkpoints at 4 and 8."""
    run = data2vec.pretrain("vision/v1-tiny", overrides=settings, out=tmp_path_factory.mktemp("begun") / "run")
    (run.folder / "corrupt_files.txt").write_text("a.png: broken\n")
    (run.folder / "tracking_id.txt").write_text("0a1b2c3d")
    return run


@pytest.fixture(scope="module")
def longer(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run over 10 steps, which nothing disturbs."""
    out = tmp_path_factory.mktemp("longer") / "run"
    return data2vec.pretrain("vision/v1-tiny", overrides=settings | {"train.steps": 10}, out=out)


def resume(folder: Path, settings: dict[str, Any]) -> Run:
    return data2vec.pretrain("vision/v1-tiny", overrides=settings | {"train.steps": 10}, out=folder, resume=True)


def assert_equal(run: Run, expected: Run) -> None:
    weights, wanted = (load_file(each.model / "model.safetensors") for each in (run, expected))
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@EVERY_FILE
@EVERY_DAMAGE
def test_latest_whole_checkpoint_is_found_and_damaged_files_are_set_aside(
    damage: Callable[[Path], None], file: str, begun: Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun.folder, folder)
    damage(folder / file)
    recipe = load_recipe(load_recipe("vision/v1-tiny", settings), {"data.train": settings["data.train"]})
    check_run_dir(folder, resume=True)
    with exclusive_lock(folder, Process(torch.device("cpu"))):
        checkpoint = open_checkpoint(folder, recipe).checkpoint
        assert checkpoint is not None
        assert checkpoint.name == ("step-4" if "step-8" in file else "step-8")
        set_aside_damaged(folder, int(checkpoint.name[5:]))
    run = Run(folder)
    assert isinstance(run.starts, list)
    assert all(isinstance(line["step"], int) for line in run.metrics)
    for path in folder.iterdir():
        assert path.is_dir() or path.is_file() or ".damaged" in path.name
        assert not path.is_symlink() or ".damaged" in path.name


@pytest.mark.slow
@EVERY_FILE
@EVERY_DAMAGE
def test_resumed_run_in_a_damaged_folder_is_bit_equal(
    damage: Callable[[Path], None], file: str, begun: Run, longer: Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(begun.folder, tmp_path / "run")
    damage(tmp_path / "run" / file)
    assert_equal(resume(tmp_path / "run", settings), longer)


@EVERY_DAMAGE
def test_resumed_run_with_all_small_files_damaged_is_bit_equal(
    damage: Callable[[Path], None], begun: Run, longer: Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(begun.folder, tmp_path / "run")
    for file in FILES:
        damage(tmp_path / "run" / file)
    run = resume(tmp_path / "run", settings)
    assert_equal(run, longer)
    assert run.metrics[-1]["step"] == 10
    assert len(run.starts) >= 1


def test_damaged_lines_of_metrics_are_set_aside_and_the_others_kept(
    begun: Run, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun.folder, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    damaged = "\n".join([*lines[:3], '{"step": 4, "lo', *lines[4:], '{"step": 9'])
    metrics.write_text(damaged)
    run = resume(tmp_path / "run", settings)
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert (tmp_path / "run" / "metrics.jsonl.damaged").read_text() == damaged
    assert "metrics.jsonl has 2 damaged lines; the others are kept; renamed to metrics.jsonl.damaged" in capsys.readouterr().err


def test_resume_without_a_whole_checkpoint_is_refused_and_changes_nothing(
    begun: Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun.folder, folder)
    for checkpoint in Run(folder).checkpoints:
        damage_torn(checkpoint / "objective.safetensors")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"has no complete checkpoint to resume from; its metrics\.jsonl is left as it is"):
        resume(folder, settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_checkpoint_that_lists_files_outside_is_damaged(begun: Run, tmp_path: Path) -> None:
    shutil.copytree(begun.folder, tmp_path / "run")
    (tmp_path / "secret").write_text("")
    (tmp_path / "run/checkpoints/step-8/complete.json").write_text('{"../../../secret": {"bytes": 0, "crc32": "00000000"}}')
    latest = latest_checkpoint(tmp_path / "run")
    assert latest is not None
    assert latest.name == "step-4"


def test_names_that_only_look_like_checkpoints_are_left_alone(begun: Run, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun.folder, folder)
    (folder / "checkpoints" / "step-²").mkdir()
    (folder / "checkpoints" / "step-best").mkdir()
    (folder / "checkpoints" / "step-4" / "notes.txt").write_text("mine")
    for number in (998, 999):  # damaged ones of later steps must not count as kept
        (folder / "checkpoints" / f"step-{number}").mkdir()
    resume(folder, settings | {"train.keep_checkpoints": 1})
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["step-10", "step-4", "step-998", "step-999", "step-best", "step-²"]
    assert [path.name for path in (folder / "checkpoints" / "step-4").iterdir()] == ["notes.txt"]
