"""Drift of a run from the model that it starts from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import data2vec
from data2vec.run_dir import Run
from data2vec.train.adaptation.drift import linear_cka

DRIFT = ("drift_weights", "drift_features")


@pytest.fixture(scope="module")
def released(tiny2: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "released"
    return data2vec.pretrain("vision/v2-tiny", overrides=tiny2 | {"train.steps": 3}, out=folder)


@pytest.fixture
def settings(released: Run, tiny2: dict[str, Any], pictures: Path) -> dict[str, Any]:
    return tiny2 | {"init": str(released.folder), "data.valid": str(pictures), "probe.every": 2, "train.steps": 6}


def drifts(run: Run, name: str) -> list[float]:
    return [line[name] for line in run.metrics if name in line]


def test_cka_of_rotated_and_scaled_features_is_1() -> None:
    torch.manual_seed(0)
    x, rotation = torch.randn(200, 8), torch.linalg.qr(torch.randn(8, 8))[0]
    assert float(linear_cka(x, 3 * x @ rotation + 1)) == pytest.approx(1, abs=1e-6)


def test_cka_of_independent_features_is_near_0() -> None:
    torch.manual_seed(0)
    assert float(linear_cka(torch.randn(2000, 4), torch.randn(2000, 4))) < 0.02


def test_drift_is_logged_at_every_evaluation_and_grows_with_the_learning_rate(settings: dict[str, Any], tmp_path: Path) -> None:
    slow, fast = (
        data2vec.pretrain("vision/v2-tiny", overrides=settings | {"train.lr": lr}, out=tmp_path / f"{lr}")
        for lr in (1e-4, 1e-2)
    )
    for name in DRIFT:
        assert len(drifts(slow, name)) == 4  # of steps 1, 2, 4 and 6
        assert 0 <= drifts(slow, name)[0] < drifts(slow, name)[-1] < drifts(fast, name)[-1]


def test_drift_is_0_while_the_student_is_frozen(settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {"objective.freeze_steps": 3}
    run = data2vec.pretrain("vision/v2-tiny", overrides=settings | changes, out=tmp_path / "run")
    assert [line["step"] for line in run.metrics if "valid_loss" in line] == [1, 2, 3, 4, 6]
    assert drifts(run, "drift_weights")[:3] == [0, 0, 0] and drifts(run, "drift_weights")[3] > 0


def test_resumed_run_logs_the_same_drift(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = data2vec.pretrain("vision/v2-tiny", overrides=settings, out=tmp_path / "whole")
    shutil.copytree(whole.folder, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-6")
    parts = data2vec.resume(tmp_path / "parts")
    for name in DRIFT:
        assert drifts(parts, name) == drifts(whole, name)


def test_resumed_run_whose_start_has_changed_warns_and_logs_no_drift(
    released: Run, settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(released.model, tmp_path / "start")
    changes = {"init": str(tmp_path / "start")}
    run = data2vec.pretrain("vision/v2-tiny", overrides=settings | changes, out=tmp_path / "run")
    shutil.rmtree(run.checkpoints[0])
    shutil.copytree(run.model, tmp_path / "start", dirs_exist_ok=True)
    data2vec.resume(run.folder)
    assert "drift from the start is not measured any more" in caplog.text
    assert "drift_weights" not in run.metrics[-1] and "valid_loss" in run.metrics[-1]
