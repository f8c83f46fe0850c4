"""A fourth modality, defined outside the package: readings of three sensors, cut into windows."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from data2vec.batch import Batch
from data2vec.data.dataset import DataSettings, ExampleDataset
from data2vec.modalities.base import LocalEncoder, Modality, ModalitySettings
from data2vec.nn.position_encoders import LearnedPositionEncoder, PositionEncoder


class SensorSettings(ModalitySettings):
    name: str = "sensor"
    window: Annotated[int, Field(gt=0)] = 8


class SensorData(DataSettings):
    batch = property(lambda self: 16.0)
    micro_batch = property(lambda self: 16.0)


class Windows(LocalEncoder):
    def __init__(self, window: int, width: int):
        super().__init__()
        self.project = torch.nn.Linear(3 * window, width)
        self.mask_vector = torch.nn.Parameter(torch.randn(width))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, None]:
        return self.project(batch.input.flatten(2)), None

    def apply_mask(self, x: torch.Tensor, mask: torch.Tensor, student_input: torch.Tensor) -> torch.Tensor:
        return torch.where(mask[..., None], self.mask_vector, x)


class Readings(ExampleDataset):
    def __init__(self, array: np.ndarray):
        self.array, self.costs = array, np.ones(len(array))

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> np.ndarray:
        return self.array[index]

    def label(self, index: int, column: str) -> Any:
        return int(self.array[index, 0].mean() > 0)


class Sensor(Modality):
    Settings, Data = SensorSettings, SensorData
    settings: SensorSettings

    def build_local_encoder(self, width: int) -> Windows:
        return Windows(self.settings.window, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        return LearnedPositionEncoder(width, 32)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return (batch.input.shape[1],)

    def rows(self, where: str) -> np.ndarray:
        return np.load(where)

    def examples(self, rows: np.ndarray) -> ExampleDataset:
        return Readings(rows.reshape(len(rows), -1, self.settings.window, 3))

    def collate(self, items: Any) -> Batch:
        return Batch(torch.from_numpy(np.stack(items)).float())
