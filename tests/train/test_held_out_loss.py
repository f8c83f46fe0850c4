import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.train.pretrain import PretrainTask
from helpers.pictures import write_pictures

VALID = {"probe.every": 3}


@pytest.fixture
def settings(tiny: dict[str, Any]) -> dict[str, Any]:
    """Without those of a teacher, which not every objective has."""
    return {key: value for key, value in tiny.items() if "teacher" not in key}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("held-out"), 11, seed=9)


@pytest.mark.parametrize("recipe", ["vision/v2-tiny", pytest.param("vision/beit-tiny", marks=pytest.mark.slow)])
def test_the_held_out_loss_is_logged_at_every_probe_and_changes_no_step(
    recipe: str, settings: dict[str, Any], held_out: Path, tmp_path: Path
) -> None:
    settings |= {"objective.target.top_k": 2} if recipe == "vision/v2-tiny" else {}
    plain = data2vec.pretrain(recipe, overrides=settings, out=tmp_path / "plain")
    run = data2vec.pretrain(recipe, overrides=settings | VALID | {"data.valid": str(held_out)}, out=tmp_path / "run")
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in plain.metrics]
    found = {line["step"]: line["valid_loss"] for line in run.metrics if "valid_loss" in line}
    assert list(found) == [1, 3, 6, 8] and all(np.isfinite(loss) for loss in found.values())
    assert not any("valid_loss" in line for line in plain.metrics)


def test_the_held_out_loss_is_that_of_every_image_once(settings: dict[str, Any], held_out: Path) -> None:
    """Of 11 images in micro-batches of 8: also of the last three, and without dropout."""
    recipe = load_recipe("vision/v1-tiny", settings | {"data.valid": str(held_out)})
    task = PretrainTask(recipe, Process(torch.device("cpu")))
    assert task.held_out_loss is not None
    found = task.held_out_loss(task.objective)["valid_loss"]
    assert task.objective.training
    assert [len(each.indices) for each in task.held_out_loss.micro_batches] == [8, 3]
    assert task.held_out_loss(task.objective)["valid_loss"] == found
    total, predicted = 0.0, 0
    task.objective.eval()
    for micro_batch in task.held_out_loss.micro_batches:
        with torch.no_grad():
            output = task.objective(task.held_out_loss.batches.build(micro_batch).batch)
        total, predicted = total + float(output.loss), predicted + len(output.errors)
    assert found == pytest.approx(total / predicted, rel=1e-5)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_held_out_loss_is_the_same_with_any_number_of_processes(
    processes: int, tiny2: dict[str, Any], held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with much noise in the decoder."""
    changes = {"data.valid": str(held_out), "data.micro_batch_size": 4, "objective.decoder.noise_std": 1.0}
    task = PretrainTask(load_recipe("vision/v2-tiny", tiny2 | changes), Process(torch.device("cpu")))
    held_out_loss = task.held_out_loss
    assert held_out_loss is not None and len(held_out_loss.micro_batches) == 3
    alone = held_out_loss(task.objective)["valid_loss"]
    totals: list[torch.Tensor] = []
    monkeypatch.setattr(Process, "sum", lambda self, values: totals.append(values) or values)
    for rank in range(processes):
        held_out_loss.process = Process(torch.device("cpu"), rank, processes)
        held_out_loss(task.objective)
    loss, predicted = torch.stack(totals).sum(0).tolist()
    assert loss / predicted == pytest.approx(alone, rel=1e-12)


def test_of_many_held_out_examples_a_sample_is_measured(settings: dict[str, Any], held_out: Path) -> None:
    recipe = load_recipe("vision/v1-tiny", settings | {"data.valid": str(held_out), "probe.max_examples": 5})
    task = PretrainTask(recipe, Process(torch.device("cpu")))
    assert task.held_out_loss is not None
    (micro_batch,) = task.held_out_loss.micro_batches
    assert len(micro_batch.indices) == 5


def test_unusable_held_out_data_is_refused_or_named(
    settings: dict[str, Any], held_out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^data\.valid: .*no image found"):
        data2vec.pretrain("vision/v1-tiny", overrides=settings | {"data.valid": str(tmp_path / "empty")}, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"^data\.valid: nowhere: there is no such folder or file"):
        data2vec.pretrain("vision/v1-tiny", overrides=settings | {"data.valid": "nowhere"}, out=tmp_path / "run")
    changes = {"data.valid": str(held_out), "data.valid_rows.where": {"split": "dev"}}
    with pytest.raises(UserError, match=r"^data\.valid_rows\.where: there is no column 'split'"):
        data2vec.pretrain("vision/v1-tiny", overrides=settings | changes, out=tmp_path / "run")
    shutil.copytree(held_out, tmp_path / "some")
    (tmp_path / "some" / "bad.png").write_bytes(b"no picture")
    recipe = load_recipe("vision/v1-tiny", settings | {"data.valid": str(tmp_path / "some")})
    task = PretrainTask(recipe, Process(torch.device("cpu")))
    assert task.held_out_loss is not None
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            task.held_out_loss(task.objective)
    assert caplog.text.count("data.valid: left out: ") == 1 and "bad.png: not an image" in caplog.text


def test_held_out_clips_and_texts_use_the_settings_of_the_training_data(tmp_path: Path) -> None:
    import soundfile

    rng = np.random.default_rng(0)
    for name, number in (("train", 12), ("valid", 5)):
        (tmp_path / name).mkdir()
        for i in range(number):
            soundfile.write(tmp_path / name / f"{i}.wav", 0.1 * rng.standard_normal(16000 + 1600 * i), 16000)
    small = {"encoder.width": 32, "encoder.layers": 2, "encoder.heads": 2, "encoder.ffn_width": 64, "objective.target.top_k": 1}
    small |= {"train.steps": 2, "data.workers": 0, "log.report": False, "train.device": "cpu", "objective.decoder.width": 32}
    run = data2vec.pretrain(
        "speech/v2-tiny", str(tmp_path / "train"), small | {"data.valid": str(tmp_path / "valid")}, tmp_path / "speech"
    )
    assert all(line["valid_loss"] > 0 for line in run.metrics)
    words = ["one", "two", "three", "four", "five", "six"]
    for name, number in (("train.txt", 6000), ("valid.txt", 700)):
        (tmp_path / name).write_text(" ".join(rng.choice(words, number)))
    text = small | {"modality.vocab_size": 300, "objective.input_target": None}
    run = data2vec.pretrain(
        "text/v2-tiny", str(tmp_path / "train.txt"), text | {"data.valid": str(tmp_path / "valid.txt")}, tmp_path / "text"
    )
    assert all(line["valid_loss"] > 0 for line in run.metrics)
