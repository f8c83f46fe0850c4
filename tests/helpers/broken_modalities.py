"""Modalities that break the contract, each in one way; and two that keep it in ways that Sensor does not use."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from data2vec.batch import Batch
from data2vec.data.dataset import DataSettings, ExampleDataset
from data2vec.modalities.chunking import Chunk
from data2vec.nn.position_encoders import PositionEncoder
from helpers.sensor_modality import Readings, Sensor, SensorData, Windows


class PaddedWindows(Windows):
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        return super().forward(batch)[0], batch.padding


class UnevenReadings(Readings):
    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> np.ndarray:
        return self.array[index][: 10 if limit is not None else 10 + index % 10]


class Padded(Sensor):
    """Keeps the contract: inputs of different lengths in one batch."""

    supports_padding = True
    local_encoder: type[Windows] = PaddedWindows

    def build_local_encoder(self, width: int) -> Windows:
        return self.local_encoder(self.settings.window, width)

    def examples(self, rows: np.ndarray) -> ExampleDataset:
        return UnevenReadings(rows.reshape(len(rows), -1, self.settings.window, 3))

    def collate(self, items: Any) -> Batch:
        batch = Batch.stack([torch.from_numpy(item).float().flatten(1) for item in items])
        return Batch(batch.input.unflatten(2, (self.settings.window, 3)), batch.padding)


class Streamed(Sensor):
    """Keeps the contract: its data may be streamed."""

    def rows(self, where: str) -> Any:
        readings = np.load(where)
        rows = datasets.Dataset.from_dict({"readings": readings.reshape(len(readings), -1).tolist()})
        return rows.to_iterable_dataset(num_shards=4) if self.data.streaming else rows

    def order(self, rows: int) -> np.ndarray:
        return np.arange(rows)

    def examples(self, rows: Any) -> ExampleDataset:
        array = np.array([row["readings"] for row in rows], np.float32)
        return super().examples(array[self.order(len(array))])


class UnstableStream(Streamed):
    def order(self, rows: int) -> np.ndarray:
        return np.random.default_rng().permutation(rows) if self.data.streaming else np.arange(rows)


class BatchlessData(DataSettings):
    pass


class WithoutBatch(Sensor):
    Data = BatchlessData


class ReadingsWith(Sensor):
    """Sensor with another class of examples."""

    readings: type[Readings]

    def examples(self, rows: np.ndarray) -> ExampleDataset:
        return self.readings(rows.reshape(len(rows), -1, self.settings.window, 3))


class FreeReadings(Readings):
    def __init__(self, array: np.ndarray):
        super().__init__(array)
        self.costs = np.zeros(len(array))


class WithoutCosts(ReadingsWith):
    readings = FreeReadings


class NoisyReadings(Readings):
    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> np.ndarray:
        return self.array[index] + np.random.standard_normal() * (rng is not None)


class GlobalRandomness(ReadingsWith):
    readings = NoisyReadings


class LocalReadings(Readings):
    def __init__(self, array: np.ndarray):
        super().__init__(array)
        self.scale = lambda x: 2 * x


class WithoutPickle(ReadingsWith):
    readings = LocalReadings


class HoardedReadings(Readings):
    def __init__(self, array: np.ndarray):
        super().__init__(array)
        self.loaded: list[np.ndarray] = []

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> np.ndarray:
        self.loaded.append(self.array[index].astype(np.float64))
        return self.array[index]


class Hoarder(ReadingsWith):
    readings = HoardedReadings


class Reversed(Sensor):
    def collate(self, items: Any) -> Batch:
        return super().collate(items[::-1])


class FractionalGrid(Sensor):
    def grid(self, batch: Batch) -> tuple[int, ...]:
        return (batch.input.shape[1] / 1,)  # type: ignore[return-value]


class WrongGrid(Sensor):
    def grid(self, batch: Batch) -> tuple[int, ...]:
        return (batch.input.shape[1] + 1,)


class EncodedWith(Sensor):
    """Sensor with another local encoder."""

    local_encoder: type[Windows]

    def build_local_encoder(self, width: int) -> Windows:
        return self.local_encoder(self.settings.window, width)


class CentredOverBatch(Windows):
    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        x, _ = super().forward(batch)
        return x - x.mean(0), None


class MixedRows(EncodedWith):
    local_encoder = CentredOverBatch


class Attenuated(Windows):
    def apply_mask(self, x: Tensor, mask: Tensor, student_input: Tensor) -> Tensor:
        return torch.where(mask[..., None], 0.1 * x, x)


class LeakyMask(EncodedWith):
    local_encoder = Attenuated


class MeanPositions(PositionEncoder):
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x + x.mean(1, keepdim=True)


class LeakyPositions(Sensor):
    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        return MeanPositions()


class SamePositions(PositionEncoder):
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x


class WithoutPositions(Sensor):
    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        return SamePositions()


class UnmarkedPadding(Padded):
    def collate(self, items: Any) -> Batch:
        return Batch(super().collate(items).input)


class CentredOverPositions(PaddedWindows):
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        x, padding = super().forward(batch)
        return x - x.mean(1, keepdim=True), padding


class LeakyPadding(Padded):
    local_encoder = CentredOverPositions


class ForgetfulChunks(Sensor):
    def chunks(self, batch: Batch) -> Sequence[Chunk] | None:
        return [Chunk(slice(0, 10), 0, slice(0, 10)), Chunk(slice(10, 20), 10, slice(1, 10))]


class WrongInputWidth(Sensor):
    input_width = 5


class WithoutLabels(ReadingsWith):
    class readings(Readings):
        def label(self, index: int, column: str) -> Any:
            return None


class SpareWeight(Windows):
    def __init__(self, window: int, width: int):
        super().__init__(window, width)
        self.spare = torch.nn.Linear(1, 1)


class UnusedWeight(EncodedWith):
    local_encoder = SpareWeight


class CountedWindows(Windows):
    calls = 0

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        self.calls += self.training
        return (1 + 0.1 * self.calls) * super().forward(batch)[0], None


class HiddenState(EncodedWith):
    local_encoder = CountedWindows


class UnsavedWindows(Windows):
    def __init__(self, window: int, width: int):
        super().__init__(window, width)
        self.scale = torch.rand(1)  # neither a parameter nor a buffer

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        return (1 + float(self.scale)) * super().forward(batch)[0], None


class UnsavedTensor(EncodedWith):
    local_encoder = UnsavedWindows


class ScaledData(SensorData):
    scale: str = __file__


class UnsavedFile(Sensor):
    Data = ScaledData


BROKEN: dict[type[Sensor], str] = {
    WithoutBatch: "settings",
    WithoutCosts: "data",
    GlobalRandomness: "load",
    WithoutPickle: "workers",
    Hoarder: "memory",
    Reversed: "collate",
    FractionalGrid: "batches",
    WrongGrid: "shapes",
    MixedRows: "rows",
    LeakyMask: "masks",
    LeakyPositions: "visible",
    WithoutPositions: "positions",
    UnmarkedPadding: "padding",
    LeakyPadding: "padding",
    ForgetfulChunks: "chunks",
    WrongInputWidth: "input features",
    WithoutLabels: "labels",
    UnusedWeight: "step",
    UnstableStream: "streams",
    HiddenState: "resume",
    UnsavedTensor: "saved model",
    UnsavedFile: "saved model",
}
"""The check that each fails."""
