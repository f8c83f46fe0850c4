"""Batches, the same ones whatever the number of processes and workers, from any step on.

Which examples form a group, how they are cropped and augmented, and what is masked follows from (seed, epoch, number of
the group) alone. So a place in the data is just a step number, and there is nothing else to store.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data2vec.data.bad import BadExamples
from data2vec.data.groups import EXAMPLE, MASK, ORDER, REPLACE, Group, cut, per_step, share
from data2vec.errors import BadExample, RunStopped, UserError
from data2vec.modalities.base import Batch, Examples, Modality


class Loader:
    """Endless steps of batches from `rows`: a `datasets.Dataset`, or an `IterableDataset` read in windows.

    `mask` has `draw(rows, grid, rng)`; `masks` of them are drawn for each example. `rank` of `world` processes gets its
    part of every step. `pin`: batches are put into page-locked memory. What cannot be read is in `bad`; `steps_per_epoch`
    is None when streaming.

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
    ):
        self.modality, self.mask, self.seed, self.rank, self.world, self.pin = modality, mask, seed, rank, world, pin
        self.masks = masks
        settings = modality.data
        self.workers: int = settings.workers
        self.groups_a_step = per_step(settings.batch, settings.micro_batch)
        self.micro_batch = settings.batch / self.groups_a_step
        self.bad = BadExamples(settings.max_bad)
        self.examples: Examples | None = None
        self.steps_per_epoch: int | None = None
        if not hasattr(rows, "__len__"):
            self.rows = rows.shuffle(seed=seed, buffer_size=settings.buffer)
            return
        self.examples = modality.examples(rows)
        bad = getattr(self.examples, "bad", [])
        self.bad.total = len(self.examples) + len(bad)
        self.bad.add(bad)
        groups = cut(self.examples.costs, self.micro_batch, np.random.default_rng((seed, 0, 0, ORDER)))
        self.steps_per_epoch = len(groups) // self.groups_a_step
        if not self.steps_per_epoch:
            raise UserError(_too_little(settings, self.examples))

    def steps(self, first: int = 0) -> Iterator[list[Batch]]:
        """The batches of each optimizer step from step `first` on, without end: `groups_a_step` of them over all
        processes. A batch is what the modality collates, with `mask`, `masked`, perhaps `view`, and `bad` (list of str)."""
        mine = self.groups_a_step // self.world if self.groups_a_step % self.world == 0 else self.groups_a_step
        workers: dict[str, Any] = {"prefetch_factor": 4, "worker_init_fn": _start} if self.workers else {}
        batches = iter(
            DataLoader(
                _Batches(self.modality, self.mask, self.masks, self.examples),
                batch_size=None,
                sampler=_Groups(self, first),
                num_workers=self.workers,
                pin_memory=self.pin,
                generator=torch.Generator(),  # else making the iterator would move the global random state
                **workers,
            )
        )
        try:
            while True:
                step = []
                for batch in islice(batches, mine):
                    if isinstance(batch, Exception):
                        raise batch
                    self.bad.add(batch["bad"])
                    step.append(batch)
                yield step
        finally:
            del batches  # ends the workers now, not when the traceback of an error is let go

    def groups(self, first: int) -> Iterator[Group]:
        """This process's groups from step `first` on."""
        everything = self._indexed(first) if self.examples is not None else self._streamed(first)
        for number, group in everything:
            mine = share(group.keys, self.groups_a_step, number, self.rank, self.world)
            if mine is not None:
                rows = group.examples.subset(group.keys) if group.examples is not None else None
                yield Group(group.keys, mine, group.limit, group.seed, rows)

    def _indexed(self, first: int) -> Iterator[tuple[int, Group]]:
        assert self.examples is not None
        assert self.steps_per_epoch
        costs = self.examples.costs
        start, skip = divmod(first, self.steps_per_epoch)
        for epoch in count(start):
            rng = np.random.default_rng((self.seed, epoch, 0, ORDER))
            groups = cut(costs, self.micro_batch, rng)[: self.steps_per_epoch * self.groups_a_step]
            for number in range(skip * self.groups_a_step, len(groups)):
                keys = groups[number]
                yield number, Group(keys, slice(None), float(costs[keys].min()), (self.seed, epoch, number))
            skip = 0

    def _streamed(self, first: int) -> Iterator[tuple[int, Group]]:
        """Each window of rows is planned like an epoch of its own; steps run on over the ends of windows."""
        total, used, last = 0, False, 0
        for window, (turn, size, examples) in enumerate(_ahead(self._windows())):
            self.bad.total += size
            self.bad.add(getattr(examples, "bad", []))
            if turn != last:
                if not used:
                    raise UserError("the streamed data has nothing to learn from: all is too short or cannot be read")
                used, last = False, turn
            rng = np.random.default_rng((self.seed, window, 0, ORDER))
            for number, keys in enumerate(cut(examples.costs, self.micro_batch, rng)):
                used = True
                if total >= first * self.groups_a_step:
                    limit = float(examples.costs[keys].min())
                    yield total, Group(keys, slice(None), limit, (self.seed, window, number), examples)
                total += 1

    def _windows(self) -> Iterator[tuple[int, int, Examples]]:
        """(pass over the data, rows read, examples) for every `buffer` rows, endlessly."""
        for turn in count():
            self.rows.set_epoch(turn)
            rows = iter(self.rows)
            window = list(islice(rows, self.modality.data.buffer))
            if not window:
                raise UserError("the streamed data has no rows")
            while window:
                yield turn, len(window), self.modality.examples(window)
                window = list(islice(rows, self.modality.data.buffer))


class _Groups(Sampler[Group]):
    def __init__(self, loader: Loader, first: int):
        self.loader, self.first = loader, first

    def __iter__(self) -> Iterator[Group]:
        return self.loader.groups(self.first)


class _Batches(Dataset[Any]):
    """In the worker: a group becomes a batch."""

    def __init__(self, modality: Modality, mask: Any, masks: int, examples: Examples | None):
        self.modality, self.mask, self.masks, self.examples = modality, mask, masks, examples

    def __getitem__(self, group: Group) -> Any:
        try:
            return self.build(group)
        except (UserError, RunStopped) as error:
            return error  # as a value: raised here, it would reach the user inside a worker's traceback

    def build(self, group: Group) -> dict[str, Any]:
        rows = range(len(group.keys))[group.mine]
        bad: list[str] = []
        batch = self.modality.collate([self._load(group, row, bad) for row in rows])
        rng = np.random.default_rng((*group.seed, MASK))
        drawn = self.mask.draw(len(group.keys) * self.masks, self.modality.grid(batch), rng)
        hidden = drawn.hidden.reshape(len(group.keys), self.masks, -1)[group.mine]
        mask = torch.from_numpy(np.ascontiguousarray(hidden)).flatten(0, 1)
        batch["mask"], batch["masked"] = mask, mask.flatten().nonzero().squeeze(1)
        if drawn.replaced is not None:
            batch["view"] = self._view(batch, drawn.replaced[group.mine], group.seed, rows)
        return {**batch, "bad": bad}

    def _load(self, group: Group, row: int, bad: list[str]) -> Any:
        """Row `row` of the group; when it cannot be read, the next one that can stands in for it."""
        examples = group.examples if group.examples is not None else self.examples
        assert examples is not None
        tried = set()
        for attempt, (key, index) in enumerate(self._candidates(group, row, examples)):
            rng = np.random.default_rng((*group.seed[:2], key, EXAMPLE, attempt))
            tried.add(index)
            try:
                return examples.load(index, group.limit, rng)
            except BadExample as error:
                bad.append(str(error))
        raise RunStopped(f"none of {len(tried)} examples in a row can be read: {'; '.join(dict.fromkeys(bad[-3:]))}")

    def _candidates(self, group: Group, row: int, examples: Examples) -> Iterator[tuple[int, int]]:
        """(key, index) of what is to be row `row`, then of what may stand in for it; only the first is needed as a rule."""
        size, streamed = len(group.keys), group.examples is not None
        for place in ((row + i) % size for i in range(size)):
            key = int(group.keys[place])
            yield key, place if streamed else key
        if size < 8 and not streamed:  # so few may all be bad: look further
            fitting = np.flatnonzero(examples.costs >= group.limit)
            for index in np.random.default_rng((*group.seed, EXAMPLE)).choice(fitting, 8).tolist():
                yield index, index

    def _view(self, batch: Batch, replaced: np.ndarray, seed: tuple[int, int, int], rows: range) -> Tensor:
        """Row by row, so that what a row shows does not depend on which process has it."""
        views = [
            self.modality.replace(
                {"input": batch["input"][i : i + 1]}, replaced[i : i + 1], np.random.default_rng((*seed, REPLACE, row))
            )
            for i, row in enumerate(rows)
        ]
        return torch.cat(views)


def _start(worker: int) -> None:
    # The training process handles Ctrl-C and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, the next one being made while this one is in use."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items)
        while True:
            item = coming.result()
            coming = thread.submit(next, items)
            yield item


def _too_little(settings: Any, examples: Examples) -> str:
    key = next((name for name in type(settings).model_fields if name.startswith("batch")), "batch")
    total = float(examples.costs.sum())
    unit = "seconds" if key.endswith("seconds") else "examples"
    return f"data.{key}: one step takes {settings.batch:g} {unit}, but the training data has {total:g}: lower it"
