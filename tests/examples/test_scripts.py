"""The example scripts run as they are, and the notebooks are made from them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NEEDS = {
    "pretrain_in_lightning": "lightning",
    "pretrain_in_accelerate": "accelerate",
    "features_in_ray": "ray",
    "features_in_dask": "distributed",
}
"""Libraries that are no dependency of ours."""
BUILD = EXAMPLES.parent / "tools" / "build_notebooks.py"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path, marks=() if path.stem == "features_in_scikit_learn" else pytest.mark.slow, id=path.stem)
        for path in SCRIPTS
    ],
)
def test_script_runs_in_an_empty_folder(script: Path, tmp_path: Path) -> None:
    if script.stem in NEEDS:
        pytest.importorskip(NEEDS[script.stem])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_current(script: Path) -> None:
    code = "import sys, build_notebooks; print(build_notebooks.build_notebook(sys.stdin.read()), end='')"
    environment = os.environ | {"PYTHONPATH": str(BUILD.parent)}
    result = subprocess.run(
        [sys.executable, "-c", code], input=script.read_text(), env=environment, capture_output=True, text=True, check=True
    )
    assert script.with_suffix(".ipynb").read_text() == result.stdout, f"run: python {BUILD}"
