"""benchmarks/gpu.py on a CPU: every part runs, and a call that was cut off continues."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
PARTS = ("machine", "losses vision/v2-tiny", "parity", "resume", "speed text/v1", "attention", "convolutions", "run")
"""One of each kind, and `comparison` without its data."""


def call(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(out), *words]
    return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_each_kind_of_part_runs_on_a_cpu_and_is_on_the_page(tmp_path: Path) -> None:
    only = [word for part in (*PARTS, "comparison vision") for word in ("--only", part)]
    done = call(tmp_path, "--device", "cpu", "--tiny", "--minutes", "25", *only)
    state = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{state}"
    assert {name for name, entry in state.items() if "skipped" in entry} == {"parity", "comparison vision"}
    assert all("result" in state[part] for part in PARTS if part != "parity")
    assert state["losses vision/v2-tiny"]["result"]["fp32 difference"] == 0
    assert state["resume"]["result"]["the resumed run is equal"]
    assert set(state["speed text/v1"]["result"]["eager"]) >= {"seconds", "share", "memory_GB", "flops"}
    page = (tmp_path / "gpu.md").read_text()
    assert "| text/v1-tiny | eager |" in page
    assert "Kernels of text/v1-tiny" in page
    assert "All checks that were made passed." in page


@pytest.mark.slow
def test_a_part_that_is_cut_off_is_tried_twice_and_then_passed_over(tmp_path: Path) -> None:
    words = ("--device", "cpu", "--tiny", "--spare", "0", "--only", "attention", "--only", "parity")
    for attempt in (1, 2):
        done = call(tmp_path, *words, "--minutes", "0.002")
        assert (done.returncode, "time is up in 'attention'" in done.stdout) == (3, True), done.stderr
        assert json.loads((tmp_path / "gpu.json").read_text())["attention"]["attempts"] == attempt
    done = call(tmp_path, *words)
    assert done.returncode == 1
    assert "failed: cut off" in done.stdout
    state = json.loads((tmp_path / "gpu.json").read_text())
    assert "skipped" in state["parity"]
    assert "- attention: cut off" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_how_to_try_it(tmp_path: Path) -> None:
    done = call(tmp_path)
    assert done.returncode == 1
    assert "'--device cpu --tiny' tries this script" in done.stderr
