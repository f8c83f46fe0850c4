"""Tables of predictions: csv, jsonl and parquet, a part at a time, in bounded memory.

One row per input: `name`; `prediction`; `probability`; with more than one of the most probable labels `top_labels` and
`top_probabilities`; `error`; then the data set's own text and number columns.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.atomic_io import atomic_write
from data2vec.errors import get_logger
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.settings import JsonDict

if TYPE_CHECKING:
    from data2vec.tasks.prediction.predict import Prediction

log = get_logger(__name__)
ROWS = 1024
"""Rows that are written at a time."""
Tables = Iterator[Any]
"""Arrow tables of one schema; the library has no type stubs."""


class PredictionColumns:
    """The columns of a table of predictions."""

    def __init__(self, head: CTCSettings | ClassifierSettings, top_k: int):
        self.problem = head.problem_type if isinstance(head, ClassifierSettings) else "transcription"
        self.top_k = top_k

    def arrays(self, predictions: "list[Prediction]") -> JsonDict:
        """The Arrow arrays of some predictions, by the names of their columns."""
        import pyarrow as pa

        text, number = pa.string(), pa.float64()
        several = self.problem == "multi_label_classification"
        value = number if self.problem == "regression" else text
        columns: JsonDict = {
            "name": pa.array([_encodable(each.name) for each in predictions], text),
            "prediction": pa.array([each.value for each in predictions], pa.list_(text) if several else value),
        }
        if self.problem.endswith("label_classification"):
            probabilities = [each.probability for each in predictions]
            columns["probability"] = pa.array(probabilities, pa.list_(number) if several else number)
        if self.top_k > 1:
            tops = [[] if each.error is not None else each.top for each in predictions]
            columns["top_labels"] = pa.array([[label for label, _ in top] for top in tops], pa.list_(text))
            columns["top_probabilities"] = pa.array([[p for _, p in top] for top in tops], pa.list_(number))
        errors = [None if each.error is None else _encodable(each.error) for each in predictions]
        return columns | {"error": pa.array(errors, text)}


def write_table(
    path: Path,
    columns: PredictionColumns,
    predictions: "Iterable[Prediction]",
    own_columns: Callable[[int, int], JsonDict],
) -> None:
    """Write the file atomically, in the format of its ending.

    `own_columns`: the data set's own columns of a range of inputs, as Arrow arrays; those with the name of a column of
    predictions are left out, with a warning."""
    with atomic_write(path) as tmp:
        TABLE_WRITERS[path.suffix](tmp, _tables(columns, iter(predictions), own_columns))


def _tables(
    columns: PredictionColumns, predictions: "Iterator[Prediction]", own_columns: Callable[[int, int], JsonDict]
) -> Tables:
    import pyarrow as pa

    first = 0
    while part := list(islice(predictions, ROWS)):
        arrays, own = columns.arrays(part), own_columns(first, first + len(part))
        if first == 0 and (hidden := [name for name in own if name in arrays]):
            log.warning("predict: the data's own columns %s are left out: the table has these names", ", ".join(hidden))
        yield pa.table(arrays | {name: values for name, values in own.items() if name not in arrays})
        first += len(part)


def _encodable(text: str) -> str:
    """The text, with an escape for what UTF-8 does not have, such as names of files in other encodings."""
    return text.encode("utf-8", "backslashreplace").decode()


def _csv(path: Path, tables: Tables) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = next(tables)
        writer.writerow(head.column_names)
        for table in chain([head], tables):
            for row in table.to_pylist():
                writer.writerow([_plain(value) if isinstance(value, list) else value for value in row.values()])


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _jsonl(path: Path, tables: Tables) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(f"{_plain({name: _or_null(value) for name, value in row.items()})}\n" for row in table.to_pylist())


def _or_null(value: Any) -> Any:
    """JSON has no NaN, which in a table is a missing value, and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parquet(path: Path, tables: Tables) -> None:
    import pyarrow.parquet as pq

    head = next(tables)
    with pq.ParquetWriter(path, head.schema) as writer:
        for table in chain([head], tables):
            writer.write_table(table)


TABLE_WRITERS: dict[str, Callable[[Path, Tables], None]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
