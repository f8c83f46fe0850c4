"""The work of many processes on one output: each computes its share of the inputs into a folder of shards, and the last one to
finish writes the output.

Inputs are divided into blocks, whose size depends only on the number of inputs; share i of n is every n-th block. The shards
say what is missing, so an interrupted work can be resumed by any number of processes: those of torchrun, or of jobs that know
nothing of each other.
"""

import fcntl
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from data2vec.atomic_io import atomic_write
from data2vec.console.progress import progress
from data2vec.distributed import is_rank_zero
from data2vec.errors import UserError
from data2vec.run_dir import lock_bytes, open_lock_file
from data2vec.settings import JsonMapping

BLOCKS, SMALLEST_BLOCK, LARGEST_BLOCK = 256, 32, 4096
"""Inputs are divided into about so many blocks, each of at least and at most so many inputs."""
SHARD_BYTES, SHARD_SECONDS = 2**26, 60.0
"""A shard is written when it reaches this size or this computing time."""

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The share of one process."""

    index: int
    """From 0."""
    count: int

    def __str__(self) -> str:
        return f"share {self.index + 1} of {self.count}"


def share_of(shard: str | None) -> Share:
    """The share of this process: of "i/n" number i, from 1 to n; None: everything. The processes of torchrun share that share.

    Raises UserError."""
    text = "1/1" if shard is None else shard
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and len(text) < 20):
        raise UserError(f"--shard {text}: is not i/n, such as 1/8")
    number, total = int(index), int(count)
    if not 1 <= number <= total:
        raise UserError(f"--shard {text}: shares are counted from 1 to {total}, as a job array 1-{total} counts")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return Share((number - 1) * processes + int(os.environ.get("RANK", 0)), total * processes)


class ShardFolder(ABC, Generic[T]):
    """A folder of shards, each a file named by the index of its first input and the one after its last. It holds what is
    computed of the inputs, in parts, each of one or several inputs."""

    def __init__(self, folder: Path, ending: str, num_inputs: int, share: Share):
        self.folder, self.ending, self.num_inputs, self.share = folder, ending, num_inputs, share
        self.settings_file, self.lock_file = folder / "settings.json", folder / ".lock"
        self._handle = -1

    @property
    def blocks(self) -> list[range]:
        """The inputs of this share, with one share in one block."""
        if self.share.count == 1:
            return [range(self.num_inputs)]
        size = min(max(self.num_inputs // BLOCKS, SMALLEST_BLOCK), LARGEST_BLOCK)
        starts = range(0, self.num_inputs, size)[self.share.index :: self.share.count]
        return [range(start, min(start + size, self.num_inputs)) for start in starts]

    @property
    def files(self) -> list[Path]:
        """The shards in order."""
        return sorted(self.folder.glob(f"*-*{self.ending}"))

    @abstractmethod
    def write(self, path: Path, parts: list[T]) -> None:
        """Write the shard with these parts, which may be none."""

    def size(self, part: T) -> int:
        """The bytes of a part, if they matter."""
        return 0

    def fill(self, desc: str, compute: Callable[[list[range]], Iterator[tuple[int, T]]]) -> None:
        """Compute what is missing of this share, and write a shard at least once a minute.

        `compute`: the parts of ranges of inputs, in order, each with the index of its first input. Inputs that have no part,
        such as unreadable ones, are complete with the part before."""
        ranges = self.to_compute()
        parts = compute(ranges)
        with self.progress(desc, ranges) as bar:
            following = next(parts, None)
            for inputs in ranges:
                begin = at = inputs.start
                pending, start = list[T](), time.monotonic()
                while at < inputs.stop:
                    if following is not None and following[0] < inputs.stop:
                        pending.append(following[1])
                        following = next(parts, None)
                    end = inputs.stop if following is None else min(following[0], inputs.stop)
                    bar.update(end - at)
                    at = end
                    full = sum(map(self.size, pending)) >= SHARD_BYTES or time.monotonic() - start >= SHARD_SECONDS
                    if full or at == inputs.stop:
                        with atomic_write(self.folder / f"{begin:012d}-{at:012d}{self.ending}") as tmp:
                            self.write(tmp, pending)
                        begin, pending, start = at, [], time.monotonic()

    def missing(self) -> list[range]:
        """The inputs of all shares that are in no shard."""
        found, end = list[range](), 0
        for path in self.files:
            first, last = map(int, path.stem.split("-"))
            found += [range(end, first)] * (first > end)
            end = max(end, last)
        return [*found, range(end, self.num_inputs)] if end < self.num_inputs else found

    def to_compute(self) -> list[range]:
        """The inputs of this share that are in no shard."""
        missing = self.missing()
        parts = (range(max(a.start, b.start), min(a.stop, b.stop)) for a in self.blocks for b in missing)
        return [part for part in parts if part]

    @contextmanager
    def opened(self, settings: JsonMapping, doing: str) -> Iterator[None]:
        """A block in which no other process computes this share. `settings`: what all shards depend on, stored as JSON;
        `doing`: what a process does here, for errors.

        Raises UserError if another process computes inputs of this share, and if the folder was started with other settings."""
        self._lock(doing)
        try:
            self._check_settings(settings)
            yield
        except Exception:
            if self.share.count == 1 and not self.files:  # nothing to resume
                self.remove()
            raise
        finally:
            os.close(self._handle)

    def refuse_complete(self, out: Path) -> None:
        """Raise UserError if the output is complete, so that this share would be the start of another one."""
        if self.share.count > 1 and out.exists() and not self.folder.exists():
            raise UserError(f"--out {out}: exists; delete it to compute it again, in shares")

    def is_last(self) -> bool:
        """Whether all inputs are in shards, and this process is the one to write the output."""
        if self.missing():
            return False
        if self.share.count == 1:
            return True
        with suppress(OSError):
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.num_inputs)
            return self.folder.exists()  # another one may just have written it
        return False

    def status(self) -> str:
        """What is known of the output when this process is not the one to write it."""
        left = sum(map(len, self.missing())) if self.folder.exists() else 0
        return f"{self.share} is complete; {f'{left} inputs of other shares are missing' if left else 'another one writes it'}"

    def progress(self, desc: str, ranges: list[range]) -> Any:
        """The bar of this share, of which the inputs of `ranges` are left."""
        total, left = (sum(map(len, parts)) for parts in (self.blocks, ranges))
        return progress(desc=desc, total=total, unit="input", initial=total - left, hidden=not is_rank_zero())

    def remove(self) -> None:
        """Delete the shards, and the folder if it is then empty."""
        for path in (*self.files, *self.folder.glob(".*.tmp"), self.settings_file, self.lock_file):
            path.unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _lock(self, doing: str) -> None:
        """Lock the bytes of a file that stand for the first inputs of the blocks; with one share, the whole file."""
        spans = [(0, 0)] if self.share.count == 1 else [(1, block.start) for block in self.blocks]
        self.folder.mkdir(exist_ok=True)
        self._handle = open_lock_file(self.lock_file)
        try:
            lock_bytes(self._handle, self.lock_file, f"another process {doing}", spans)
        except UserError:
            os.close(self._handle)
            raise

    def _check_settings(self, settings: JsonMapping) -> None:
        text = json.dumps(settings, ensure_ascii=False)
        tmp = self.folder / f".settings-{self.share.index}.tmp"
        tmp.write_text(text, encoding="utf-8")
        with suppress(FileExistsError):  # the first process to get here writes them
            os.link(tmp, self.settings_file)
        tmp.unlink()
        stored, current = json.loads(self.settings_file.read_text(encoding="utf-8")), json.loads(text)
        for key in stored.keys() | current.keys():
            if stored.get(key) != current.get(key):
                raise UserError(
                    f"{self.folder} was started with {key} {stored.get(key)!r}, not {current.get(key)!r}: use the same to "
                    "resume, or delete that folder to start over"
                )
