"""A modality defined outside the package (helpers/sensor_modality.py) is trained by the same commands."""

from pathlib import Path

import numpy as np
import torch

import data2vec
from data2vec.batch import Batch


def test_custom_modality_trains_and_loads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    phase = rng.random((64, 1, 3)) * 6
    np.save(tmp_path / "readings.npy", np.sin(np.arange(160)[:, None] / 5 + phase) + 0.1 * rng.standard_normal((64, 160, 3)))
    recipe = tmp_path / "sensor.yaml"
    recipe.write_text(
        "modality: {name: 'helpers.sensor_modality:Sensor', window: 8}\n"
        "encoder: {width: 32, layers: 3, heads: 4, ffn_width: 64, input_norm: false, dropout: 0, attention_dropout: 0}\n"
        "objective: {name: data2vec, mask: {kind: span, prob: 0.5, length: 3}, target: {top_k: 2, per_layer_norms: [layer]}}\n"
        "data: {workers: 0}\ntrain: {steps: 30, lr: 5e-3}\nlog: {every: 10}\n"
    )
    run = data2vec.pretrain(recipe, data=str(tmp_path / "readings.npy"), out=tmp_path / "run")
    first, *_, last = run.metrics
    assert last["step"] == 30 and last["samples"] == 30 * 16
    assert last["loss"] < first["loss"] or last["prediction_std"] > first["prediction_std"]
    model = data2vec.load(tmp_path / "run")
    assert model.encoder(Batch(torch.zeros(2, 20, 8, 3)))[0].shape == (2, 20, 32)
