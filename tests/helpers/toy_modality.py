"""A toy modality: vectors of some length, so that every batch can be told apart by hand."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from data2vec.batch import Batch
from data2vec.data.dataset import DataSettings, ExampleDataset
from data2vec.data.loader import Loader
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.base import Modality


class ToyData(DataSettings):
    batch_size: int = 24
    micro_batch_size: int = 6

    @property
    def batch(self):
        return self.batch_size

    @property
    def micro_batch(self):
        return self.micro_batch_size


class ToyExamples(ExampleDataset):
    def __init__(self, rows):
        self.corrupt = [f"row {row['id']}: no header" for row in rows if row["broken"] == "header"]
        self.rows = [row for row in rows if row["broken"] != "header"]
        self.costs = np.array([row["cost"] for row in self.rows], dtype=np.float64)

    def load(self, index, limit=None, rng=None):
        row = self.rows[int(index)]
        if row["broken"] == "bad":
            raise CorruptExample(f"row {row['id']}: broken")
        if row["broken"] == "wrong":
            raise UserError("data.size: wrong, make it right")
        return torch.tensor([row["id"], rng.random(), limit, *rng.random(5)], dtype=torch.float64)


class Toy(Modality):
    Settings = DataSettings
    Data = ToyData
    features = positions = None  # type: ignore[assignment]

    def grid(self, batch):
        return (batch.input.shape[1],)

    def examples(self, rows: Any) -> Any:
        return ToyExamples(rows)

    def collate(self, items: Sequence[Any]):
        return Batch(torch.stack(list(items)))

    def replace(self, batch, replaced, rng):
        return torch.where(torch.from_numpy(replaced), torch.from_numpy(rng.random(replaced.shape)), batch.input)


Toy.__abstractmethods__ = frozenset()


class Mask:
    def draw(self, rows, grid, rng):
        drawn = rng.random((rows, *grid))
        return SimpleNamespace(masked=drawn < 0.4, replaced=drawn > 0.8, predicted=drawn < 0.4)


def rows(n=60, costs=None, broken=()):
    costs = [1.0] * n if costs is None else list(costs)
    return Dataset.from_list([{"id": i, "cost": costs[i], "broken": dict(broken).get(i, "")} for i in range(n)])


def loader(data, rank=0, world=1, seed=3, **settings):
    return Loader(Toy(None, ToyData(**{"workers": 0, **settings})), Mask(), data, seed, rank, world)


def take(loader, first, number, places=None):
    steps = loader.steps(first, places)
    taken = [next(steps) for _ in range(number)]
    steps.close()
    return taken


def line(batch, i):
    return tuple(torch.cat([x[i].double() for x in (batch.input, batch.mask, batch.student_input)]).tolist())


def content(steps):
    """For each step what its rows are, whoever loaded them: identity, crop, augmentation, mask and view."""
    return [sorted(line(batch, i) for batch in step for i in range(len(batch))) for step in steps]
