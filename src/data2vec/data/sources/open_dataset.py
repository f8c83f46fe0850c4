"""Open a dataset, wherever it is: a folder, a file, a URL or a dataset on the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data2vec.data.dataset import Rows
from data2vec.data.sources.archives import read_archives
from data2vec.data.sources.formats import (
    ARCHIVES,
    JSON_LINES,
    MEDIA,
    PARQUET,
    TEXT_TABLES,
    SignalKind,
    count_endings,
    formats_for,
    with_ending,
)
from data2vec.data.sources.hub import hub_name, no_such_path
from data2vec.data.sources.library import dataset_from_generator, error_reason, load_library_dataset, shuffled_stream
from data2vec.data.sources.local import list_files, media_rows
from data2vec.data.sources.remote import file_version, list_remote_files
from data2vec.data.sources.splits import files_of_split
from data2vec.data.sources.tables import TEXT_COLUMNS, read_json_lines, table_rows
from data2vec.errors import UserError


def open_dataset(path: str, kind: SignalKind, split: str = "train", streaming: bool = False) -> Rows:
    """The rows of a dataset: a `datasets.Dataset`, memory-mapped or of file paths; with `streaming` an `IterableDataset`.

    `path` is a folder, a file (parquet, tar, jsonl, tsv, csv or a single media file), a URL of parquet, tar or jsonl that
    fsspec can read, or "hf://owner/name" or "hf://owner/name:config" on the hub. `split` is used where there are several.
    Signals are in column `audio` or `image` as {"bytes", "path"}, not decoded; texts in `text`, as a string, or as {"bytes",
    "path"} for files. Classes are in `label`. Other columns are kept. Nothing is written next to the data; Arrow copies go to
    the cache of the `datasets` library.

    Raises UserError when there is no such dataset, or nothing of this kind in it."""
    local = Path(path.removeprefix("file://")).expanduser()
    if local.exists():
        rows = _open_local(local, kind, split, streaming)
    elif (hub := hub_name(path, "dataset")) is not None:
        name, _, config = hub.partition(":")
        rows = load_library_dataset(path, name, config or None, split=split, streaming=streaming)
    elif "://" in path:
        rows = _open_remote(path, kind, split, streaming)
    else:
        raise no_such_path(path)
    return _rename_signal_column(rows, kind, path)


def _open_local(path: Path, kind: SignalKind, split: str, streaming: bool) -> Rows:
    folder, files = list_files(path, split) if path.is_dir() else (path.parent, [path])
    for endings in formats_for(kind):
        matching = [p for p in files if p.name.lower().endswith(endings)]
        if endings in (TEXT_TABLES, JSON_LINES):
            matching = [p for p in matching if p.parent == folder and p.name != "metadata.csv"]
        if not matching:
            continue
        if endings == MEDIA[kind]:
            rows = media_rows(folder, matching, kind, path.is_dir())
            return shuffled_stream(rows) if streaming else rows
        names = [p.as_posix() for p in matching]
        names = files_of_split(names, split) if path.is_dir() else names
        if endings == TEXT_TABLES:
            rows = table_rows([Path(name) for name in names])
            return shuffled_stream(rows) if streaming else rows
        return _open_shards(str(path), endings, names, kind, streaming)
    raise _nothing_found(str(path), kind, formats_for(kind), [p.name for p in files])


def _open_remote(url: str, kind: SignalKind, split: str, streaming: bool) -> Rows:
    formats = tuple(endings for endings in formats_for(kind) if endings in (PARQUET, JSON_LINES, ARCHIVES))
    files = list_remote_files(url, split, tuple(ending for endings in formats for ending in endings))
    for endings in formats:
        if matching := with_ending(files, endings):
            matching = matching if url.lower().endswith(endings) else files_of_split(matching, split)
            return _open_shards(url, endings, matching, kind, streaming)
    raise _nothing_found(url, kind, formats, files)


def _open_shards(path: str, endings: tuple[str, ...], files: Sequence[str], kind: SignalKind, streaming: bool) -> Rows:
    if endings == PARQUET:
        return load_library_dataset(path, "parquet", data_files=list(files), split="train", streaming=streaming)
    # The library's cache is keyed by these arguments, so they include the version of each file.
    versions = [(name, "" if streaming else file_version(name)) for name in files]
    if endings == JSON_LINES:
        return dataset_from_generator(path, read_json_lines, streaming, files=versions)
    return dataset_from_generator(path, read_archives, streaming, archives=versions, kind=kind)


def _nothing_found(path: str, kind: SignalKind, formats: Sequence[tuple[str, ...]], files: Sequence[str]) -> UserError:
    endings = " ".join(ending for endings in formats for ending in endings)
    return UserError(f"{path}: no {kind} found; searched for {endings}; found {count_endings(files)}")


def _rename_signal_column(rows: Rows, kind: SignalKind, path: str) -> Rows:
    """Rename the column that holds the signal to `kind`, and turn decoding by the library off."""
    from datasets import Audio, Image, Value

    if rows.features is None:
        try:
            rows = rows._resolve_features()
        except StopIteration:
            raise UserError(f"{path}: no example in it can be read as {kind}") from None
        except (ValueError, OSError) as error:
            raise UserError(error_reason(path, error)) from None
    features = rows.features or {}
    media: Any = {"audio": Audio, "image": Image}.get(kind)
    if kind == "text":
        columns = [name for name in TEXT_COLUMNS if name in features]
        columns += [name for name, feature in features.items() if feature == Value("string") and name != "path"]
    else:
        columns = [name for name, feature in features.items() if isinstance(feature, media)]
        columns += [name for name in (kind, "bytes") if name in features]
        columns += [name for name, feature in features.items() if feature == Value("binary")]
    if not columns:
        raise UserError(f"{path}: no column holds {kind}; the columns are {', '.join(features) or 'none'}")
    if columns[0] != kind:
        rows = rows.rename_column(columns[0], kind)
    for name, feature in rows.features.items():
        if isinstance(feature, Audio | Image):
            rows = rows.cast_column(name, type(feature)(decode=False))
        elif name == kind != "text" and isinstance(feature, Value):  # bytes, or the path of a file
            rows = rows.cast_column(name, media(decode=False))
    return rows
