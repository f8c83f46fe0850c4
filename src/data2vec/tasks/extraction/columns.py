"""Columns of a dataset other than the signal, such as labels and texts, for parquet files."""

from collections.abc import Callable

from data2vec.data.dataset import Rows
from data2vec.settings import JsonDict


def metadata_columns(rows: Rows, kind: str) -> Callable[[int, int], JsonDict]:
    """A function that returns the text and number columns of a range of `rows` as Arrow arrays, classes by name."""
    if not hasattr(rows, "features"):
        return lambda first, last: {}
    from datasets import ClassLabel, Value

    names = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel | Value) and name != kind]
    selected = rows.select_columns(names).with_format("arrow")

    def read_range(first: int, last: int) -> JsonDict:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = selected[first:last]
        columns = {name: table.column(name) for name in names}
        for name, values in columns.items():
            if isinstance(feature := rows.features[name], ClassLabel):
                numbers = values.combine_chunks()
                columns[name] = pa.array(feature.names).take(pc.if_else(pc.less(numbers, 0), None, numbers))
        return columns

    return read_range
