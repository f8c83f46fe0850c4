"""Recordings in parquet files: a row a sample, as in a csv file; or a row a recording, whose channels are lists of numbers, a
column for each, or a list of lists in one column."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data2vec.data.recordings.arrays import RATE_NAMES
from data2vec.data.recordings.recording import ArrayRecording, Description, Recording, name_channels, orient, require_rate
from data2vec.data.recordings.tables import frame_recording
from data2vec.errors import CorruptExample
from data2vec.untrusted import require_regular

MAX_ROW_GROUP_BYTES = 2**32
"""Of the columns of a recording, uncompressed: a row group is read as a whole."""


def parquet_recording(path: str, entry: str | None, description: Description) -> Recording:
    """The recording of a file, or of one of its rows. Raises CorruptExample."""
    file = _open(path)
    columns = _list_columns(file, description)
    if not columns:
        if file.metadata.num_rows * len(file.schema_arrow) * 8 > MAX_ROW_GROUP_BYTES:
            raise CorruptExample(f"{file.metadata.num_rows} rows are too many for one recording; split it")
        return frame_recording(file.read(), description)
    if entry is None:
        raise CorruptExample("a table of recordings; name one of its rows")
    row = int(entry)
    rate_names = [name for name in RATE_NAMES if name in file.schema_arrow.names]
    table = _row(file, row, [*columns, *rate_names])
    rate = next((value for name in rate_names if (value := table[name].to_pylist()[0]) is not None), None)
    lists = [table[name].to_pylist()[0] for name in columns]
    if any(each is None for each in lists):
        raise CorruptExample("a row without samples")
    try:
        array = np.array(lists[0] if len(lists) == 1 else lists, np.float64)
    except ValueError:
        raise CorruptExample("channels of different lengths, or missing numbers") from None
    rate = require_rate(description.rate if rate is None else float(rate))
    if len(lists) == 1 and array.ndim == 2:
        array = orient(array, description)
        return ArrayRecording(array, name_channels(array.shape[1], description.channels), [""] * array.shape[1], rate)
    array = array.reshape(len(lists), -1).T
    return ArrayRecording(array, columns, [""] * len(columns), rate)


def parquet_entries(path: str, description: Description) -> tuple[list[str | None], dict[str, list[Any]]]:
    """The rows of a file of recordings, and its columns of texts and numbers; [None] of a file of samples."""
    file = _open(path)
    if not _list_columns(file, description):
        return [None], {}
    import pyarrow as pa

    plain = [
        field.name
        for field in file.schema_arrow
        if pa.types.is_string(field.type) or pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    table = file.read(columns=plain)
    return [str(row) for row in range(file.metadata.num_rows)], table.to_pydict()


def _open(path: str) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    require_regular(path)
    try:
        return parquet.ParquetFile(path)
    except pa.ArrowException as error:
        raise CorruptExample(f"not a complete parquet file: {' '.join(str(error).split())[:200]}") from None


def _list_columns(file: Any, description: Description) -> list[str]:
    """The columns of lists of numbers; of a list of lists that one. Raises CorruptExample if it is unclear which it is."""
    import pyarrow as pa

    def depth(kind: Any) -> int:
        inside = 0
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind, inside = kind.value_type, inside + 1
        return inside if pa.types.is_integer(kind) or pa.types.is_floating(kind) else 0

    found = {field.name: level for field in file.schema_arrow if (level := depth(field.type))}
    if description.array is not None and description.array in found:
        return [description.array]
    nested = [name for name, level in found.items() if level == 2]
    if len(nested) > 1 or any(level > 2 for level in found.values()):
        raise CorruptExample(f"columns {', '.join(found)}: which is the signal? Set data.array")
    return nested or list(found)


def _row(file: Any, row: int, columns: Sequence[str]) -> Any:
    """The table of one row."""
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        if row < metadata.num_rows:
            if metadata.total_byte_size > MAX_ROW_GROUP_BYTES:
                raise CorruptExample(f"a row group of {metadata.total_byte_size} bytes; write smaller ones")
            return file.read_row_group(group, columns=list(columns)).slice(row, 1)
        row -= metadata.num_rows
    raise CorruptExample(f"no such row, only {file.metadata.num_rows}")
