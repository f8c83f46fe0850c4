"""Files of many examples as rows: parquet, jsonl, csv, tsv and tar."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data2vec.data.cache import cached
from data2vec.data.dataset import UNREADABLE, Row, Rows
from data2vec.data.sources.archives import read_archives, stream_archives
from data2vec.data.sources.columns import NoSignal
from data2vec.data.sources.formats import ARCHIVES, JSON_LINES, PARQUET, SignalKind
from data2vec.data.sources.library import (
    dataset_from_generator,
    dataset_from_table,
    is_in_cache,
    load_parquet,
    shuffled_stream,
)
from data2vec.data.sources.remote import file_version, require_file
from data2vec.data.sources.signals import to_signals
from data2vec.data.sources.splits import ALL, SplitChoice, listed
from data2vec.data.sources.tables import (
    ArrowTable,
    concat_tables,
    find_text_column,
    name_broken,
    read_json_lines,
    read_table,
    record_columns,
    refuse_text_as_header,
    rename_column,
    stream_json_lines,
)
from data2vec.errors import UserError, get_logger
from data2vec.settings import JsonDict
from data2vec.untrusted import Boundary

log = get_logger(__name__)


class Request(NamedTuple):
    """What is read, and how."""

    where: str
    """The dataset, for messages."""
    kind: SignalKind
    column: str | None = None
    """The column of the signal (`data.column`)."""
    label: str = "label"
    """The column that a stream of jsonl or tar keeps as `label`; without streaming all are kept."""
    streaming: bool = False
    follow_links: bool = False
    """Whether links and paths may lead outside of the dataset's folder (`data.follow_links`)."""

    @property
    def boundary(self) -> Boundary:
        """What the dataset may read: its folder, that of its file, or no local file."""
        path = Path(self.where.removeprefix("file://")).expanduser()
        folder = path if path.is_dir() else path.parent if path.exists() else None
        return Boundary(self.where, folder, self.follow_links or is_in_cache(path))  # where the user's own objects are saved


def read_shards(request: Request, endings: tuple[str, ...], files: Sequence[str], choice: SplitChoice) -> Rows:
    """The rows of files (paths or URLs) of one format. `choice`: the members of archives to read. Raises UserError."""
    where, kind, column, label, streaming, _ = request
    for file in files:
        if "://" not in file:
            require_file(file)
    if endings == PARQUET:
        rows = load_parquet(where, _versions(files, streaming), streaming)
        folders = {str(Path(file).parent) for file in files} if "://" not in files[0] else set()
        return to_signals(rows, kind, column, request.boundary, Path(folders.pop()) if len(folders) == 1 else None)
    if endings == ARCHIVES:
        arguments: JsonDict = {"archives": _versions(files, streaming), "kind": kind, "column": column, "choice": choice}
        signal = {"key": "string", kind: {"bytes": "binary", "path": "string", UNREADABLE: "string"}}
        return _read_archives(request, _features(signal), arguments)
    if endings == JSON_LINES:
        arguments = {"files": _versions(files, streaming), "column": find_text_column(files, column, where)}
        signal = {"text": "string", "path": "string"}
        if streaming:
            features = _features({**signal, "label": "string", "split": "string"})
            return dataset_from_generator(where, stream_json_lines, features, True, label=label, **arguments)
        rows = dataset_from_generator(where, read_json_lines, _features({**signal, "fields": "string"}), False, **arguments)
        return _with_fields(rows, kind)
    table, broken = _read_tables([Path(file) for file in files])
    if column is None:
        refuse_text_as_header(table.column_names, Path(files[0]))
    rows = to_signals(dataset_from_table(table), kind, column, request.boundary)
    rows = dataset_from_table(name_broken(rows.data.table, broken)) if broken else rows
    return shuffled_stream(rows) if streaming else rows


def _read_archives(request: Request, features: Mapping[str, Any], arguments: Mapping[str, Any]) -> Rows:
    where, kind, label = request.where, request.kind, request.label
    choice = arguments["choice"]
    nothing = NoSignal(
        f"{where}: no example in it can be read as {kind}{f' of split {choice.split}' if choice.split != ALL else ''}"
    )
    if request.streaming:
        features = {**features, **_features({"label": "string", "split": "string"})}
        rows = dataset_from_generator(where, stream_archives, features, True, label=label, **arguments)
        _refuse_without_content(next(iter(rows), None), kind, nothing)
        return rows
    from datasets import List, Value

    about = {"left_out": List(Value("string")), "in_split": Value("bool"), "beside_splits": Value("bool")}
    features = {**features, "fields": Value("string"), **about}
    try:
        rows = dataset_from_generator(where, read_archives, features, False, **arguments)
    except NoSignal:
        raise nothing from None
    _refuse_without_content(next((row for row in rows if row[kind]["bytes"] is not None), rows[0]), kind, nothing)
    if left_out := [name for names in rows["left_out"][:] for name in names]:
        log.warning("%s: members in no example, %d: %s", where, len(left_out), listed(left_out))
    in_split = np.array(rows["in_split"][:])
    if choice.split != ALL and any(rows["beside_splits"][:]) and not in_split.all():
        outside = rows.select(np.flatnonzero(~in_split))["key"][:]
        if len(outside) == len(rows):
            raise nothing
        message = (
            "%s: left out as they are in no folder that is named by a split, %d of %d members: %s; data.split=%s reads all"
        )
        log.warning(message, where, len(outside), len(rows), listed(outside), ALL)
        rows = rows.select(np.flatnonzero(in_split)).flatten_indices()
    return _with_fields(rows.remove_columns(list(about)), kind)


def _refuse_without_content(row: Row | None, kind: SignalKind, nothing: NoSignal) -> None:
    """Raise NoSignal for no row, and for one that stands for the damage of an archive."""
    if row is None:
        raise nothing
    if row[kind]["bytes"] is None:
        raise NoSignal(
            f"{row[kind]['path']}: {row[kind][UNREADABLE]}; no example can be read; copy or create the archive again"
        )


def _features(types: Mapping[str, Any]) -> dict[str, Any]:
    from datasets import Value

    return {name: Value(kind) if isinstance(kind, str) else _features(kind) for name, kind in types.items()}


def _versions(files: Sequence[str], streaming: bool) -> list[tuple[str, str]]:
    """Each file with its version, so that the library's cache, which is keyed by the arguments of a generator, notices
    changes."""
    return [(name, "" if streaming else file_version(name)) for name in files]


def _read_tables(files: Sequence[Path]) -> tuple[ArrowTable, dict[int, tuple[str, str | None]]]:
    """Text tables that have the same columns, as one; and (name, why it cannot be read) of their broken rows."""
    tables = [read_table(path) for path in files]
    first = tables[0].columns.column_names
    broken, start = dict[int, tuple[str, str | None]](), 0
    for table in tables:
        if set(names := table.columns.column_names) != set(first):
            raise UserError(
                f"{table.path} has columns {', '.join(names)}, but {files[0].name} has {', '.join(first)}; "
                "read them one by one, or make them alike"
            )
        broken |= {start + index: (table.name(index), why) for index, why in table.broken.items()}
        start += table.columns.num_rows
    return concat_tables([table.columns for table in tables], [path.name for path in files]), broken


def _with_fields(rows: Rows, kind: SignalKind) -> Rows:
    """The rows with a column for each key in `fields`, which is an object in JSON. They are kept in the cache,
    memory-mapped."""
    import pyarrow as pa

    def write(file: Any) -> None:
        table = record_columns(json.loads(fields.as_py()) for fields in rows.data.column("fields"))
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    columns = pa.ipc.open_file(pa.memory_map(str(cached(f"columns-{rows._fingerprint}.arrow", write)))).read_all()
    columns, table = rename_column(columns, kind), rows.data.table.drop_columns(["fields"])
    for name in columns.column_names:
        if name in table.column_names:  # `path` or `key`, which data may have itself
            table = table.drop_columns([name])
        table = table.append_column(name, columns[name])
    return dataset_from_table(table, f"{rows._fingerprint}-fields")
