"""Data read from start to end: several streams of shards at once, the same ones whatever the number of processes.

The shards are put into a new order in each pass over the data and dealt out among the streams. Group number N of the run is
from stream N mod `count`, so that a process, and each of its workers, opens only the streams whose groups it has. A stream
is read in windows of rows, and each window is planned like a small epoch.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, gcd
from typing import Any

import numpy as np

from data2vec.data.bucketing import ORDER, Group, cut
from data2vec.data.shard_reader import Passes, Row
from data2vec.errors import UserError
from data2vec.modalities.base import Examples, Modality

ENOUGH = 7 / 8
"""A window is large enough when so much of it is used: not left over by its groups, nor cropped to the length of others."""
LARGEST = 8
"""A window that is not is read on, to so many times its size at most, or until as many shards were opened as there are."""


@dataclass(frozen=True)
class Window:
    """Rows of a stream that are planned together."""

    place: list[int]
    """Groups of the stream before this window; pass, position in the pass's order of shards, and row in the shard where it
    starts; rows of the stream read up to its end."""
    examples: Examples
    groups: list[np.ndarray]
    bad: list[str]


class Streams:
    """A `datasets.IterableDataset` as streams of shards: as many of them as the largest divisor of `data.streams` that is
    not more than there are shards.

    Raises UserError when there is nothing to learn from."""

    def __init__(self, modality: Modality, rows: Any, seed: int, micro_batch: float):
        settings = modality.data
        # Where there are few parquet files, their row groups are the shards.
        rows = rows.reshard() if rows.num_shards < settings.streams else rows
        self.modality, self.rows, self.seed, self.micro_batch = modality, rows, seed, micro_batch
        self.shards: int = rows.num_shards
        self.count = _divisor(settings.streams, self.shards)
        # A multiple of what fills a micro-batch at a cost of 1, so that no picture is left over, and several micro-batches
        # of clips are there to be grouped by length.
        full = ceil(micro_batch - 1e-6)
        self.window = ceil(settings.buffer / self.count / full) * full

    def workers(self, asked: int, stride: int) -> int:
        """How many workers a process uses that has each `stride`-th group: its streams are dealt out evenly among them;
        where they are too few, several workers read the same stream and each decodes a part of it."""
        mine = self.count // gcd(self.count, stride)
        return _divisor(mine, asked) if 0 < asked < mine else asked - asked % mine

    def groups(self, numbers: Iterable[int], places: Mapping[str, list[int]]) -> Iterator[tuple[int, Group]]:
        """The groups with these rising numbers. `places` says where streams may start; the others start at the beginning,
        and groups before the first number are planned but not decoded."""
        reading: dict[int, Iterator[tuple[int, Group]]] = {}
        threads = ThreadPoolExecutor(self.count, "data2vec-stream")
        try:
            for number in numbers:
                turn, stream = divmod(number, self.count)
                if stream not in reading:
                    place = places.get(str(stream))
                    if place and place[0] > turn:
                        raise UserError("data.train: the data has changed since the checkpoint was made, its place is lost")
                    reading[stream] = self._groups(stream, place, threads)
                yield number, next(group for at, group in reading[stream] if at == turn)
        finally:
            # Waited for: a process that forks while a thread of it reads may leave a locked lock to its child.
            threads.shutdown(cancel_futures=True)

    def _groups(self, stream: int, place: list[int] | None, threads: ThreadPoolExecutor) -> Iterator[tuple[int, Group]]:
        for window in _ahead(self._windows(stream, place), threads):
            for i, keys in enumerate(window.groups):
                at = window.place[0] + i
                limit = float(window.examples.costs[keys].min())
                seed = (self.seed, at * self.count + stream, 0)
                bad = window.bad if i == 0 else []
                yield at, Group(keys, slice(None), limit, seed, window.examples, (str(stream), window.place), bad)

    def _windows(self, stream: int, place: list[int] | None) -> Iterator[Window]:
        """Windows with at least one group each, from `place` on."""
        groups, *mark, read = place or [0] * 5
        passes = Passes(self.rows, self.seed, stream, self.count, mark)
        counted, useless, bad = place is not None, passes.opened, list[str]()
        while True:
            start = passes.mark
            rng = (self.seed, groups * self.count + stream, 0, ORDER)
            rows, examples, keys = self._window(passes, rng)
            read, counted = read + (0 if counted else rows), False
            bad += getattr(examples, "bad", [])
            if keys:
                yield Window([groups, *start, read], examples, keys, bad)
                groups, useless, bad = groups + len(keys), passes.opened, []
            elif passes.opened - useless > self.shards:
                raise UserError(_barren(read, bad))

    def _window(self, passes: Passes, rng: tuple[int, ...]) -> tuple[int, Examples, list[np.ndarray]]:
        """How many rows were read, what they hold, and the groups of it; to the end of a pass, if that is enough."""
        rows, size, opened = list[Row](), self.window, passes.opened
        while True:
            rows += passes.take(size - len(rows))
            examples = self.modality.examples(rows)
            keys = cut(examples.costs, self.micro_batch, np.random.default_rng(rng))
            used = sum(len(each) * examples.costs[each].min() for each in keys)
            if used >= ENOUGH * max(examples.costs.sum(), self.micro_batch):
                break
            if len(rows) >= LARGEST * self.window or passes.opened - opened > self.shards:
                break
            size = size if len(rows) < size else 2 * size
        return len(rows), examples, keys


def rows_read(places: Mapping[str, list[int]]) -> int:
    """Rows read so far in all these streams."""
    return sum(place[-1] for place in places.values())


def furthest(places: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """The places of several processes as one: of a stream that more than one has read, the most advanced."""
    joined: dict[str, list[int]] = {}
    for each in places:
        joined |= {stream: max(place, joined.get(stream, place)) for stream, place in each.items()}
    return joined


def _barren(read: int, bad: list[str]) -> str:
    if not read:
        return "the streamed data has no rows"
    such = f", such as {bad[0]}" if bad else ""
    return f"the streamed data has nothing to learn from: all is too short or cannot be read{such}"


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is not more than `most`."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _ahead(items: Iterator[Any], threads: ThreadPoolExecutor) -> Iterator[Any]:
    """The same items, the next one being made while this one is in use."""
    coming = threads.submit(next, items)
    while True:
        item = coming.result()
        coming = threads.submit(next, items)
        yield item
