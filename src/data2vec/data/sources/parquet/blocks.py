"""Parquet files, read block by block: a broken row group, or a row that is no valid value, takes no other rows with it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from data2vec.data.sources.formats import utf8
from data2vec.data.sources.remote import open_binary, require_file
from data2vec.errors import UserError

BLOCK_ROWS = 1000


class DamagedParquet(ValueError):
    """A file that cannot be opened as parquet."""


class Block(NamedTuple):
    """Rows of a file, one after another, that can all be read, or all cannot."""

    start: int
    """The index of the first one in the file."""
    rows: int
    batch: Any = None
    """A `pyarrow.RecordBatch`; None: they cannot be read."""
    problem: str | None = None
    """Why they cannot be read."""
    is_file: bool = False
    """Whether this one row stands for a file that is damaged as a whole."""

    def name(self, path: str, index: int) -> str:
        """What names a row of the block in messages: FILE, row N."""
        return utf8(path) if self.is_file else f"{utf8(path)}, row {self.start + index + 1}"


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """The `pyarrow.parquet.ParquetFile` at a path or URL. Raises DamagedParquet, and UserError if it cannot be reached."""
    from pyarrow import parquet

    with ExitStack() as stack:
        source: Any = path
        if "://" in path:
            source = stack.enter_context(open_binary(path))
        else:
            require_file(path)
        try:
            # Checksums only if the file has them. A hostile footer may ask for any amount of memory.
            file = parquet.ParquetFile(source, page_checksum_verification=True, pre_buffer="://" in path)
        except Exception as error:
            raise DamagedParquet(f"not a complete parquet file ({damage(error, path)})") from None
        stack.enter_context(file)
        yield file


def damage(error: Exception, path: str) -> str:
    """Why a file, or a part of it, is damaged. Raises UserError if the file cannot be reached instead."""
    import pyarrow as pa

    reason = utf8(" ".join(str(error).split()))[:200].rstrip(".") or type(error).__name__
    is_of_the_system = isinstance(error, OSError) and error.errno is not None
    if isinstance(error, pa.ArrowException) or not ("://" in path or is_of_the_system):  # of Arrow, OSError also is damage
        return reason
    raise UserError(f"{path} cannot be read: {type(error).__name__}: {reason}") from None


def read_blocks(path: str, group: int | None = None) -> Iterator[Block]:
    """The rows of a file, or of one of its row groups; of a file that is damaged as a whole one row that cannot be read.

    Raises UserError for a file that cannot be reached."""
    try:
        with open_parquet(path) as file:
            sizes = [max(0, file.metadata.row_group(index).num_rows) for index in range(file.num_row_groups)]
            for index in range(len(sizes)) if group is None else [group]:
                yield from _read_group(path, file, index, sum(sizes[:index]), sizes[index])
    except DamagedParquet as error:
        yield Block(0, 1, None, str(error), is_file=True)


def _read_group(path: str, file: Any, group: int, start: int, size: int) -> Iterator[Block]:
    read, problem = 0, None
    try:
        for batch in file.iter_batches(BLOCK_ROWS, row_groups=[group], use_threads=False):
            yield from _valid(batch, start + read)
            read += batch.num_rows
        if read < size:
            problem = f"row group {group + 1} ends after {read} of {size} rows"
    except Exception as error:
        problem = f"row group {group + 1} is damaged ({damage(error, path)})"
    if problem is not None:
        yield from _unreadable(path, start + read, size - read, problem)


def _unreadable(path: str, start: int, rows: int, problem: str) -> Iterator[Block]:
    """Blocks of rows that cannot be read; one row for more than the file can have."""
    most = 2**20 if "://" in path else os.stat(path).st_size  # a row with a signal takes a byte
    if rows > most:
        problem, rows = f"{problem}, which claims {rows} more rows", 1
    for first in range(0, rows, BLOCK_ROWS):
        yield Block(start + first, min(BLOCK_ROWS, rows - first), None, problem)


def _valid(batch: Any, start: int) -> Iterator[Block]:
    """Blocks of a batch: rows that hold something else than their type says, such as text that is not UTF-8, cannot be
    read."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
        yield Block(start, batch.num_rows, batch)
    except pa.ArrowInvalid as error:
        if batch.num_rows == 1:
            yield Block(start, 1, None, f"a cell is no value of its column ({damage(error, '')})")
            return
        half = batch.num_rows // 2
        yield from _valid(batch.slice(0, half), start)
        yield from _valid(batch.slice(half), start + half)
