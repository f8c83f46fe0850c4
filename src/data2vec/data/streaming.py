"""Streaming: shards that are read sequentially, several streams at once, the same for any number of processes and workers.

In each epoch the shards are shuffled and divided among the streams. Micro-batch number N of the run comes from stream
N mod `count`, so that a process, and each of its workers, opens only the streams that it needs. A stream is read in windows of
rows; the rows of a window are shuffled and bucketed by length like a small epoch.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import ceil, gcd
from typing import NamedTuple, TypeVar

import numpy as np

from data2vec.data.bucketing import ORDER, SHARDS, MicroBatch, bucket_by_length
from data2vec.data.dataset import DataPipeline, ExampleDataset, Row, Rows
from data2vec.errors import UserError

MIN_USED = 7 / 8
"""A window is read on until at least this fraction of it is used: neither left over nor cropped away."""
MAX_GROWTH = 8
"""But to at most this multiple of its size, or until as many shards were opened as there are."""
READ_ROWS = 16
"""Rows taken from a shard at a time."""

T = TypeVar("T")


class Cursor(NamedTuple):
    """The position of a `ShardReader`."""

    epoch: int = 0
    shard: int = 0
    """Index in the epoch's order of this stream's shards."""
    row: int = 0
    """Rows of that shard that were read."""


class StreamState(NamedTuple):
    """The state of a stream at the start of a window, saved in checkpoints as a list of integers.

    Of two states of a stream, the greater one is further on."""

    micro_batches: int
    """Micro-batches of the stream before this window."""
    epoch: int
    shard: int
    row: int
    rows_read: int
    """Rows of the stream read up to the end of this window."""


class ShardReader:
    """The rows of stream `stream` of `count`: its part of the shards of a `datasets.IterableDataset`, shuffled in each epoch,
    from `cursor` on."""

    def __init__(self, rows: Rows, seed: int, stream: int, count: int, cursor: Cursor):
        self.rows, self.seed, self.stream, self.count, self.cursor = rows, seed, stream, count, cursor
        self.shards: int = rows.num_shards
        self._remaining = self._read_epoch(cursor)

    @property
    def shards_opened(self) -> int:
        """Shards before the current one, over all epochs."""
        return self.cursor.epoch * len(range(self.stream, self.shards, self.count)) + self.cursor.shard

    def read(self, max_rows: int) -> list[Row]:
        """The next `max_rows` rows, or those up to the end of the epoch. Raises UserError when a shard cannot be read."""
        read = list(islice(self._remaining, max_rows))
        if len(read) == max_rows:
            self.cursor = read[-1][0]
        else:
            self.cursor = Cursor(self.cursor.epoch + 1)
            self._remaining = self._read_epoch(self.cursor)
        return [row for _, row in read]

    def _read_epoch(self, cursor: Cursor) -> Iterator[tuple[Cursor, Row]]:
        """The rows from `cursor` to the end of its epoch, each with the cursor after it."""
        rng = np.random.default_rng((self.seed, cursor.epoch, 0, SHARDS))
        order = rng.permutation(self.shards)[self.stream :: self.count]
        offset = cursor.row
        for index in range(cursor.shard, len(order)):
            try:
                for number, row in self._read_shard(int(order[index]), offset):
                    yield Cursor(cursor.epoch, index, number), row
            except UserError:
                raise
            except Exception as error:  # each file system raises its own errors
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise UserError(f"shard {order[index]} of the {self.shards} in the data cannot be read: {reason}") from None
            offset = 0

    def _read_shard(self, shard: int, skip: int) -> Iterator[tuple[int, Row]]:
        """(rows read so far, row) of a shard, without its first `skip` rows."""
        rows = self.rows.shard(self.shards, shard)
        if skip:
            rows = rows.skip(skip)
        number = skip
        # In blocks, as the library would divide single rows among the loader's workers once more.
        for block in rows.iter(READ_ROWS):
            for values in zip(*block.values(), strict=True):
                number += 1
                yield number, dict(zip(block, values, strict=True))


@dataclass(frozen=True)
class Window:
    """Rows of a stream that are shuffled and bucketed together."""

    state: StreamState
    examples: ExampleDataset
    batches: list[np.ndarray]
    corrupt: list[str]


class Streams:
    """A `datasets.IterableDataset` as streams of shards: as many as the largest divisor of `data.num_streams` that is not above
    the number of shards.

    Raises UserError when there is nothing to train on."""

    def __init__(self, modality: DataPipeline, rows: Rows, seed: int, micro_batch: float):
        settings = modality.data
        # With few parquet files, their row groups are the shards.
        rows = rows.reshard() if rows.num_shards < settings.num_streams else rows
        self.modality, self.rows, self.seed, self.micro_batch = modality, rows, seed, micro_batch
        self.shards: int = rows.num_shards
        self.count = _largest_divisor(settings.num_streams, self.shards)
        # A multiple of what fills a micro-batch at a cost of 1, so that no image is left over, and clips can be bucketed by
        # length into several micro-batches.
        full = ceil(micro_batch - 1e-6)
        self.window_rows = ceil(settings.shuffle_buffer / self.count / full) * full

    def usable_workers(self, workers: int, stride: int) -> int:
        """How many of `workers` workers a process can use that takes every `stride`-th micro-batch.

        Its streams are divided among them evenly; with fewer streams than workers, several workers read the same stream and
        each decodes a part of it."""
        streams = self.count // gcd(self.count, stride)
        return _largest_divisor(streams, workers) if 0 < workers < streams else workers - workers % streams

    def micro_batches(self, numbers: Iterable[int], stream_states: Mapping[str, list[int]]) -> Iterator[tuple[int, MicroBatch]]:
        """The micro-batches with these increasing numbers.

        `stream_states`: where streams may start; others start at the beginning, and micro-batches before the first number are
        planned but not decoded."""
        iterators: dict[int, Iterator[tuple[int, MicroBatch]]] = {}
        threads = ThreadPoolExecutor(self.count, "data2vec-stream")
        try:
            for number in numbers:
                index, stream = divmod(number, self.count)
                if stream not in iterators:
                    saved = stream_states.get(str(stream))
                    state = StreamState(*saved) if saved else None
                    if state and state.micro_batches > index:
                        raise UserError(
                            "data.train: the data has changed since the checkpoint was saved; restore it, or restart"
                        )
                    iterators[stream] = self._stream(stream, state, threads)
                yield number, next(micro_batch for i, micro_batch in iterators[stream] if i == index)
        finally:
            # Wait for the threads: a process that forks while one of them reads may leave a locked lock to its child.
            threads.shutdown(cancel_futures=True)

    def _stream(self, stream: int, state: StreamState | None, threads: ThreadPoolExecutor) -> Iterator[tuple[int, MicroBatch]]:
        """(number in the stream, micro-batch), from `state` on."""
        for window in _prefetch(self._windows(stream, state), threads):
            for i, indices in enumerate(window.batches):
                number = window.state.micro_batches + i
                limit = float(window.examples.costs[indices].min())
                seed = (self.seed, number * self.count + stream, 0)
                corrupt = window.corrupt if i == 0 else []
                stream_state = str(stream), list(window.state)
                yield number, MicroBatch(indices, slice(None), limit, seed, window.examples, stream_state, corrupt)

    def _windows(self, stream: int, state: StreamState | None) -> Iterator[Window]:
        """Windows with at least one micro-batch each, from `state` on."""
        micro_batches, *cursor, rows_read = state or StreamState(0, 0, 0, 0, 0)
        reader = ShardReader(self.rows, self.seed, stream, self.count, Cursor(*cursor))
        counted = state is not None  # `rows_read` already includes the first window
        last_useful, corrupt = reader.shards_opened, list[str]()
        while True:
            start = reader.cursor
            rng = (self.seed, micro_batches * self.count + stream, 0, ORDER)
            rows, examples, batches = self._read_window(reader, rng)
            rows_read, counted = rows_read + (0 if counted else rows), False
            corrupt += examples.corrupt
            if batches:
                yield Window(StreamState(micro_batches, *start, rows_read), examples, batches, corrupt)
                micro_batches, last_useful, corrupt = micro_batches + len(batches), reader.shards_opened, []
            elif reader.shards_opened - last_useful > self.shards:
                raise UserError(_nothing_to_train_on(rows_read, corrupt))

    def _read_window(self, reader: ShardReader, rng: tuple[int, ...]) -> tuple[int, ExampleDataset, list[np.ndarray]]:
        """The number of rows read, their examples, and micro-batches of these; up to the end of an epoch, if that is enough."""
        rows, size, opened = list[Row](), self.window_rows, reader.shards_opened
        while True:
            rows += reader.read(size - len(rows))
            examples = self.modality.examples(rows)
            batches = bucket_by_length(examples.costs, self.micro_batch, np.random.default_rng(rng))
            used = sum(len(indices) * examples.costs[indices].min() for indices in batches)
            if used >= MIN_USED * max(examples.costs.sum(), self.micro_batch):
                break
            if len(rows) >= MAX_GROWTH * self.window_rows or reader.shards_opened - opened > self.shards:
                break
            size = size if len(rows) < size else 2 * size
        return len(rows), examples, batches


def count_rows_read(stream_states: Mapping[str, list[int]]) -> int:
    """Rows read so far in all these streams."""
    return sum(StreamState(*state).rows_read for state in stream_states.values())


def merge_stream_states(stream_states: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """The stream states of several processes as one: the furthest state of each stream."""
    merged: dict[str, list[int]] = {}
    for states in stream_states:
        merged |= {stream: max(state, merged.get(stream, state)) for stream, state in states.items()}
    return merged


def _nothing_to_train_on(rows_read: int, corrupt: list[str]) -> str:
    if not rows_read:
        return "the streamed data has no rows"
    example = f", such as {corrupt[0]}" if corrupt else ""
    return f"the streamed data has no usable example: all are too short or cannot be read{example}"


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is not above `limit`."""
    return max(d for d in range(1, min(number, limit) + 1) if number % d == 0)


def _prefetch(items: Iterator[T], threads: ThreadPoolExecutor) -> Iterator[T]:
    """The same items; while one is used, a thread makes the next one."""
    future = threads.submit(next, items)
    while True:
        item = future.result()
        future = threads.submit(next, items)
        yield item
