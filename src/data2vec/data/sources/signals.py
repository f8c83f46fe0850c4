"""The signal of each row in one form: column `audio` or `image` as {"bytes", "path"}, undecoded; decoded audio as {"array",
"sampling_rate"}; column `text` as a string."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.data.dataset import Row, Rows
from data2vec.data.sources.columns import KNOWN_COLUMNS, find_column
from data2vec.data.sources.formats import MEDIA, SignalKind
from data2vec.data.sources.library import dataset_from_table, error_reason
from data2vec.data.sources.local import TRIED_PATHS, base_folder
from data2vec.errors import UserError
from data2vec.untrusted import Boundary


def to_signals(rows: Rows, kind: SignalKind, column: str | None, boundary: Boundary, folder: Path | None = None) -> Rows:
    """Rename the column that holds the signal to `kind`, and bring it into one form.

    `column`: its name (`data.column`). `boundary`: of the dataset. `folder`: what relative paths in it are relative to. Raises
    UserError if there is no such column, if several can be it, and for paths that lead outside."""
    from datasets import Audio, Image

    where = boundary.where
    if rows.features is None:
        try:
            rows = rows._resolve_features()
        except StopIteration:
            raise UserError(f"{where}: it has no rows") from None
        except (ValueError, OSError) as error:
            raise UserError(error_reason(where, error)) from None
    forms = {name: form for name, feature in (rows.features or {}).items() if (form := _form(feature, kind))}
    if column is None:
        forms = _likely(forms, kind, rows, folder)
    chosen = find_column(forms, kind, column, where, rows.features or {})
    for name, feature in rows.features.items():
        if isinstance(feature, Audio | Image):
            rows = rows.cast_column(name, type(feature)(decode=False))
    if not hasattr(rows, "__len__"):
        return _converted_stream(rows, chosen, forms[chosen], kind, boundary, folder)
    if chosen != kind:
        rows = rows.rename_column(kind, f"original_{kind}") if kind in rows.features else rows
        rows = rows.rename_column(chosen, kind)
    if forms[chosen] in ("text", "decoded"):
        return rows
    return _replace_signal(rows if rows._indices is None else rows.flatten_indices(), kind, forms[chosen], boundary, folder)


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
    first: Row = next(iter(rows.select_columns(list(forms))), {})
    paths = {name: form for name, form in forms.items() if str(first.get(name)).lower().endswith(MEDIA[kind])}
    if not content:
        return paths
    # Bytes under an unknown name may be anything, such as a hash: files under a known name are certain, if they are there.
    known = {name: form for name, form in paths.items() if name in KNOWN_COLUMNS[kind] and _is_file(first[name], folder)}
    return known or content


def _is_file(path: str, folder: Path | None) -> bool:
    return (
        (base_folder(folder, [path]) / path).is_file() if folder is not None else os.path.isabs(path) and Path(path).is_file()
    )


def _signal_feature() -> dict[str, Any]:
    from datasets import Value

    return {"bytes": Value("binary"), "path": Value("string")}


def _converted_stream(rows: Rows, chosen: str, form: str, kind: SignalKind, boundary: Boundary, folder: Path | None) -> Rows:
    from datasets import Audio, Features, Image

    if form in ("text", "decoded") and chosen == kind:
        return rows
    features = {f"original_{kind}" if name == kind != chosen else name: each for name, each in rows.features.items()}
    kept = features.pop(chosen)
    features = {kind: kept if form in ("text", "decoded") else _signal_feature(), **features}
    # The library would encode columns of its types Audio and Image anew, which needs other packages.
    features = {name: _signal_feature() if isinstance(each, Audio | Image) else each for name, each in features.items()}
    removed = list({chosen, kind} & {*rows.features} - {*features})
    convert = partial(_convert_row, chosen=chosen, form=form, kind=kind, boundary=boundary, folder=folder)
    return rows.map(convert, features=Features(features), remove_columns=removed)


def _convert_row(row: Row, chosen: str, form: str, kind: SignalKind, boundary: Boundary, folder: Path | None) -> Row:
    found = {f"original_{kind}": row[kind]} if kind in row and kind != chosen else {}
    value = row[chosen]
    if form in ("text", "decoded"):
        return found | {kind: value}
    if form == "bytes":
        value = {"bytes": value, "path": None}
    elif form == "path":
        value = {"bytes": None, "path": value}
    content, path = (value["bytes"], value["path"]) if value is not None else (None, None)
    if content is None:
        base = None if folder is None or not path else base_folder(folder, [path])
        if path:
            path = _local_path(path, boundary.where, base)
            boundary.require([path], "paths")
        else:
            path = f"{boundary.where}, a row that is empty"
    return found | {kind: {"bytes": content, "path": path}}


def _local_path(path: str, where: str, folder: Path | None) -> str:
    """The file that a row names. Raises UserError for the URL of a file, or a relative path in data that is not local."""
    if "://" in path:
        raise UserError(f"{where} names files by URLs, such as {path}; download them, or save their content in the table")
    if folder is None and not Path(path).is_absolute():
        raise UserError(
            f"{where} names files by paths, such as {path}, that are relative to no folder here; save their content in it"
        )
    return path if folder is None else str(folder / path)


def _replace_signal(rows: Rows, kind: SignalKind, form: str, boundary: Boundary, folder: Path | None) -> Rows:
    """Without a copy of the content, which stays where it is, memory-mapped."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.data.table
    paths: list[str | None] = [None] * len(rows)
    content = column = table[kind]
    if form == "signal":
        content, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path").to_pylist()
    elif form == "path":
        content, paths = pa.chunked_array([pa.nulls(len(rows), pa.binary())]), column.to_pylist()
    empty = np.flatnonzero(pc.is_null(content).to_numpy())
    if form == "signal" and not len(empty):
        return rows
    base = None if folder is None else base_folder(folder, [path for path in paths[:TRIED_PATHS] if path])
    found = {index: _local_path(path, boundary.where, base) for index in empty.tolist() if (path := paths[index])}
    boundary.require(found.values(), "paths")  # of all at once, as most are in the same folders
    for index in empty.tolist():
        paths[index] = found.get(index) or f"{boundary.where}, row {index + 1}, which is empty"
    chunks, start = [], 0
    for chunk in content.chunks:
        names = pa.array(paths[start : start + len(chunk)], pa.string())
        chunks.append(pa.StructArray.from_arrays([chunk, names], ["bytes", "path"]))
        start += len(chunk)
    replaced = table.set_column(table.column_names.index(kind), kind, pa.chunked_array(chunks))
    return dataset_from_table(replaced, f"{rows._fingerprint}-{kind}")
