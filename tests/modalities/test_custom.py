"""A fourth modality, made outside the package: readings of three sensors, cut into windows."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field

import data2vec
from data2vec.modalities.base import DataSettings, Examples, Features, Modality
from data2vec.nn.position_encoders import LearnedPositions, Positions
from data2vec.settings import Settings

# --- all that a modality is, from here ---


class SensorSettings(Settings):
    name: str = "sensor"
    window: Annotated[int, Field(gt=0)] = 8


class SensorData(DataSettings):
    batch = property(lambda self: 16.0)
    micro_batch = property(lambda self: 16.0)


class Windows(Features):
    def __init__(self, window: int, width: int):
        super().__init__()
        self.project = torch.nn.Linear(3 * window, width)
        self.mask_vector = torch.nn.Parameter(torch.randn(width))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        return self.project(batch["input"].flatten(2)), None

    def hide(self, x: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.where(batch["mask"][..., None], self.mask_vector, x)


class Readings:
    def __init__(self, array: np.ndarray):
        self.array, self.costs = array, np.ones(len(array))

    def __len__(self) -> int:
        return len(self.array)

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> np.ndarray:
        return self.array[index]

    def label(self, index: int, column: str) -> Any:
        return int(self.array[index, 0].mean() > 0)


class Sensor(Modality):
    Settings, Data = SensorSettings, SensorData

    def features(self, width: int) -> Windows:
        return Windows(self.settings.window, width)

    def positions(self, width: int, heads: int, extra_tokens: int) -> Positions:
        return LearnedPositions(width, 32)

    def grid(self, batch: dict[str, torch.Tensor]) -> tuple[int, ...]:
        return (batch["input"].shape[1],)

    def rows(self, where: str) -> np.ndarray:
        return np.load(where)

    def examples(self, rows: np.ndarray) -> Examples:
        return Readings(rows.reshape(len(rows), -1, self.settings.window, 3))

    def collate(self, items: Any) -> dict[str, torch.Tensor]:
        return {"input": torch.from_numpy(np.stack(items)).float()}


# --- to here ---


def test_it_trains_without_touching_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    rng = np.random.default_rng(0)
    phase = rng.random((64, 1, 3)) * 6
    np.save(tmp_path / "readings.npy", np.sin(np.arange(160)[:, None] / 5 + phase) + 0.1 * rng.standard_normal((64, 160, 3)))
    recipe = tmp_path / "sensor.yaml"
    recipe.write_text(
        "modality: {name: 'test_own:Sensor', window: 8}\n"
        "encoder: {width: 32, layers: 3, heads: 4, ffn_width: 64, input_norm: false, dropout: 0, attention_dropout: 0}\n"
        "objective: {name: data2vec, mask: {kind: span, prob: 0.5, length: 3}, target: {top_k: 2, layer_norms: [layer]}}\n"
        "data: {workers: 0}\ntrain: {steps: 30, lr: 5e-3}\nlog: {every: 10}\n"
    )
    run = data2vec.pretrain(recipe, data=str(tmp_path / "readings.npy"), out=tmp_path / "run")
    first, *_, last = run.metrics
    assert last["step"] == 30 and last["samples"] == 30 * 16
    assert last["loss"] < first["loss"] or last["prediction_std"] > first["prediction_std"]
    model = data2vec.load(tmp_path / "run")
    assert model.encoder({"input": torch.zeros(2, 20, 8, 3)})[0].shape == (2, 20, 32)
