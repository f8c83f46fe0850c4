"""From groups to batches: decoded, masked and put together, in the loader's workers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from data2vec.batch import Batch, MaskedBatch
from data2vec.data.bucketing import EXAMPLE, MASK, REPLACE, Group, share, stride
from data2vec.data.streaming import Streams
from data2vec.errors import BadExample, RunStopped, UserError
from data2vec.modalities.base import Examples, Modality


class LoadedBatch(NamedTuple):
    """A batch, and what the training process is to know of how it was made."""

    batch: Batch
    corrupt: list[str]
    """Names of what could not be read."""
    place: tuple[str, list[int]] | None
    """With streaming: the stream, and where its window starts."""


class Batches(Dataset[Any]):
    """The batch of a group; or the error that the user is to see, as a value: raised in a worker, it would be a traceback."""

    def __init__(self, modality: Modality, mask: Any, masks: int, examples: Examples | None):
        self.modality, self.mask, self.masks, self.examples = modality, mask, masks, examples

    def __getitem__(self, group: Group) -> Any:
        try:
            return self.build(group)
        except (UserError, RunStopped) as error:
            return error

    def build(self, group: Group) -> LoadedBatch:
        rows = range(len(group.keys))[group.mine]
        bad: list[str] = []
        batch = self.modality.collate([self._load(group, row, bad)[1] for row in rows])
        rng = np.random.default_rng((*group.seed, MASK))
        drawn = self.mask.draw(len(group.keys) * self.masks, self.modality.grid(batch), rng)
        hidden = drawn.hidden.reshape(len(group.keys), self.masks, -1)[group.mine]
        mask = torch.from_numpy(np.ascontiguousarray(hidden)).flatten(0, 1)
        indices = torch.from_numpy(np.flatnonzero(hidden))
        view = None if drawn.replaced is None else self._view(batch, drawn.replaced[group.mine], group.seed, rows)
        batch = MaskedBatch(batch.input, batch.padding, mask=mask, masked_indices=indices, replaced_input=view)
        return LoadedBatch(batch, [*group.bad, *bad], group.place)

    def _load(self, group: Group, row: int, bad: list[str], whole: bool = False) -> tuple[int, Any]:
        """Row `row` of the group, cropped to the group's length or `whole`, after the index of the example: when it cannot be
        read, the next one that can stands in for it."""
        examples = group.examples if group.examples is not None else self.examples
        assert examples is not None
        for attempt, key in enumerate(_candidates(group, row, examples.costs)):
            rng = np.random.default_rng((*group.seed[:2], key, EXAMPLE, attempt))
            try:
                return key, examples.load(key, None if whole else group.limit, rng)
            except BadExample as error:
                bad.append(str(error))
        names = list(dict.fromkeys(bad))
        raise RunStopped(f"none of {len(names)} examples in a row can be read: {'; '.join(names[-3:])}")

    def _view(self, batch: Batch, replaced: np.ndarray, seed: tuple[int, int, int], rows: range) -> Tensor:
        """Row by row, so that what a row shows does not depend on which process has it."""
        views = [
            self.modality.replace(batch.rows(i, i + 1), replaced[i : i + 1], np.random.default_rng((*seed, REPLACE, row)))
            for i, row in enumerate(rows)
        ]
        return torch.cat(views)


def _candidates(group: Group, row: int, costs: np.ndarray) -> Iterator[int]:
    """The row itself, the others of its group, then some that are as long."""
    yield from map(int, np.roll(group.keys, -row))
    fitting = np.flatnonzero(costs >= group.limit)
    yield from map(int, np.random.default_rng((*group.seed, EXAMPLE)).choice(fitting, 8))


class StreamedBatches(IterableDataset[Any]):
    """The batches of process `rank` of `world` from step `first` on: worker `w` of `W` makes each W-th of them, and the
    DataLoader, which asks one worker after the other, puts them in order again."""

    def __init__(
        self,
        batches: Batches,
        streams: Streams,
        groups_a_step: int,
        rank: int,
        world: int,
        first: int,
        places: Mapping[str, list[int]],
    ):
        self.batches, self.streams, self.groups_a_step = batches, streams, groups_a_step
        self.rank, self.world, self.first, self.places = rank, world, first, places

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        every = stride(self.groups_a_step, self.world)
        numbers = count(self.first * self.groups_a_step + self.rank % every + every * worker, every * workers)
        try:
            for number, group in self.streams.groups(numbers, self.places):
                mine = share(group.keys, self.groups_a_step, number, self.rank, self.world)
                assert mine is not None
                yield self.batches[replace(group, mine=mine)]
        except (UserError, RunStopped) as error:
            yield error
