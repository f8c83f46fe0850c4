"""Tables of predictions: csv, jsonl and parquet, a part at a time, in bounded memory.

One row per input: `name`; `prediction`; `probability`; with more than one of the most probable labels `top_labels` and
`top_probabilities`; `error`; then the data set's own text and number columns.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data2vec.atomic_io import atomic_write
from data2vec.errors import get_logger
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.settings import JsonDict
from data2vec.tasks.extraction.decode import NAMED
from data2vec.tasks.shares import ShardFolder, Share

if TYPE_CHECKING:
    from data2vec.tasks.prediction.predict import Prediction

log = get_logger(__name__)
ROWS = 1024
"""Rows that are read and written at a time."""
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


def write_table(path: Path, tables: Iterable[Any], own_columns: Callable[[int, int], JsonDict]) -> None:
    """Write the file atomically, in the format of its ending.

    `tables`: those of the predictions for all inputs, in order. `own_columns`: the data set's own columns of a range of inputs,
    as Arrow arrays; those with the name of a column of predictions are left out, with a warning."""
    with atomic_write(path) as tmp:
        TABLE_WRITERS[path.suffix](tmp, _with_own_columns(tables, own_columns))


def _with_own_columns(tables: Iterable[Any], own_columns: Callable[[int, int], JsonDict]) -> Tables:
    first = 0
    for table in tables:
        own = own_columns(first, first + len(table))
        if first == 0 and (hidden := [name for name in own if name in table.column_names]):
            log.warning("predict: the data's own columns %s are left out: the table has these names", ", ".join(hidden))
        for name in [name for name in own if name not in table.column_names]:
            table = table.append_column(name, own[name])
        yield table
        first += len(table)


class PredictionShards(ShardFolder["list[Prediction]"]):
    """The shards of a table of predictions, each a table without the data set's own columns."""

    def __init__(self, folder: Path, num_inputs: int, share: Share, columns: PredictionColumns):
        super().__init__(folder, ".parquet", num_inputs, share)
        self.columns = columns

    def write(self, path: Path, parts: "list[list[Prediction]]") -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(self.columns.arrays(list(chain.from_iterable(parts)))), path)

    def tables(self) -> Iterator[Any]:
        """The tables in order, of at most ROWS rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS):
                    yield pa.Table.from_batches([batch])

    def unreadable(self) -> tuple[list[str], int]:
        """ "name: reason" of the first NAMED inputs without a prediction, in order, and the number of all of them."""
        import pyarrow.parquet as pq

        found, count = list[str](), 0
        for path in self.files:
            table = pq.read_table(path, columns=["name", "error"], filters=[("error", "!=", "")])
            found += [f"{row['name']}: {row['error']}" for row in table.slice(0, max(0, NAMED - count)).to_pylist()]
            count += len(table)
        return found, count


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
