"""Examples read once, in batches of like length, by as many processes as there are."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data2vec.batch import Batch
from data2vec.data.bucketing import sort_by_length
from data2vec.data.dataset import ExampleDataset
from data2vec.data.loader import init_worker
from data2vec.distributed import Process
from data2vec.errors import CorruptExample
from data2vec.feature_extraction import batches, max_positions
from data2vec.modalities.base import Modality

log = logging.getLogger(__name__)


def read_batches(
    modality: Modality, examples: ExampleDataset, indices: np.ndarray, process: Process, desc: str
) -> Iterator[tuple[np.ndarray, Batch]]:
    """This process's share of the examples at `indices`, in batches on the device, each with the places of its rows in
    `indices`. Examples that cannot be decoded are logged. `desc`: label of the progress bar."""
    from tqdm import tqdm

    groups = sort_by_length(examples.costs[indices], modality.data.micro_batch)[process.rank :: process.world_size]
    loader: Any = DataLoader(
        _Loaded(modality, examples, indices, max_positions(process.device)),
        batch_size=None,
        sampler=groups,
        num_workers=modality.data.workers,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else making the iterator would move the global random state
    )
    quiet = None if process.is_main_process else True
    for parts, corrupt in tqdm(loader, desc, len(groups), unit="batch", leave=False, disable=quiet):
        for name in corrupt:
            log.warning("left out: %s", name)
        for places, batch in parts:
            yield places, batch.to(process.device)


class _Loaded(Dataset[Any]):
    """In the worker: places become batches, with the places of their rows; and names of what is corrupt."""

    def __init__(self, modality: Modality, examples: ExampleDataset, indices: np.ndarray, most: int):
        self.modality, self.most, self.examples, self.indices = modality, most, examples, indices

    def __getitem__(self, places: np.ndarray) -> tuple[list[tuple[np.ndarray, Batch]], list[str]]:
        items: dict[int, Any] = {}
        corrupt = []
        for place in places:
            try:
                items[place] = self.examples.load(int(self.indices[place]), None, None)
            except CorruptExample as error:
                corrupt.append(str(error))
        keys = np.array(list(items), np.int64)
        return [(keys[rows], batch) for rows, batch in batches(self.modality, list(items.values()), self.most)], corrupt
