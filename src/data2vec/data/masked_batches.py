"""Micro-batches of indices become batches: divided among processes, decoded, collated and masked, in the loader's workers."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from math import ceil
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from data2vec.batch import Batch, MaskedBatch
from data2vec.data.bucketing import EXAMPLE, MASK, REPLACE, MicroBatch
from data2vec.data.corrupt import load_example
from data2vec.data.dataset import DataPipeline, ExampleDataset
from data2vec.data.streaming import Streams
from data2vec.errors import CorruptExample, RunStopped, UserError


def micro_batches_per_step(batch: float, micro_batch: float) -> int:
    """Micro-batches of an optimizer step, over all processes."""
    return max(1, ceil(batch / micro_batch - 1e-6))


def rank_stride(per_step: int, world: int) -> int:
    """The distance between the micro-batches of one process; 1 where every process loads a part of every micro-batch."""
    return world if per_step % world == 0 else 1


def rank_slice(indices: np.ndarray, per_step: int, number: int, rank: int, world: int) -> slice | None:
    """The rows of micro-batch `number` that process `rank` of `world` loads; None when another process loads all of it.

    Complete micro-batches where a step's `per_step` micro-batches can be divided evenly, else a part of every one."""
    if rank_stride(per_step, world) == world:
        return slice(None) if number % world == rank else None
    if len(indices) < world:
        raise UserError(
            f"a micro-batch of {len(indices)} examples cannot be divided among {world} processes: use fewer processes, "
            "or make the batch in the data section a multiple of processes × micro-batch"
        )
    return slice(rank, None, world)


class LoadedBatch(NamedTuple):
    """A batch, and what the training process needs to know about how it was made."""

    batch: Batch
    corrupt: list[str]
    """ "name: reason" of the examples that could not be decoded."""
    stream_state: tuple[str, list[int]] | None
    """With streaming: the stream, and the state at the start of its window."""
    seconds: float = 0.0
    """What reading, decoding, collating and masking took, in one process."""


Loaded = LoadedBatch | UserError | RunStopped
"""A batch, or an error as a value: raised in a worker, it would reach the user as a traceback."""


class DrawnMask(Protocol):
    """Masks for R rows of T positions (`data2vec.objective.masking.Mask`)."""

    @property
    def masked(self) -> np.ndarray:
        """(R, T): masked in the student's input."""

    @property
    def replaced(self) -> np.ndarray | None:
        """(R, T): replaced with random content for the student; None when nothing is."""

    @property
    def predicted(self) -> np.ndarray:
        """(R, T): predicted."""


class MaskSettings(Protocol):
    """Draws masks (a member of `data2vec.objective.masking`)."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> DrawnMask:
        """Masks for `rows` rows of prod(grid) positions."""


class BatchDataset(Dataset[Loaded], ABC):
    """Maps micro-batches to batches of decoded examples."""

    def __init__(self, modality: DataPipeline, examples: ExampleDataset | None):
        self.modality, self.examples = modality, examples

    def __getitem__(self, micro_batch: MicroBatch) -> Loaded:
        begin = time.perf_counter()
        try:
            return self.build(micro_batch)._replace(seconds=time.perf_counter() - begin)
        except (UserError, RunStopped) as error:
            return error

    @abstractmethod
    def build(self, micro_batch: MicroBatch) -> LoadedBatch:
        """The batch of this process's rows."""

    def epoch_indices(self, rng: np.random.Generator) -> np.ndarray | None:
        """The examples of an epoch, which may repeat; None: each of them once."""
        return None

    def load_example(self, micro_batch: MicroBatch, row: int, corrupt: list[str], crop: bool = True) -> tuple[int, Any]:
        """(index, decoded example) for a row of the micro-batch, cropped to its length if `crop`.

        When it cannot be decoded, its "name: reason" is added to `corrupt` and another example takes its place."""
        examples = micro_batch.examples if micro_batch.examples is not None else self.examples
        assert examples is not None
        for attempt, index in enumerate(_candidates(micro_batch, row, examples.costs)):
            rng = np.random.default_rng((*micro_batch.seed[:2], index, EXAMPLE, attempt))
            try:
                return index, load_example(examples, index, micro_batch.limit if crop else None, rng)
            except CorruptExample as error:
                corrupt.append(str(error))
        names = list(dict.fromkeys(corrupt))
        raise RunStopped(f"none of {len(names)} examples in a row can be read: {'; '.join(names[-3:])}")


def _candidates(micro_batch: MicroBatch, row: int, costs: np.ndarray) -> Iterator[int]:
    """The row itself, the other rows, then a few random examples that are long enough."""
    yield from map(int, np.roll(micro_batch.indices, -row))
    long_enough = np.flatnonzero(costs >= micro_batch.limit)
    yield from map(int, np.random.default_rng((*micro_batch.seed, EXAMPLE)).choice(long_enough, 8))


class MaskedBatches(BatchDataset):
    """Batches for pre-training, with `masks` masks for each example."""

    def __init__(self, modality: DataPipeline, mask: MaskSettings, masks: int, examples: ExampleDataset | None):
        super().__init__(modality, examples)
        self.mask, self.masks = mask, masks

    def build(self, micro_batch: MicroBatch) -> LoadedBatch:
        size = len(micro_batch.indices)
        rows = range(size)[micro_batch.rank_rows]
        corrupt: list[str] = []
        batch = self.modality.collate([self.load_example(micro_batch, row, corrupt)[1] for row in rows])
        # Drawn for all rows, so that they do not depend on which process loads which row.
        rng = np.random.default_rng((*micro_batch.seed, MASK))
        drawn = self.mask.draw(size * self.masks, self.modality.grid(batch), rng)
        mask, predicted = (
            bools.reshape(size, self.masks, -1)[micro_batch.rank_rows] for bools in (drawn.masked, drawn.predicted)
        )
        if (padded := self.modality.padded_positions(batch)) is not None:
            mask = predicted = unmask_padding(mask, padded, rng)
        replaced_input = None
        if drawn.replaced is not None:
            replaced_input = self._replace(batch, drawn.replaced[micro_batch.rank_rows], micro_batch.seed, rows)
        masked = MaskedBatch(
            batch.input,
            batch.padding,
            mask=torch.from_numpy(np.ascontiguousarray(mask)).flatten(0, 1),
            predicted_indices=torch.from_numpy(np.flatnonzero(predicted)),
            replaced_input=replaced_input,
        )
        return LoadedBatch(masked, [*micro_batch.corrupt, *corrupt], micro_batch.stream_state)

    def _replace(self, batch: Batch, replaced: np.ndarray, seed: tuple[int, int, int], rows: range) -> Tensor:
        """Row by row, so that the content does not depend on which process loads which row."""
        inputs = [
            self.modality.replace(batch.rows(i, i + 1), replaced[i : i + 1], np.random.default_rng((*seed, REPLACE, row)))
            for i, row in enumerate(rows)
        ]
        return torch.cat(inputs)


def unmask_padding(mask: np.ndarray, padded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`mask` (B, M, T) without the positions that are padding, `padded` (B, T): nothing is there to be predicted.

    Random masked positions become visible until every row has as many masked ones as the row with the fewest, which has at
    least one. Raises UserError if a row has nothing but padding."""
    valid = np.broadcast_to(~padded[:, None], mask.shape).reshape(-1, mask.shape[-1])
    if not valid.any(1).all():
        raise UserError("an example of the batch has nothing but padding: leave it out of the data")
    masked = mask.reshape(valid.shape) & valid
    order = np.where(masked, 1.0, np.where(valid, 0.0, -1.0)) + rng.random(masked.shape) / 2
    fewest = max(1, int(masked.sum(1).min()))
    kept = np.zeros_like(masked)
    np.put_along_axis(kept, np.argsort(-order, axis=1)[:, :fewest], True, axis=1)
    return kept.reshape(mask.shape)


class StreamedBatches(IterableDataset[Loaded]):
    """The batches of process `rank` of `world`, from step `first_step` on.

    Worker w of W makes every W-th of them; the DataLoader takes them from the workers in turn, which restores the order."""

    def __init__(
        self,
        batches: BatchDataset,
        streams: Streams,
        per_step: int,
        rank: int,
        world: int,
        first_step: int,
        stream_states: Mapping[str, list[int]],
    ):
        self.batches, self.streams, self.per_step = batches, streams, per_step
        self.rank, self.world, self.first_step, self.stream_states = rank, world, first_step, stream_states

    def __iter__(self) -> Iterator[Loaded]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        stride = rank_stride(self.per_step, self.world)
        numbers = count(self.first_step * self.per_step + self.rank % stride + stride * worker, stride * workers)
        begin = time.perf_counter()
        try:
            for number, micro_batch in self.streams.micro_batches(numbers, self.stream_states):
                rows = rank_slice(micro_batch.indices, self.per_step, number, self.rank, self.world)
                assert rows is not None
                loaded = self.batches[replace(micro_batch, rank_rows=rows)]
                if isinstance(loaded, LoadedBatch):
                    loaded = loaded._replace(seconds=time.perf_counter() - begin)
                yield loaded
                begin = time.perf_counter()
        except (UserError, RunStopped) as error:
            yield error
