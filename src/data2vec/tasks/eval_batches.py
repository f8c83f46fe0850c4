"""One pass over labelled examples for evaluation, in batches of similar length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data2vec.batch import Batch
from data2vec.console.progress import progress
from data2vec.data.bucketing import split_sorted
from data2vec.data.corrupt import load_example
from data2vec.data.dataset import ExampleDataset
from data2vec.data.loader import init_worker
from data2vec.distributed import Process
from data2vec.errors import CorruptExample, get_logger
from data2vec.feature_extraction import collate_by_length, max_positions
from data2vec.modalities.base import Modality

log = get_logger(__name__)

Output = tuple[int, Any]
"""(row, what is computed of this example); rows are counted from 0 in the labelled examples."""
Compute = Callable[[Batch], Sequence[Any]]
"""What is computed of each row of a batch on the device."""
LoadedGroup = tuple[list[tuple[np.ndarray, Batch]], list[str]]
"""The batches of a group, each with its rows, and the errors of the examples that cannot be decoded."""


@dataclass(frozen=True)
class EvalPass:
    """The labelled examples, those at `indices` (n,) of `examples`, as a pass reads them: from the longest to the shortest."""

    modality: Modality
    examples: ExampleDataset
    indices: np.ndarray
    device: torch.device

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def _costs(self) -> np.ndarray:
        return self.examples.costs[self.indices]

    @cached_property
    def _order(self) -> np.ndarray:
        """(n,) the rows from the longest to the shortest."""
        return np.argsort(-self._costs, kind="stable")

    def groups(self, places: range | None = None) -> list[np.ndarray]:
        """The rows at these places of the order, by default all, in groups of at most a micro-batch."""
        order = self._order if places is None else self._order[places.start : places.stop]
        return split_sorted(order, self._costs, self.modality.data.micro_batch)

    def batches(self, groups: Sequence[np.ndarray]) -> Iterator[list[tuple[np.ndarray, Batch]]]:
        """The batches of each group on the device, each with its rows. Examples that cannot be decoded are logged."""
        loader: DataLoader[LoadedGroup] = DataLoader(
            _GroupDataset(self.modality, self.examples, self.indices, max_positions(self.device)),
            batch_size=None,
            sampler=groups,
            num_workers=self.modality.data.num_workers,
            worker_init_fn=init_worker,
            generator=torch.Generator(),  # else creating the iterator would advance the global random state
        )
        for batches, corrupt in loader:
            for name in corrupt:
                log.warning("left out: %s", name)
            yield [(rows, batch.to(self.device)) for rows, batch in batches]

    def outputs(self, compute: Compute, groups: Sequence[np.ndarray]) -> Iterator[list[Output]]:
        """The outputs of each group."""
        for batches in self.batches(groups):
            yield [output for rows, batch in batches for output in zip(rows.tolist(), compute(batch), strict=True)]


def gather_outputs(reading: EvalPass, compute: Compute, process: Process, desc: str) -> list[Output]:
    """The outputs of all examples that can be decoded, in the order of their rows, in every process: they share the groups.
    `desc`: label of the progress bar."""
    groups = reading.groups()[process.rank :: process.world_size]
    hidden = not process.is_main_process
    parts = progress(reading.outputs(compute, groups), desc, len(groups), "batch", hidden=hidden)
    return sorted(process.all_gather([output for part in parts for output in part]), key=lambda output: output[0])


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
