"""One pass over labelled examples for evaluation, in batches of similar length, divided among the processes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data2vec.batch import Batch
from data2vec.console.progress import progress
from data2vec.data.bucketing import sort_by_length
from data2vec.data.corrupt import load_example
from data2vec.data.dataset import ExampleDataset
from data2vec.data.loader import init_worker
from data2vec.distributed import Process
from data2vec.errors import CorruptExample, get_logger
from data2vec.feature_extraction import collate_by_length, max_positions
from data2vec.modalities.base import Modality

log = get_logger(__name__)

LoadedGroup = tuple[list[tuple[np.ndarray, Batch]], list[str]]
"""The batches of a group, each with its rows, and the errors of the examples that cannot be decoded."""


def read_batches(
    modality: Modality, examples: ExampleDataset, indices: np.ndarray, process: Process, desc: str
) -> Iterator[tuple[np.ndarray, Batch]]:
    """This process's share of the examples at `indices`, in batches on the device, each with the positions of its rows in
    `indices`. Examples that cannot be decoded are logged. `desc`: label of the progress bar."""
    groups = sort_by_length(examples.costs[indices], modality.data.micro_batch)[process.rank :: process.world_size]
    loader: DataLoader[LoadedGroup] = DataLoader(
        _GroupDataset(modality, examples, indices, max_positions(process.device)),
        batch_size=None,
        sampler=groups,
        num_workers=modality.data.num_workers,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else creating the iterator would advance the global random state
    )
    hidden = not process.is_main_process
    for batches, corrupt in progress(loader, desc, len(groups), "batch", hidden=hidden):
        for name in corrupt:
            log.warning("left out: %s", name)
        for rows, batch in batches:
            yield rows, batch.to(process.device)


class _GroupDataset(Dataset[LoadedGroup]):
    """Decodes a group of examples in a worker and collates them to batches."""

    def __init__(self, modality: Modality, examples: ExampleDataset, indices: np.ndarray, max_positions: int):
        self.modality, self.examples, self.indices, self.max_positions = modality, examples, indices, max_positions

    def __getitem__(self, group: np.ndarray) -> LoadedGroup:
        items: dict[int, Any] = {}
        corrupt = []
        for row in group:
            try:
                items[row] = load_example(self.examples, int(self.indices[row]), None, None)
            except CorruptExample as error:
                corrupt.append(str(error))
        decoded = np.array(list(items), np.int64)
        batches = collate_by_length(self.modality, list(items.values()), self.max_positions)
        return [(decoded[rows], batch) for rows, batch in batches], corrupt
