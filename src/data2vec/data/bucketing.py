"""Batches of similar length: for training, for reading every example once, and for feature extraction.

All three sort examples from long to short and cut them into consecutive batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data2vec.data.dataset import ExampleDataset

ORDER, EXAMPLE, MASK, REPLACE, SHARDS, MIX = 1, 2, 3, 4, 5, 6
"""Each use of randomness has its own stream: (seed, epoch, number, use)."""
MAX_PADDING = 1 / 16
"""For features: the largest fraction of a batch's positions that may be padding. One more batch costs about as much, as all
weights are read from memory again."""


@dataclass(frozen=True)
class MicroBatch:
    """Examples that are cropped to one length and whose masks are drawn together."""

    indices: np.ndarray
    """Indices of all examples, over all processes."""
    rank_rows: slice
    """The rows that this process loads."""
    limit: float
    """The smallest cost among the examples: every example is cropped to it."""
    seed: tuple[int, int, int]
    """(seed, epoch, number), or (seed, number in the run, 0): all randomness in the batch comes from it and the indices."""
    examples: ExampleDataset | None = None
    """With streaming: the window that `indices` refer to."""
    stream_state: tuple[str, list[int]] | None = None
    """With streaming: the stream, and the state at the start of its window."""
    corrupt: Sequence[str] = ()
    """With streaming: "name: reason" of the corrupt examples of a window, in its first batch."""


def split_sorted(order: np.ndarray, costs: np.ndarray, micro_batch: float) -> list[np.ndarray]:
    """Consecutive parts of `order`, indices of examples sorted from high to low cost, with rows · highest cost ≤ micro_batch.

    An example larger than `micro_batch` is a micro-batch by itself."""
    parts, start = [], 0
    while start < len(order):
        rows = rows_that_fit(costs[order[start]], micro_batch)
        parts.append(order[start : start + rows])
        start += rows
    return parts


def rows_that_fit(cost: float, micro_batch: float) -> int:
    """How many rows of this cost a micro-batch holds, at least 1."""
    return max(1, int(micro_batch / cost + 1e-6))


def bucket_by_length(costs: np.ndarray, micro_batch: float, rng: np.random.Generator) -> list[np.ndarray]:
    """For training: shuffled micro-batches of indices, with rows · highest cost ≤ micro_batch.

    Examples of different cost are sorted by cost, equal ones in random order. A last micro-batch that is not full is dropped,
    unless it is the only one; where costs, and with them shapes, differ anyway, half full is enough."""
    if len(costs) == 0:
        return []
    order = rng.permutation(len(costs))
    equal = costs.min() == costs.max()
    if not equal:
        order = order[np.argsort(-costs[order], kind="stable")]
    batches = split_sorted(order, costs, micro_batch)
    full = rows_that_fit(costs[batches[-1][0]], micro_batch)
    if len(batches) > 1 and len(batches[-1]) < (full if equal else full / 2):
        batches.pop()
    return [batches[i] for i in rng.permutation(len(batches))]


def sort_by_length(costs: np.ndarray, micro_batch: float) -> list[np.ndarray]:
    """For reading every example once: micro-batches from high to low cost, with rows · highest cost ≤ micro_batch."""
    return split_sorted(np.argsort(-costs, kind="stable"), costs, micro_batch)


def pad_by_length(lengths: Sequence[int], max_positions: int, shapes: Sequence[object] | None = None) -> Iterator[list[int]]:
    """For features: batches of indices from long to short, of at most `max_positions` positions including padding, at most
    MAX_PADDING of which is padding; or a single index.

    `shapes`: where they are given, only inputs of equal shape share a batch."""
    batch: list[int] = []
    padding = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        missing = lengths[batch[0]] - lengths[index] if batch else 0
        if batch and not (
            (len(batch) + 1) * lengths[batch[0]] <= max_positions
            and padding + missing <= MAX_PADDING * max_positions
            and (shapes is None or shapes[index] == shapes[batch[0]])
        ):
            yield batch
            batch, padding, missing = [], 0, 0
        batch.append(index)
        padding += missing
    if batch:
        yield batch
