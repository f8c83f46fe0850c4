"""The outputs of a pass over labelled examples, computed in shares by many processes and resumable; the last process to finish
has all of them, for the result."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.distributed import Process
from data2vec.errors import Unfinished, UserError
from data2vec.settings import JsonDict
from data2vec.tasks.eval_batches import Compute, EvalPass, Output, gather_outputs
from data2vec.tasks.shares import ShardFolder, Share, share_of


@contextmanager
def shared_outputs(
    passes: Sequence[EvalPass],
    compute: Compute,
    process: Process,
    out: Path | None,
    shard: str | None,
    settings: Callable[[], JsonDict],
    desc: str,
    reusable: bool = False,
) -> Iterator[list[list[Output]]]:
    """A block that writes the result `out` of the outputs of each pass, in the order of their rows.

    Processes work in shares as `ShardFolder` has it, in a folder beside `out` that the block deletes at its end; without `out`,
    and in a process group, they keep outputs in memory and all enter the block. An output is an array, or what JSON can hold.
    `shard`: as for `share_of`. `settings`: returns what the outputs depend on; other ones have another folder. `desc`: label
    of the progress bar. `reusable`: keep the outputs after a user error of the block, which other settings may avoid.

    Raises Unfinished in a process that is not the last one, and UserError for a wrong `shard` and as `ShardFolder` does."""
    if out is None or process.world_size > 1:
        if shard is not None:
            raise UserError(f"shard: {shard}, but this process " + ("is in a group" if out is not None else "writes no file"))
        yield [gather_outputs(each, compute, process, desc) for each in passes]
        return
    share, depends_on = share_of(shard), settings()
    digest = hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=4).hexdigest()
    starts = np.cumsum([0, *map(len, passes)]).tolist()
    shards = OutputShards(out.with_name(f"{out.name}.{digest}.parts"), starts[-1], share)
    if not shards.blocks:
        raise Unfinished(f"{out}: {share} of {starts[-1]} examples is empty")

    def compute_parts(ranges: list[range]) -> Iterator[tuple[int, list[Output]]]:
        for start, reading in zip(starts[:-1], passes, strict=True):
            places = [range(max(each.start - start, 0), min(each.stop - start, len(reading))) for each in ranges]
            groups = [(at, group) for each in places if each for at, group in _with_places(reading.groups(each), each)]
            outputs = reading.outputs(compute, [group for _, group in groups])
            for (at, _), part in zip(groups, outputs, strict=True):
                yield start + at, [(start + row, output) for row, output in part]

    with shards.opened(depends_on, "evaluates"):
        shards.fill(desc, compute_parts)
        if not shards.is_last():
            raise Unfinished(f"{out}: {shards.status()}")
        outputs = sorted(shards.outputs(), key=lambda output: output[0])
        bounds = np.searchsorted([row for row, _ in outputs], starts).tolist()
        parts = zip(starts[:-1], bounds[:-1], bounds[1:], strict=True)
        try:
            yield [[(row - start, output) for row, output in outputs[first:last]] for start, first, last in parts]
        except UserError:
            if not reusable:  # the same outputs would raise it again
                shards.remove()
            raise
        shards.remove()


def _with_places(groups: Sequence[np.ndarray], places: range) -> Iterator[tuple[int, np.ndarray]]:
    """Consecutive groups, each with the place of its first row."""
    at = places.start
    for group in groups:
        yield at, group
        at += len(group)


class OutputShards(ShardFolder[list[Output]]):
    """Shards of outputs, each a table with columns row and output."""

    def __init__(self, folder: Path, num_inputs: int, share: Share):
        super().__init__(folder, ".parquet", num_inputs, share)

    def write(self, path: Path, parts: list[list[Output]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        outputs = list(chain.from_iterable(parts))
        pq.write_table(pa.table({"row": [row for row, _ in outputs], "output": [output for _, output in outputs]}), path)

    def size(self, part: list[Output]) -> int:
        return sum(getattr(output, "nbytes", 0) for _, output in part)

    def outputs(self) -> Iterator[Output]:
        """All outputs; lists of numbers as arrays."""
        import pyarrow.parquet as pq

        for path in self.files:
            table = pq.read_table(path)
            values: Any = table["output"].combine_chunks().to_numpy(zero_copy_only=False)
            yield from zip(table["row"].to_pylist(), values, strict=True)
