"""Runs on streamed data: stopped at any step, they go on to the last bit, on as many processes as there are then."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.errors import RunStopped
from data2vec.run_dir import Run
from helpers.runs import crash_before, measured

WORK = """
import json, sys
import data2vec
from data2vec.errors import RunStopped

out, steps, settings = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
data2vec.pretrain("vision/v1-tiny", out=out, overrides=settings | {"train.steps": steps}, resume=steps > 4)
"""


@pytest.fixture(scope="module")
def streamed(tiny: dict[str, Any], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Overrides that stream ten tar shards of the pictures, two of 40 broken; a step is half a pass."""
    folder, every = tmp_path_factory.mktemp("shards"), sorted(pictures.iterdir())
    for shard in range(10):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for path in every[4 * shard : 4 * shard + 4]:
                content = b"torn" if path.stem in ("07", "22") else path.read_bytes()
                info = tarfile.TarInfo(path.name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    still = {"encoder.dropout": 0, "encoder.drop_path": 0, "train.schedule": {"name": "tri_stage", "warmup": 0, "hold": 1}}
    data = {
        "data.train": str(folder),
        "data.streaming": True,
        "data.num_streams": 4,
        "data.shuffle_buffer": 32,
        "data.max_corrupt": 0.06,
    }
    return tiny | still | data | {"data.micro_batch_size": 4, "train.checkpoint_every": 3}


def pretrain(out: Path, settings: dict[str, Any], resume: bool = False, **more: Any) -> Run:
    return data2vec.pretrain("vision/v1-tiny", overrides=settings | more, out=out, resume=resume)


@pytest.fixture(scope="module")
def whole(streamed: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return pretrain(tmp_path_factory.mktemp("whole") / "run", streamed)


def test_resumed_streaming_run_is_bit_equal(whole: Run, streamed: dict[str, Any], tmp_path: Path) -> None:
    with crash_before(6):
        pretrain(tmp_path / "run", streamed, **{"data.workers": 2})
    resumed = pretrain(tmp_path / "run", streamed, resume=True, **{"data.workers": 1})
    assert measured(resumed) == measured(whole)
    one, other = (load_file(run.model / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_corrupt_streamed_images_are_counted_and_too_many_stop_the_run(
    whole: Run, streamed: dict[str, Any], tmp_path: Path
) -> None:
    assert whole.metrics[-1]["corrupt"] == 2
    names = (whole.folder / "corrupt_files.txt").read_text()
    assert "1.tar/07.png" in names and "5.tar/22.png" in names
    with pytest.raises(RunStopped, match=r"more than data\.max_corrupt"):
        pretrain(tmp_path / "run", streamed, **{"data.max_corrupt": 0.0})


@pytest.mark.slow
def test_streaming_resumes_with_other_numbers_of_processes(whole: Run, streamed: dict[str, Any], tmp_path: Path) -> None:
    def torchrun(processes: int, steps: int) -> None:
        (tmp_path / "work.py").write_text(WORK)
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*start, str(tmp_path / "work.py"), str(tmp_path / "run"), str(steps), json.dumps(streamed)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr

    torchrun(2, 4)
    torchrun(4, 6)
    resumed = pretrain(tmp_path / "run", streamed, resume=True)
    assert [line["corrupt"] for line in resumed.metrics] == [line["corrupt"] for line in whole.metrics]
    assert [line["samples"] for line in resumed.metrics] == [line["samples"] for line in whole.metrics]
    for mine, theirs in zip(resumed.metrics, whole.metrics, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
