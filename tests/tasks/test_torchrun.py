"""Inference by several processes of torchrun gives what one process gives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data2vec.model import save_model_folder
from helpers.fine_tuned import fine_tuned, make_data

ONE = [sys.executable, "-m", "data2vec"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def output(command: list[str], *words: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words, "--device", "cpu"], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_scores_features_and_predictions_of_one(tmp_path: Path, processes: int) -> None:
    where = make_data(tmp_path)
    save_model_folder(fine_tuned("classes of images", where["tokenizer"]), tmp_path / "model")
    for i in range(130):  # five blocks
        folder = where["classes of images"] / ("dark", "bright")[i % 2]
        shutil.copy(folder / f"{i % 8}.png", folder / f"copy-{i}.png")
    model, images = str(tmp_path / "model"), str(where["classes of images"])
    several = [*TORCHRUN, str(processes), "-m", "data2vec"]
    for words in (("evaluate", model, f"data.valid={images}"), ("probe", model, "--data", images, "--valid", images)):
        assert output(several, *words) == output(ONE, *words)
    for command, name in ((ONE, "one"), (several, "more")):
        output(command, "features", model, images, "--out", str(tmp_path / f"{name}.npy"))
        output(command, "predict", model, images, "--out", str(tmp_path / f"{name}.csv"))
    np.testing.assert_allclose(np.load(tmp_path / "more.npy"), np.load(tmp_path / "one.npy"), rtol=1e-4, atol=1e-4)
    one, more = ((tmp_path / f"{name}.csv").read_text() for name in ("one", "more"))
    assert [line.split(",")[:2] for line in one.splitlines()] == [line.split(",")[:2] for line in more.splitlines()]
