"""Tiny runs of each modality, and of one that is not the package's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data2vec
from data2vec.run_dir import Run

TINY: dict[str, Any] = {
    "train.steps": 3,
    "train.device": "cpu",
    "log.every": 1,
    "data.workers": 0,
    "encoder.width": 16,
    "encoder.layers": 3,
    "encoder.heads": 2,
    "encoder.ffn_width": 32,
    "objective.target.top_k": 2,
}
BATCH = {"data.batch_size": 4, "data.micro_batch_size": 4}
SENSOR = """
modality: {name: 'helpers.sensor_modality:Sensor', window: 8}
encoder: {input_norm: false, dropout: 0, attention_dropout: 0}
objective: {name: data2vec, mask: {kind: span, prob: 0.5, length: 3}, target: {per_layer_norms: [layer]}}
"""


def images(folder: Path) -> tuple[str, str, dict[str, Any]]:
    from PIL import Image

    (folder / "data").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)):
        Image.fromarray(pixels).resize((32, 32)).save(folder / "data" / f"{i}.png")
    decoder = {"objective.decoder.width": 16, "objective.masks_per_sample": 3}
    return "vision/v2-tiny", str(folder / "data"), BATCH | decoder


def speech(folder: Path) -> tuple[str, str, dict[str, Any]]:
    import soundfile

    (folder / "data").mkdir()
    for i, wave in enumerate(np.random.default_rng(0).standard_normal((8, 12000)) * 0.1):
        soundfile.write(folder / "data" / f"{i}.wav", wave, 16000)
    batch = {"data.batch_seconds": 2, "data.micro_batch_seconds": 2, "data.max_seconds": 1}
    return "speech/v2-tiny", str(folder / "data"), batch | {"objective.decoder.width": 16, "objective.masks_per_sample": 2}


def text(folder: Path) -> tuple[str, str, dict[str, Any]]:
    (folder / "data").mkdir()
    words = "what costs $5 & <b>more</b> is naïve, or 深い\n"
    (folder / "data" / "some.txt").write_text(words * 60, encoding="utf-8")
    return "text/v1-tiny", str(folder / "data"), BATCH | {"data.block_size": 24, "modality.vocab_size": 300}


def sensors(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """The modality of tests/helpers/sensor_modality.py."""
    np.save(folder / "readings.npy", np.random.default_rng(0).standard_normal((16, 160, 3)))
    (folder / "sensor.yaml").write_text(SENSOR, encoding="utf-8")
    return str(folder / "sensor.yaml"), str(folder / "readings.npy"), {}


MADE = {"images": images, "speech": speech, "text": text, "sensors": sensors}


@pytest.fixture(scope="session", params=MADE)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of three steps, with its page."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA2VEC_CACHE", str(folder / "cache"))
        recipe, data, settings = MADE[request.param](folder)
        return data2vec.pretrain(recipe, data, TINY | settings, folder / "run")
