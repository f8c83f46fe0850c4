"""The rows of one stream of shards, pass after pass, from any place on."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from data2vec.data.bucketing import SHARDS
from data2vec.errors import UserError

BLOCK = 16
"""Rows taken from a shard at a time."""

Row = dict[str, Any]


class Passes:
    """Stream number `stream` of `count` of a `datasets.IterableDataset`: its part of the shards, in a new order each pass.

    Goes on from `mark`: pass, position in the pass's order of shards, row in that shard."""

    def __init__(self, rows: Any, seed: int, stream: int, count: int, mark: list[int]):
        self.rows, self.seed, self.stream, self.count, self.mark = rows, seed, stream, count, mark
        self.shards: int = rows.num_shards
        self.left = self._pass(*mark)

    @property
    def opened(self) -> int:
        """Shards before this one, over all passes."""
        return self.mark[0] * len(range(self.stream, self.shards, self.count)) + self.mark[1]

    def take(self, most: int) -> list[Row]:
        """The next rows: `most`, or those to the end of the pass. Raises UserError when a shard cannot be read."""
        taken = list(islice(self.left, most))
        if len(taken) == most:
            self.mark = taken[-1][0]
        else:
            self.mark = [self.mark[0] + 1, 0, 0]
            self.left = self._pass(*self.mark)
        return [row for _, row in taken]

    def _pass(self, turn: int, position: int, offset: int) -> Iterator[tuple[list[int], Row]]:
        """The rows from here to the end of the pass, each with the place behind it."""
        order = np.random.default_rng((self.seed, turn, 0, SHARDS)).permutation(self.shards)[self.stream :: self.count]
        for at in range(position, len(order)):
            try:
                for number, row in self._shard(int(order[at]), offset):
                    yield [turn, at, number], row
            except UserError:
                raise
            except Exception as error:  # each file system raises errors of its own
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                raise UserError(f"shard {order[at]} of the {self.shards} in the data cannot be read: {reason}") from None
            offset = 0

    def _shard(self, shard: int, skip: int) -> Iterator[tuple[int, Row]]:
        rows = self.rows.shard(self.shards, shard)
        if skip:
            rows = rows.skip(skip)
        number = skip
        # In blocks, as the library would deal single rows out among the loader's workers once more.
        for block in rows.iter(BLOCK):
            for values in zip(*block.values(), strict=True):
                number += 1
                yield number, dict(zip(block, values, strict=True))
