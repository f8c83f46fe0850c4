"""The example for SLURM, on a cluster of two tasks that is played by two short scripts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data2vec
from data2vec.run_dir import Run

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
SRUN = """#!/bin/bash
trap 'kill -USR1 $(jobs -p)' USR1
for SLURM_PROCID in 0 1; do
    SLURM_PROCID=$SLURM_PROCID SLURM_LOCALID=$SLURM_PROCID SLURM_NTASKS=2 "$@" &
done
status=0
for task in $(jobs -p); do
    wait $task; one=$?
    while kill -0 $task 2>/dev/null; do wait $task; one=$?; done
    if [ $one -gt $status ]; then status=$one; fi
done
exit $status
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; echo other; else echo "$@" >> "$REQUEUED"; fi
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_signalled_job_is_requeued_and_resumes(tmp_path: Path, pictures: Path, free_port: int) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "slurm.sh"
    script.write_text(SCRIPT.read_text().replace("29500", str(free_port)))
    requeued, folder = tmp_path / "requeued", tmp_path / "run"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "7",
        "REQUEUED": str(requeued),
        "OMP_NUM_THREADS": "1",
    }
    settings: dict[str, Any] = {
        "data.train": str(pictures),
        "data.batch_size": 16,
        "data.micro_batch_size": 8,
        "data.workers": 0,
        "encoder.width": 16,
        "encoder.heads": 2,
        "encoder.ffn_width": 32,
        "log.every": 1,
        "train.device": "cpu",
        "train.checkpoint_every": 100000,
        "train.schedule": {"name": "tri_stage", "warmup": 0, "hold": 1},
    }

    def job(steps: int) -> list[str]:
        words = [f"{key}={json.dumps(value)}" for key, value in (settings | {"train.steps": steps}).items()]
        return ["bash", str(script), "vision/v1-tiny", str(folder), *words]

    log = tmp_path / "log"
    with log.open("w") as file:
        first = subprocess.Popen(job(100000), env=environment, stderr=file)
    run = Run(folder)
    while len(run.metrics) < 3:
        assert first.poll() is None, log.read_text()
        time.sleep(0.05)
    srun = subprocess.run(["pgrep", "-P", str(first.pid), "-f", "srun"], capture_output=True, text=True, check=True)
    os.kill(int(srun.stdout.split()[0]), signal.SIGUSR1)
    assert first.wait(60) == 128 + signal.SIGUSR1
    assert "interrupted; checkpoint saved at step" in log.read_text()
    assert requeued.read_text() == "requeue 7\n"
    reached = run.metrics[-1]["step"]
    second = subprocess.run(job(reached + 2), env=environment, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert [line["step"] for line in run.metrics] == list(range(1, reached + 3))
    assert requeued.read_text() == "requeue 7\n"
    assert data2vec.load(folder).recipe.train.steps == reached + 2
