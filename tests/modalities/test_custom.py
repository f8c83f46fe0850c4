"""A modality defined outside the package (helpers/sensor_modality.py) is trained by the same commands."""

from pathlib import Path

import numpy as np
import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.modalities import custom_classes
from helpers.sensor_modality import Sensor, SensorSettings

NAME = "helpers.sensor_modality:Sensor"


@pytest.fixture
def untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_classes, "_TRUSTED", {})


def sensor_recipe(folder: Path, name: str = "", steps: int = 1) -> Path:
    """A recipe of sensor readings, which are written beside it; `name`: of the modality."""
    rng = np.random.default_rng(0)
    phase = rng.random((64, 1, 3)) * 6
    np.save(folder / "readings.npy", np.sin(np.arange(160)[:, None] / 5 + phase) + 0.1 * rng.standard_normal((64, 160, 3)))
    recipe = folder / "sensor.yaml"
    recipe.write_text(
        f"modality: {{{name and f'name: {name!r}, '}window: 8}}\n"
        "encoder: {width: 32, layers: 3, heads: 4, ffn_width: 64, input_norm: false, dropout: 0, attention_dropout: 0}\n"
        "objective: {name: data2vec, mask: {kind: span, prob: 0.5, length: 3}, target: {top_k: 2, per_layer_norms: [layer]}}\n"
        f"data: {{workers: 0}}\ntrain: {{steps: {steps}, lr: 5e-3}}\nlog: {{every: 10, report: false}}\n"
    )
    return recipe


def test_custom_modality_trains_and_loads(tmp_path: Path) -> None:
    recipe = sensor_recipe(tmp_path, NAME, steps=30)
    run = data2vec.pretrain(recipe, data=str(tmp_path / "readings.npy"), out=tmp_path / "run")
    first, *_, last = run.metrics
    assert last["step"] == 30 and last["samples"] == 30 * 16
    assert last["loss"] < first["loss"] or last["prediction_std"] > first["prediction_std"]
    model = data2vec.load(tmp_path / "run")
    assert model.encoder(Batch(torch.zeros(2, 20, 8, 3)))[0].shape == (2, 20, 32)


@pytest.mark.usefixtures("untrusted")
@pytest.mark.parametrize("custom", [Sensor, NAME])
def test_custom_modality_is_named_by_the_caller(custom: custom_classes.CustomClass, tmp_path: Path) -> None:
    data = str(tmp_path / "readings.npy")
    run = data2vec.pretrain(sensor_recipe(tmp_path), data=data, out=tmp_path / "run", modality=custom)
    custom_classes._TRUSTED.clear()
    for opened in (tmp_path / "run", run.model):
        with pytest.raises(UserError, match=f"{NAME}'? is a class outside the package.* by --modality {NAME}"):
            data2vec.load(opened)
    assert isinstance(data2vec.load(run.model, modality=custom).modality, Sensor)


@pytest.mark.usefixtures("untrusted")
def test_custom_modality_is_an_option_of_every_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = str(tmp_path / "run"), str(tmp_path / "readings.npy")
    words = ["pretrain", str(sensor_recipe(tmp_path)), "--out", run, f"data.train={data}"]
    assert cli.main([*words, "--modality", NAME]) == 0
    for words in (
        ["report", run],
        ["convert", run, str(tmp_path / "copy"), "--to", "data2vec", "--source", "a", "--license", "mit"],
        ["probe", run, "--data", data],
        ["pretrain", f"{run}/recipe.yaml", "--out", str(tmp_path / "again")],
    ):
        custom_classes._TRUSTED.clear()
        assert cli.main(words) == 2
        assert f"name it yourself by --modality {NAME}" in capsys.readouterr().err
        assert cli.main([*words, "--modality", NAME]) == 0, capsys.readouterr().err


class StrictSettings(SensorSettings):
    window: int  # without a default


class Strict(Sensor):
    Settings = StrictSettings


def test_fine_tuning_and_its_plan_take_the_settings_of_the_model(tmp_path: Path) -> None:
    data = str(tmp_path / "readings.npy")
    run = data2vec.pretrain(sensor_recipe(tmp_path), data=data, out=tmp_path / "run", modality=Strict)
    classify = tmp_path / "classify.yaml"
    classify.write_text("objective: {name: classify}\ndata: {workers: 0}\ntrain: {steps: 1}\nlog: {report: false}\n")
    planned = data2vec.plan(classify, data, model=run.model, measure=False, modality=Strict)
    assert planned.examples == 64
    tuned = data2vec.finetune(classify, run.model, data, data, out=tmp_path / "tuned", modality=Strict)
    assert data2vec.load(tuned.model, modality=Strict).recipe.modality.model_dump()["window"] == 8


@pytest.mark.usefixtures("untrusted")
def test_another_modality_than_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modality: helpers.sensor_modality:Sensor, but modality.name is 'vision'"):
        data2vec.load_recipe("vision/v1-tiny", modality=Sensor)
    with pytest.raises(UserError, match="modality: 'nowhere:Thing' cannot be imported: No module named 'nowhere'"):
        data2vec.load_recipe(sensor_recipe(tmp_path), modality="nowhere:Thing")
    with pytest.raises(UserError, match=r"is not a subclass of data2vec\.modalities\.base\.Modality"):
        data2vec.load_recipe(sensor_recipe(tmp_path), modality="pathlib:Path")
