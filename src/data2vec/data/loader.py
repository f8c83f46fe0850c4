"""Batches, the same ones whatever the number of processes and workers, from any step on.

Which examples form a group, how they are cropped and augmented, and what is masked follows from the seed and the number of
the group alone. So a place in indexed data is just a step number; in streamed data it is also where the streams stand.
"""

import logging
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data2vec.batch import Batch
from data2vec.data.bucketing import ORDER, Group, cut, per_step, share, stride
from data2vec.data.corrupt import BadExamples
from data2vec.data.masked_batches import Batches, StreamedBatches
from data2vec.data.streaming import Streams, rows_read
from data2vec.errors import UserError
from data2vec.modalities.base import Examples, Modality

log = logging.getLogger(__name__)


class Loader:
    """Endless steps of batches from `rows`: a `datasets.Dataset`, or an `IterableDataset` read in windows.

    `mask` has `draw(rows, grid, rng)`; `masks` of them are drawn for each example. `batches`: what makes a batch of a group, in
    place of masking it. `rank` of `world` processes gets its part of every step. `pin`: batches are put into page-locked
    memory. What cannot be read is in `bad`; `steps_per_epoch` is None when streaming.

    Raises UserError when the data is less than one step, RunStopped when too many examples cannot be read."""

    def __init__(
        self,
        modality: Modality,
        mask: Any,
        rows: Any,
        seed: int,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
        masks: int = 1,
        batches: Batches | None = None,
    ):
        self.modality, self.seed, self.rank, self.world, self.pin = modality, seed, rank, world, pin
        settings = modality.data
        self.workers: int = settings.workers
        self.groups_a_step = per_step(settings.batch, settings.micro_batch)
        self.micro_batch = settings.batch / self.groups_a_step
        self.bad = BadExamples(settings.max_bad)
        self.places: dict[str, list[int]] = {}
        """Where this process stands in each stream after the last step it took, fit for JSON; empty for indexed data."""
        self.examples: Examples | None = None
        self.streams: Streams | None = None
        self.steps_per_epoch: int | None = None
        if hasattr(rows, "__len__"):
            self.examples = modality.examples(rows) if batches is None else batches.examples
            assert self.examples is not None
            self._index(self.examples)
        else:
            self.streams = Streams(modality, rows, seed, self.micro_batch)
            self.workers = self.streams.workers(settings.workers, stride(self.groups_a_step, world))
            if self.workers < settings.workers and rank == 0:
                log.warning(
                    "data.workers: only %d of %d are used, as they share %d streams evenly; data.streams should be a "
                    "multiple of processes times workers, and there must be as many shards",
                    *(self.workers, settings.workers, self.streams.count),
                )
        self.batches = batches or Batches(modality, mask, masks, self.examples)

    def _index(self, examples: Examples) -> None:
        bad = getattr(examples, "bad", [])
        self.bad = BadExamples(self.modality.data.max_bad, len(examples) + len(bad))
        self.bad.add(bad)
        groups = cut(examples.costs, self.micro_batch, np.random.default_rng((self.seed, 0, 0, ORDER)))
        self.steps_per_epoch = len(groups) // self.groups_a_step
        if not self.steps_per_epoch:
            raise UserError(_too_little(self.modality.data, examples))

    def steps(self, first: int = 0, places: Mapping[str, list[int]] | None = None) -> Iterator[list[Batch]]:
        """The batches of each optimizer step from step `first` on, without end: `groups_a_step` of them over all
        processes. A batch is what the modality collates, with its masks.

        `places`: those of all processes at step `first` or before, by `furthest`; without them streams are read from their
        start. Raises UserError when streamed data is not what it was."""
        self.places = dict(places or {})
        if self.streams is not None:
            self.bad.total = rows_read(self.places)
        mine = self.groups_a_step // stride(self.groups_a_step, self.world)
        workers: dict[str, Any] = {"prefetch_factor": 4, "worker_init_fn": start_worker} if self.workers else {}
        dataset: Any = self.batches
        if self.streams is not None:
            part = self.groups_a_step, self.rank, self.world
            dataset = StreamedBatches(self.batches, self.streams, *part, first, self.places.copy())
        batches = iter(
            DataLoader(
                dataset,
                batch_size=None,
                sampler=_Groups(self, first) if self.streams is None else None,
                num_workers=self.workers,
                pin_memory=self.pin,
                generator=torch.Generator(),  # else making the iterator would move the global random state
                **workers,
            )
        )
        try:
            while True:
                step = []
                for loaded in islice(batches, mine):
                    if isinstance(loaded, Exception):
                        raise loaded
                    if loaded.place:
                        self._reached(*loaded.place)
                    self.bad.add(loaded.corrupt)
                    step.append(loaded.batch)
                yield step
        finally:
            del batches  # ends the workers now, not when the traceback of an error is let go

    def _reached(self, stream: str, place: list[int]) -> None:
        before = rows_read(self.places)
        self.places[stream] = place
        self.bad.total += rows_read(self.places) - before

    def tell(self, bad: Iterable[str], places: Mapping[str, list[int]]) -> None:
        """Take note of what all processes have met: names of bad examples, and the furthest places.

        Raises RunStopped when there are too many of them."""
        if places:
            self.bad.total = rows_read(places)
        self.bad.add(bad)

    def groups(self, first: int) -> Iterator[Group]:
        """This process's groups of indexed data from step `first` on."""
        assert self.examples is not None
        assert self.steps_per_epoch
        costs = self.examples.costs
        start, skip = divmod(first, self.steps_per_epoch)
        for epoch in count(start):
            rng = np.random.default_rng((self.seed, epoch, 0, ORDER))
            groups = cut(costs, self.micro_batch, rng)[: self.steps_per_epoch * self.groups_a_step]
            for number in range(skip * self.groups_a_step, len(groups)):
                keys = groups[number]
                mine = share(keys, self.groups_a_step, number, self.rank, self.world)
                if mine is not None:
                    yield Group(keys, mine, float(costs[keys].min()), (self.seed, epoch, number))
            skip = 0


class _Groups(Sampler[Group]):
    def __init__(self, loader: Loader, first: int):
        self.loader, self.first = loader, first

    def __iter__(self) -> Iterator[Group]:
        return self.loader.groups(self.first)


def start_worker(worker: int) -> None:
    """What every process that loads examples begins with."""
    # The training process handles Ctrl-C and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Threads of the tokenizers library do not survive the fork: a worker that waited for them would wait for ever.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _too_little(settings: Any, examples: Examples) -> str:
    key = next((name for name in type(settings).model_fields if name.startswith("batch")), "batch")
    total = float(examples.costs.sum())
    unit = "seconds" if key.endswith("seconds") else "examples"
    return f"data.{key}: one step takes {settings.batch:g} {unit}, but the training data has {total:g}: lower it"
