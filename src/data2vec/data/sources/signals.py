"""The signal of each row in one form: column `audio` or `image` as {"bytes", "path"}, undecoded; decoded audio as {"array",
"sampling_rate"}; column `text` as a string. What cannot be read has a name, and says why (`UNREADABLE`)."""

import os
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.data.dataset import UNREADABLE, Row, Rows
from data2vec.data.sources.columns import KNOWN_COLUMNS, find_column
from data2vec.data.sources.formats import MEDIA, SignalKind
from data2vec.data.sources.library import dataset_from_table, error_reason
from data2vec.data.sources.local import TRIED_PATHS, base_folder
from data2vec.data.sources.tables import PEEKED_ROWS, name_broken
from data2vec.errors import UserError
from data2vec.untrusted import Boundary

ROW, PLACE = "data2vec_row", "place"
"""The column that says of rows which cannot be read, or have an empty cell, where they are (`PLACE`) and why (`UNREADABLE`)."""
EMPTY = "it is empty: there is neither content nor a path"


def to_signals(rows: Rows, kind: SignalKind, column: str | None, boundary: Boundary, folder: Path | None = None) -> Rows:
    """Rename the column that holds the signal to `kind`, and bring it into one form.

    `column`: its name (`data.column`). `boundary`: of the dataset. `folder`: what relative paths in it are relative to. Raises
    UserError if there is no such column, if several can be it, for paths that lead outside, and if there is nothing but
    URLs. Column `ROW` is removed."""
    from datasets import Audio, Image

    where = boundary.where
    if rows.features is None:
        try:
            rows = rows._resolve_features()
        except StopIteration:
            raise UserError(f"{where}: it has no rows") from None
        except (ValueError, OSError) as error:
            raise UserError(error_reason(where, error)) from None
    columns = [name for name in rows.features or () if name != ROW]
    forms = {name: form for name in columns if (form := _form(rows.features[name], kind))}
    if column is None:
        forms = _likely(forms, kind, rows, folder)
    chosen = find_column(forms, kind, column, where, columns)
    for name, feature in rows.features.items():
        if isinstance(feature, Audio | Image):
            rows = rows.cast_column(name, type(feature)(decode=False))
    if not hasattr(rows, "__len__"):
        return _converted_stream(rows, chosen, forms[chosen], kind, boundary, folder)
    rows, about = rows if rows._indices is None else rows.flatten_indices(), None
    if ROW in rows.column_names:
        about, rows = rows.data.table[ROW], rows.remove_columns(ROW)
    if chosen != kind:
        rows = rows.rename_column(kind, f"original_{kind}") if kind in rows.features else rows
        rows = rows.rename_column(chosen, kind)
    return _replace_signal(rows, kind, forms[chosen], boundary, folder, about)


def _form(feature: Any, kind: SignalKind) -> str | None:
    """How a column can hold the signal: text; signal, {"bytes", "path"}; decoded, {"array", "sampling_rate"}; bytes; or
    path."""
    from datasets import Audio, Image, Value

    if isinstance(feature, Value):
        if "string" in feature.dtype:
            return "text" if kind == "text" else "path"
        return "bytes" if "binary" in feature.dtype else None
    if isinstance(feature, {"audio": Audio, "image": Image}.get(kind, ())):
        return "signal"
    keys = set(feature) if isinstance(feature, dict) else set()
    if keys >= {"bytes", "path"}:
        return "signal"
    return "decoded" if keys >= {"array", "sampling_rate"} and kind == "audio" else None


def _likely(forms: dict[str, str], kind: SignalKind, rows: Rows, folder: Path | None) -> dict[str, str]:
    """The columns that are taken for the signal if none is named: content before paths, and no column of another kind."""
    if kind == "text":
        return {name: form for name, form in forms.items() if form == "text" or name in KNOWN_COLUMNS["text"]}
    of_others = {name for other in KNOWN_COLUMNS if other != kind for name in KNOWN_COLUMNS[other]} - {*KNOWN_COLUMNS[kind]}
    content = {name: form for name, form in forms.items() if form != "path" and name not in of_others}
    if not forms or any(name in KNOWN_COLUMNS[kind] or form != "bytes" for name, form in content.items()):
        return content
    first = _first_values(rows, list(forms))
    paths = {name: form for name, form in forms.items() if str(first.get(name)).lower().endswith(MEDIA[kind])}
    if not content:
        return paths
    # Bytes under an unknown name may be anything, such as a hash: files under a known name are certain, if they are there.
    known = {name: form for name, form in paths.items() if name in KNOWN_COLUMNS[kind] and _is_file(first[name], folder)}
    return known or content


def _first_values(rows: Rows, columns: list[str]) -> Row:
    """The first value of each column in the first rows that have any."""
    found: Row = {}
    some = (row for row in rows.select_columns(columns) if any(value is not None for value in row.values()))
    for row in islice(some, PEEKED_ROWS):
        found = {name: value for name, value in row.items() if value is not None} | found
        if len(found) == len(columns):
            break
    return found


def _is_file(path: str, folder: Path | None) -> bool:
    return (
        (base_folder(folder, [path]) / path).is_file() if folder is not None else os.path.isabs(path) and Path(path).is_file()
    )


def _signal_feature() -> dict[str, Any]:
    from datasets import Value

    return {"bytes": Value("binary"), "path": Value("string"), UNREADABLE: Value("string")}


def _converted_stream(rows: Rows, chosen: str, form: str, kind: SignalKind, boundary: Boundary, folder: Path | None) -> Rows:
    from datasets import Audio, Features, Image, Value

    if form == "text" and chosen == kind and ROW not in rows.features:
        return rows
    if form == "path":
        _refuse_if_nothing_is_here((row[chosen] for row in rows.select_columns(chosen)), boundary.where, folder)
    features = {f"original_{kind}" if name == kind != chosen else name: each for name, each in rows.features.items()}
    kept = features.pop(chosen)
    features.pop(ROW, None)
    if form == "text":
        if not isinstance(features.get("path", Value("string")), Value):
            features["original_path"] = features.pop("path")
        features = {kind: kept, **features, "path": Value("string"), UNREADABLE: Value("string")}
    elif form == "decoded":
        features = {kind: {**kept, "path": Value("string"), UNREADABLE: Value("string")}, **features}
    else:
        features = {kind: _signal_feature(), **features}
    # The library would encode columns of its types Audio and Image anew, which needs other packages.
    features = {name: _signal_feature() if isinstance(each, Audio | Image) else each for name, each in features.items()}
    removed = list({chosen, kind, ROW} & {*rows.features} - {*features})
    convert = partial(_convert_row, chosen=chosen, form=form, kind=kind, boundary=boundary, folder=folder)
    return rows.map(convert, features=Features(features), remove_columns=removed)


def _convert_row(row: Row, chosen: str, form: str, kind: SignalKind, boundary: Boundary, folder: Path | None) -> Row:
    found = {f"original_{kind}": row[kind]} if kind in row and kind != chosen else {}
    value, about = row[chosen], row.get(ROW) or {}
    place, reason = about.get(PLACE) or f"{boundary.where}, a row", about.get(UNREADABLE)
    if form == "text":
        path = row.get("path")
        if path is not None and not isinstance(path, str):
            found["original_path"], path = path, None
        return found | {kind: value, "path": place if value is None else path, UNREADABLE: reason}
    if form == "decoded":
        if value is None or value["array"] is None:
            return found | {kind: {**dict.fromkeys(value or ()), "path": place, UNREADABLE: reason or EMPTY}}
        return found | {kind: {"path": None, UNREADABLE: None, **value}}
    if form == "bytes":
        value = {"bytes": value, "path": None}
    elif form == "path":
        value = {"bytes": None, "path": value}
    content, path = (value["bytes"], value["path"]) if value is not None else (None, None)
    if content is None:
        base = None if folder is None or not path else base_folder(folder, [path])
        path, reason = _locate(path, place, reason, base)
        if reason is None:
            boundary.require([path], "paths")
    return found | {kind: {"bytes": content, "path": path, UNREADABLE: reason}}


def _locate(path: str | None, place: str, reason: str | None, folder: Path | None) -> tuple[str, str | None]:
    """The file that a row without content names, and None; or the name of what cannot be read, and why.

    `place`: of the row; `reason`: why it cannot be read, if that is known; `folder`: what paths are relative to."""
    if reason is not None or not path:
        return place, reason or EMPTY
    if "://" in path:
        return path, "a URL, not a file; download it, or save its content in the table"
    if folder is None and not Path(path).is_absolute():
        return path, "a path that is relative to no folder here; save the content of the file in the table"
    return path if folder is None else str(folder / path), None


def _refuse_if_nothing_is_here(paths: Iterable[str | None], where: str, folder: Path | None) -> None:
    """Raise UserError if all of the first rows with a path name a URL, or a path that is relative to no folder here."""
    reason = first = None
    for path in islice(filter(None, paths), PEEKED_ROWS):
        first = first or path
        if (reason := _locate(path, where, None, folder)[1]) is None:
            return
    if first is not None:
        raise UserError(f"{where} names its files by paths such as {first}, {reason}")


def _replace_signal(rows: Rows, kind: SignalKind, form: str, boundary: Boundary, folder: Path | None, about: Any) -> Rows:
    """Without a copy of the content, which stays where it is, memory-mapped. `about`: the column `ROW`, if there was one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.data.table
    column = table[kind]
    paths: list[str | None] = [None] * len(rows)
    content = pc.struct_field(column, "array") if form == "decoded" else column
    if form == "signal":
        content, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path").to_pylist()
    elif form == "path":
        content, paths = pa.chunked_array([pa.nulls(len(rows), pa.binary())]), column.to_pylist()
    empty = np.flatnonzero(pc.is_null(content).to_numpy()).tolist()
    if form in ("text", "decoded", "signal") and not empty:
        return rows
    marks = [{}] * len(empty) if about is None else [mark or {} for mark in about.take(pa.array(empty, pa.int64())).to_pylist()]
    base = None if folder is None else base_folder(folder, [path for path in paths[:TRIED_PATHS] if path])
    found: dict[int, tuple[str, str | None]] = {}
    for index, mark in zip(empty, marks, strict=True):
        place = mark.get(PLACE) or f"{boundary.where}, row {index + 1}"
        found[index] = _locate(paths[index], place, mark.get(UNREADABLE), base)
    if form == "text":
        return dataset_from_table(name_broken(table, found))
    if len(empty) == len(rows):
        _refuse_if_nothing_is_here(paths, boundary.where, base)
    # Of all at once, as most are in the same folders.
    boundary.require((path for path, reason in found.values() if reason is None), "paths")
    reasons: list[str | None] = [None] * len(rows)
    for index, (path, reason) in found.items():
        paths[index], reasons[index] = path, reason
    parts = {"path": paths, UNREADABLE: reasons}
    chunks, start = [], 0
    for chunk in (column if form == "decoded" else content).chunks:
        if form == "decoded":
            arrays = {field.name: values for field, values in zip(chunk.type, chunk.flatten(), strict=True)}
        else:
            arrays = {"bytes": chunk}
        arrays |= {name: pa.array(values[start : start + len(chunk)], pa.string()) for name, values in parts.items()}
        chunks.append(pa.StructArray.from_arrays([*arrays.values()], [*arrays]))
        start += len(chunk)
    replaced = table.set_column(table.column_names.index(kind), kind, pa.chunked_array(chunks))
    return dataset_from_table(replaced, f"{rows._fingerprint}-{kind}")
