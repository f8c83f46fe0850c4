"""Two processes, started once for everything that needs them: starting takes longer than all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.train.distributed import process
from data2vec.train.folder import Run

STILL = {"encoder.dropout": 0, "encoder.drop_path": 0}
STILL_2 = STILL | {"objective.decoder.dropout": 0, "objective.decoder.noise_std": 0}
DROPPING = {"data.micro_batch_size": 4, "encoder.layerdrop": 0.5, "train.checkpoint_every": 4}
MICRO_BATCHES = {8: "whole groups dealt out", 16: "a part of every group"}
WORK = """
import json, sys
import torch, torch.distributed as dist
import data2vec
from data2vec.train import loop
from data2vec.train.distributed import process

out, dropping, *versions = sys.argv[1], *map(json.loads, sys.argv[2:])
tiny = versions[0][1]
make_step = loop.Step.__call__


def checked(self, step, *more, **options):
    "Crashes before step 7 where the run is called halted; all processes must have the same weights after each step."
    if step == 7 and crash:
        raise ZeroDivisionError
    result = make_step(self, step, *more, **options)
    mine = torch.cat([p.detach().flatten() for p in self.objective.parameters()])
    first = mine.clone()
    dist.broadcast(first, 0)
    assert torch.equal(mine, first), step
    return result


loop.Step.__call__ = checked
crash = False
with process("cpu"):
    for recipe, small, still in versions:
        for micro_batch in (8, 16):
            settings = small | still | {"data.micro_batch_size": micro_batch}
            data2vec.pretrain(recipe, out=f"{out}/{recipe}/{micro_batch}", overrides=settings)
    data2vec.pretrain("vision/v1-tiny", out=f"{out}/straight", overrides=tiny | dropping)
    crash = True
    try:
        data2vec.pretrain("vision/v1-tiny", out=f"{out}/halted", overrides=tiny | dropping)
    except ZeroDivisionError:
        crash = False
    data2vec.pretrain("vision/v1-tiny", out=f"{out}/halted", overrides=tiny | dropping, resume=True)
"""


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *command], capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def versions(tiny: dict[str, Any], tiny2: dict[str, Any]) -> dict[int, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Recipe, what makes it tiny, and what takes the chance out of it."""
    return {1: ("vision/v1-tiny", tiny, STILL), 2: ("vision/v2-tiny", tiny2, STILL_2)}


@pytest.fixture(scope="module")
def two(versions: dict[int, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes wrote, and what they said."""
    out = tmp_path_factory.mktemp("two")
    (out / "work.py").write_text(WORK)
    result = torchrun(str(out / "work.py"), str(out), *map(json.dumps, (DROPPING, *versions.values())))
    assert result.returncode == 0, result.stderr
    return out, result.stderr


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("micro_batch", MICRO_BATCHES, ids=MICRO_BATCHES.values())
def test_two_processes_learn_what_one_does(
    micro_batch: int, version: int, versions: dict[int, Any], two: tuple[Path, str], tmp_path: Path
) -> None:
    recipe, tiny, still = versions[version]
    settings = tiny | still | {"data.micro_batch_size": micro_batch}
    alone = data2vec.pretrain(recipe, out=tmp_path / "alone", overrides=settings)
    together = Run(two[0] / recipe / str(micro_batch))
    assert [line["step"] for line in together.metrics] == list(range(1, 9))
    for mine, theirs in zip(together.metrics, alone.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["update_ratio"] == pytest.approx(theirs["update_ratio"], rel=1e-2)
        assert mine["features_learning"] == theirs["features_learning"] == 1
        assert mine["samples"] == theirs["samples"]
    trained = load_file(together.model / "model.safetensors")
    for key, tensor in load_file(alone.model / "model.safetensors").items():
        assert tensor.allclose(trained[key], atol=2e-4), key


def test_two_processes_resume_to_the_last_bit_with_dropped_layers_and_accumulation(two: tuple[Path, str]) -> None:
    timings = {"seconds", "samples_per_second", "data_wait"}
    straight, halted = (
        [{key: value for key, value in line.items() if key not in timings} for line in Run(two[0] / name).metrics]
        for name in ("straight", "halted")
    )
    assert len(straight) == 8
    assert straight == halted


def test_only_the_first_process_speaks(two: tuple[Path, str]) -> None:
    assert two[1].count("step 8/8") == 6


def test_a_mistake_is_told_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    settings = [f"{key}={value}" for key, value in tiny.items()]
    result = torchrun("-m", "data2vec", "pretrain", "vision/v1-tiny", "--out", str(tmp_path), *settings)
    assert result.returncode != 0
    assert result.stderr.count("data2vec: error: --out") == 1
    assert "is not empty" in result.stderr


def test_on_a_cpu_numbers_too_small_to_be_normal_are_zero() -> None:
    with process("cpu"):
        assert (torch.tensor([1e-39]) * torch.tensor([0.5])).item() == 0
