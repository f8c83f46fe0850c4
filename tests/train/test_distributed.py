"""Several processes, started once for everything that needs them: starting takes longer than all of it."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.distributed import process_group
from data2vec.run_dir import Run
from helpers.processes import torchrun

STEPS = 6
STILL = {"encoder.dropout": 0, "encoder.drop_path": 0, "train.steps": STEPS, "train.checkpoint_every": 2}
STILL_2 = STILL | {"objective.decoder.dropout": 0, "objective.decoder.noise_std": 0}
DROPPING = {"data.micro_batch_size": 4, "encoder.layerdrop": 0.5, "train.checkpoint_every": 4}
STILL_DROPPING = STILL | {"data.micro_batch_size": 16, "encoder.layerdrop": 0.5, "train.weight_decay": 0.5}
FOUR = pytest.param(4, marks=pytest.mark.slow)
MICRO_BATCHES = {4: "whole groups dealt out", 16: "a part of every group"}
CELLS = [
    *((2, 4, False), (2, 16, True)),
    *((4, micro_batch, shard) for micro_batch in MICRO_BATCHES for shard in (False, True, "node")),
]
"""Numbers of processes, sizes of micro-batches, and how weights are sharded: two processes try two ways. Four stand for two
machines of two processes."""
WORK = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
import data2vec
from data2vec import cli
from data2vec.distributed import process_group
from helpers.processes import equal_weights
from helpers.runs import crash_before

out, cells, dropping, still_dropping, *versions = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
tiny = versions[0][1]
os.environ["LOCAL_WORLD_SIZE"] = "2"

with process_group("cpu"), equal_weights():
    for recipe, small, still in versions:
        for processes, micro_batch, shard in cells:
            if processes == dist.get_world_size():
                settings = small | still | {"data.micro_batch_size": micro_batch, "train.shard": shard}
                data2vec.pretrain(recipe, out=out / recipe / f"{micro_batch}-{shard}", overrides=settings)
    if dist.get_world_size() == 4:
        for folder in sorted(out.glob("halted/*/*/*")):
            settings = next(s | t for r, s, t in versions if r in str(folder))
            settings |= {"data.micro_batch_size": 4, "train.shard": folder.name == "True"}
            data2vec.pretrain(folder / "recipe.yaml", out=folder, overrides=settings, resume=True)
    else:
        for recipe, small, still in versions:
            for shard in (False, True):
                settings = small | still | {"data.micro_batch_size": 4, "train.shard": shard}
                with crash_before(5):
                    data2vec.pretrain(recipe, out=out / "halted" / recipe / str(shard), overrides=settings)
        data2vec.pretrain("vision/v1-tiny", out=out / "dropping", overrides=tiny | still_dropping)
        for shard in (False, True):
            settings = tiny | dropping | {"train.shard": shard}
            data2vec.pretrain("vision/v1-tiny", out=out / f"straight-{shard}", overrides=settings)
            settings |= {"train.async_checkpoints": True}
            with crash_before(7):
                data2vec.pretrain("vision/v1-tiny", out=out / f"taken-up-{shard}", overrides=settings)
            data2vec.pretrain("vision/v1-tiny", out=out / f"taken-up-{shard}", overrides=settings, resume=True)
        words = [f"{key}={value}" for key, value in tiny.items()]
        assert cli.main(["pretrain", "vision/v1-tiny", "--out", str(out), *words]) == 2
"""


@pytest.fixture(scope="module")
def versions(tiny: dict[str, Any], tiny2: dict[str, Any]) -> dict[int, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Recipe, what makes it tiny, and what takes the chance out of it."""
    return {1: ("vision/v1-tiny", tiny, STILL), 2: ("vision/v2-tiny", tiny2, STILL_2)}


@pytest.fixture(scope="module")
def together(versions: dict[int, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, str]]:
    """The folder and stderr of two or four processes, run once. The four also resume runs that the two left halfway."""

    @functools.cache
    def outputs(processes: int) -> tuple[Path, str]:
        out = tmp_path_factory.mktemp("together")
        (out / "work.py").write_text(WORK)
        if processes == 4:
            shutil.copytree(outputs(2)[0] / "halted", out / "halted")
        words = str(out / "work.py"), str(out), *map(json.dumps, (CELLS, DROPPING, STILL_DROPPING, *versions.values()))
        result = torchrun(processes, *words, timeout=600)
        assert result.returncode == 0, result.stderr
        return out, result.stderr

    return outputs


@pytest.fixture(scope="module")
def alone(versions: dict[int, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Run]:
    """The same runs by one process, by version and micro-batch."""
    out = tmp_path_factory.mktemp("alone")
    return {
        (version, micro_batch): data2vec.pretrain(
            recipe, out=out / recipe / str(micro_batch), overrides=tiny | still | {"data.micro_batch_size": micro_batch}
        )
        for version, (recipe, tiny, still) in versions.items()
        for micro_batch in MICRO_BATCHES
    }


def assert_same_course(run: Run, expected: Run) -> None:
    """Losses, norms and weights to what another order of adding up changes."""
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))
    for mine, theirs in zip(run.metrics, expected.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["update_ratio"] == pytest.approx(theirs["update_ratio"], rel=1e-2)
        assert mine["local_encoder_fraction_with_grad"] == theirs["local_encoder_fraction_with_grad"] == 1
        assert mine["samples"] == theirs["samples"]
    trained = load_file(run.model / "model.safetensors")
    for key, tensor in load_file(expected.model / "model.safetensors").items():
        assert tensor.allclose(trained[key], atol=3e-4), key


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("processes", "micro_batch", "shard"), [
    pytest.param(*cell, marks=[pytest.mark.slow] * (cell[0] == 4)) for cell in CELLS
])  # fmt: skip
def test_several_processes_equal_one_process(
    processes: int, micro_batch: int, shard: bool | str, version: int, versions: Any, together: Any, alone: Any
) -> None:
    run = Run(together(processes)[0] / versions[version][0] / f"{micro_batch}-{shard}")
    assert_same_course(run, alone[version, micro_batch])
    files = {path.name for path in run.folder.glob("checkpoints/step-6/*.safetensors")}
    assert len(files) == (processes if shard else 2)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
@pytest.mark.parametrize("processes", [1, FOUR])
def test_checkpoint_of_two_processes_resumes_with_any_number(
    processes: int, shard: bool, version: int, versions: Any, together: Any, alone: Any, tmp_path: Path
) -> None:
    recipe, tiny, still = versions[version]
    place = Path("halted") / recipe / str(shard)
    assert not (together(2)[0] / place / "model").exists()
    if processes == 4:
        run = Run(together(4)[0] / place)
    else:
        shutil.copytree(together(2)[0] / place, tmp_path / "run")
        settings = tiny | still | {"data.micro_batch_size": 4, "train.shard": shard}
        run = data2vec.pretrain(recipe, out=tmp_path / "run", overrides=settings, resume=True)
    assert_same_course(run, alone[version, 4])


@pytest.mark.parametrize("shard", [False, True], ids=["replicated", "sharded"])
def test_two_processes_with_layerdrop_and_accumulation_resume_bit_equal(shard: bool, together: Any) -> None:
    timings = {"seconds", "samples_per_second", "data_wait"}
    straight, taken_up = (
        [
            {key: value for key, value in line.items() if key not in timings}
            for line in Run(together(2)[0] / f"{name}-{shard}").metrics
        ]
        for name in ("straight", "taken-up")
    )
    assert len(straight) == 8
    assert straight == taken_up


def test_layerdrop_leaves_the_weights_of_skipped_blocks_as_they_are_in_two_processes_as_in_one(
    versions: Any, together: Any, tmp_path: Path
) -> None:
    """With weight decay, which moves all weights that have a gradient, even of zero."""
    recipe, tiny, _ = versions[1]
    alone = data2vec.pretrain(recipe, out=tmp_path / "run", overrides=tiny | STILL_DROPPING)
    assert_same_course(Run(together(2)[0] / "dropping"), alone)


def test_only_the_main_process_logs(together: Any) -> None:
    assert together(2)[1].count(f"step {STEPS}/{STEPS}") == 5


def test_user_error_is_printed_once(together: Any) -> None:
    out, printed = together(2)
    assert printed.count(f"data2vec: error: --out {out}: is not empty") == 1 == printed.count("data2vec: error:")


def test_on_a_cpu_numbers_too_small_to_be_normal_are_zero_while_it_trains() -> None:
    def half() -> float:
        return (torch.tensor([1e-39]) * torch.tensor([0.5])).item()

    with process_group("cpu"):
        with process_group("cpu"):
            assert half() == 0
        assert half() == 0
    assert half() > 0


EXCHANGE = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
import data2vec
from data2vec.distributed import process_group

with process_group("cpu"):
    losses, small = {}, json.loads(sys.argv[1])
    for shard in (False, True):
        for communication in ("fp32", "bf16"):
            changes = {"train.shard": shard, "train.communication": communication, "train.precision": "bf16"}
            run = data2vec.pretrain("vision/v2-tiny", out=f"{shard}-{communication}", overrides=small | changes)
            losses[f"{shard}-{communication}"] = [line["loss"] for line in run.metrics]
    if dist.get_rank() == 0:
        Path("losses.json").write_text(json.dumps(losses))
"""


@pytest.mark.slow
def test_gradients_exchanged_in_bf16_train_as_those_in_fp32(tmp_path: Path, tiny2: dict[str, Any]) -> None:
    small = tiny2 | {"train.steps": 8, "train.checkpoint_every": 8, "log.every": 1, "data.workers": 0, "log.report": False}
    (tmp_path / "work.py").write_text(EXCHANGE)
    result = torchrun(2, str(tmp_path / "work.py"), json.dumps(small), timeout=600, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[:3000]
    losses = json.loads((tmp_path / "losses.json").read_text())
    for kind in ("False", "True"):
        exact, rounded = losses[f"{kind}-fp32"], losses[f"{kind}-bf16"]
        assert rounded[0] == pytest.approx(exact[0], rel=1e-3)
        assert rounded == pytest.approx(exact, rel=0.02)
        assert rounded != exact
