"""The rows of a data set of recordings: one for each recording, also of files that hold several."""

from typing import Any

from data2vec.data.corrupt import decoding
from data2vec.data.dataset import Rows
from data2vec.data.recordings.open import SEVERAL, list_entries
from data2vec.data.recordings.recording import Description
from data2vec.data.sources.library import dataset_from_table
from data2vec.errors import CorruptExample

KIND = "recording"
"""The column of the signal."""


def one_row_each(rows: Rows, description: Description) -> Rows:
    """The rows of files as rows of recordings, with {"bytes", "path", "entry", "rate"} in column `recording`.

    `rate` is that of a column of this name, for files that do not say it. Columns of files are repeated for each of their
    recordings, and arrays of the file with something about each are added. A file that cannot be opened stays one row, which
    says so when it is read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = (rows if rows._indices is None else rows.flatten_indices()).data.table
    paths = pc.struct_field(table[KIND], "path").to_pylist()
    rates = _rates(table)
    first, entries, added = list[int](), list[str | None](), dict[str, dict[int, Any]]()
    for row, path in enumerate(paths):
        found: list[str | None] = [None]
        columns: dict[str, list[Any]] = {}
        if path and path.lower().endswith(tuple(SEVERAL)):
            try:
                with decoding({"path": path}, path):
                    found, columns = list_entries(path, description)
            except CorruptExample:
                found, columns = [None], {}
        for name, listed in columns.items():
            added.setdefault(name, {}).update({len(entries) + index: value for index, value in enumerate(listed)})
        first += [row] * len(found)
        entries += found
    taken = table.take(pa.array(first, pa.int64()))
    fields = [
        pc.struct_field(taken[KIND], "bytes").combine_chunks(),
        pc.struct_field(taken[KIND], "path").combine_chunks(),
        pa.array(entries, pa.string()),
        pa.array([rates[row] for row in first], pa.float64()),
    ]
    signal = pa.StructArray.from_arrays(fields, ["bytes", "path", "entry", "rate"])
    taken = taken.set_column(taken.column_names.index(KIND), KIND, signal)
    for name, values in added.items():
        if name not in taken.column_names:
            taken = taken.append_column(name, _column([values.get(index) for index in range(len(entries))]))
    return dataset_from_table(taken.combine_chunks())


def _rates(table: Any) -> list[float | None]:
    """The numbers in column `rate`, None where there are none."""
    if "rate" not in table.column_names:
        return [None] * table.num_rows
    return [_number(value) for value in table["rate"].to_pylist()]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _column(values: list[Any]) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values], pa.string())
