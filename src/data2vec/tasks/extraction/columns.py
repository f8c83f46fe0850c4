"""What a data set tells of its rows beside the signal: words and numbers, such as labels."""

from collections.abc import Callable
from typing import Any


def columns(rows: Any, kind: str) -> Callable[[int, int], dict[str, Any]]:
    """What gives the columns of words and numbers of a range of `rows` as Arrow arrays; classes by their names."""
    if not hasattr(rows, "features"):
        return lambda first, last: {}
    from datasets import ClassLabel, Value

    kept = [name for name, feature in rows.features.items() if isinstance(feature, ClassLabel | Value) and name != kind]
    chosen = rows.select_columns(kept).with_format("arrow")

    def read(first: int, last: int) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = chosen[first:last]
        found = {name: table.column(name) for name in kept}
        for name, values in found.items():
            if isinstance(feature := rows.features[name], ClassLabel):
                numbers = values.combine_chunks()
                found[name] = pa.array(feature.names).take(pc.if_else(pc.less(numbers, 0), None, numbers))
        return found

    return read
