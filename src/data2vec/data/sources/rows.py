"""Where data comes from: a folder, a table, parquet, tar shards or a hub data set, all as rows of the `datasets` library."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data2vec.data.sources.archives import read_lines, read_shards
from data2vec.data.sources.local import class_names, files_of, inventory, of_split, read_table
from data2vec.data.sources.remote import files_at, stamp
from data2vec.errors import UserError

Kind = Literal["audio", "image", "text"]

SUFFIXES: dict[str, tuple[str, ...]] = {
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".opus"),
    "image": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga", ".ico", ".pcx"),
    ),
    "text": (".txt",),
}
TEXT_COLUMNS = ("text", "sentence", "sentence1", "content", "document")
ARCHIVES = (".tar", ".tgz", ".tar.gz")
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


def open_rows(where: str, kind: Kind, split: str = "train", streaming: bool = False) -> Any:
    """The rows of a data set: a `datasets.Dataset`, memory-mapped or of paths; or with `streaming` an `IterableDataset`.

    `where` is a folder, a file (parquet, tar, jsonl, tsv, csv, or one of the signals themselves), an address of parquet, tar
    or jsonl that fsspec knows, or "owner/name" or "owner/name:config" on the hub. Of a folder or data set with splits,
    `split` is taken. Signals are in column `audio` or `image` as {"bytes", "path"}, not decoded; texts in `text`, as a
    string, or for files as {"bytes", "path"}. Classes are in `label`. Other columns are kept. Nothing is written beside the
    data; Arrow copies go to the library's own cache.

    Raises UserError when there is nothing there, or nothing of this kind."""
    path = Path(where.removeprefix("file://")).expanduser()
    if path.exists():
        rows = _local(path, kind, split, streaming)
    elif "://" in where:
        rows = _remote(where, kind, split, streaming)
    elif _HUB.fullmatch(where):
        rows = _load(where, where.partition(":")[0], where.partition(":")[2] or None, split=split, streaming=streaming)
    else:
        raise UserError(f"{where}: there is no such folder or file (a hub data set is written owner/name)")
    return _standard(rows, kind, where)


def label(rows: Any, index: int, column: str) -> Any:
    """The value of `column` in row `index`; a class as its name. Raises UserError for a column that is not there."""
    if isinstance(rows, list):
        known, names = rows[index], None
    else:
        known, names = rows.features, getattr(rows.features.get(column), "names", None)
    if column not in known:
        raise UserError(f"there is no column {column!r} in the data, only {', '.join(known)}")
    value = rows[index][column] if isinstance(rows, list) else rows[column][index]
    return names[value] if names and value is not None and value >= 0 else value


def _local(path: Path, kind: Kind, split: str, streaming: bool) -> Any:
    folder, files = files_of(path, split) if path.is_dir() else (path.parent, [path])
    for form in _forms(kind):
        fitting = [p for p in files if p.name.lower().endswith(form)]
        if form in ((".tsv", ".csv"), (".jsonl",)):
            fitting = [p for p in fitting if p.parent == folder and p.name != "metadata.csv"]
        if not fitting:
            continue
        if form == SUFFIXES[kind]:
            return _streamed(_files(folder, fitting, kind, path.is_dir()), streaming)
        names = [p.as_posix() for p in fitting]
        names = of_split(names, split) if path.is_dir() else names
        if form == (".tsv", ".csv"):
            return _streamed(_tables([Path(name) for name in names]), streaming)
        return _shards(str(path), form, names, kind, streaming)
    raise _nothing(str(path), kind, _forms(kind), [p.name for p in files])


def _remote(where: str, kind: Kind, split: str, streaming: bool) -> Any:
    forms = tuple(form for form in _forms(kind) if form in ((".parquet",), (".jsonl",), ARCHIVES))
    files = files_at(where, split, tuple(ending for form in forms for ending in form))
    for form in forms:
        if fitting := [name for name in files if name.lower().endswith(form)]:
            fitting = fitting if where.lower().endswith(form) else of_split(fitting, split)
            return _shards(where, form, fitting, kind, streaming)
    raise _nothing(where, kind, forms, files)


def _shards(where: str, form: tuple[str, ...], files: Sequence[str], kind: Kind, streaming: bool) -> Any:
    if form == (".parquet",):
        return _load(where, "parquet", data_files=list(files), split="train", streaming=streaming)
    # The library's cache of indexed data goes by what is given here.
    stamped = [(name, "" if streaming else stamp(name)) for name in files]
    if form == (".jsonl",):
        return _generate(where, read_lines, streaming, files=stamped)
    return _generate(where, read_shards, streaming, shards=stamped, kind=kind, suffixes=SUFFIXES[kind])


def _nothing(where: str, kind: Kind, forms: Sequence[tuple[str, ...]], files: Sequence[str]) -> UserError:
    looked = " ".join(suffix for form in forms for suffix in form)
    return UserError(f"{where}: nothing here to read as {kind}; looked for {looked}; found {inventory(files)}")


def _forms(kind: Kind) -> tuple[tuple[str, ...], ...]:
    """The endings to look for, in this order; the first form that is there is taken."""
    if kind == "text":
        return (".parquet",), (".jsonl",), (".tsv", ".csv"), SUFFIXES["text"], ARCHIVES
    return SUFFIXES[kind], (".parquet",), ARCHIVES


def _files(folder: Path, files: Sequence[Path], kind: Kind, whole: bool) -> Any:
    """Rows of paths. The library's own folder builders would hash and copy every file."""
    import pyarrow as pa
    from datasets import Dataset

    columns: dict[str, list[Any]] = {}
    table = folder / "metadata.csv"
    if whole and table.is_file():
        columns = read_table(table, keep=("file_name", "transcript", "text"))
        if "file_name" not in columns:
            raise UserError(f"{table} has no column file_name, only {', '.join(columns)}")
        files = [folder / name for name in columns.pop("file_name")]
    elif whole and (names := class_names(folder, files)):
        columns = {"label": names}
    paths = pa.array([str(path) for path in files], pa.string())
    signal = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
    return Dataset(pa.table({kind: signal} | {name: pa.array(values) for name, values in columns.items() if name != kind}))


def _tables(files: Sequence[Path]) -> Any:
    from datasets import Dataset

    first, *others = [read_table(path, keep=(*TEXT_COLUMNS, "sentence2")) for path in files]
    for path, table in zip(files[1:], others, strict=True):
        if list(table) != list(first):
            raise UserError(f"{path} has columns {', '.join(table)}, but {files[0].name} has {', '.join(first)}")
        first = {name: values + table[name] for name, values in first.items()}
    return Dataset.from_dict(first)


def _streamed(rows: Any, streaming: bool) -> Any:
    """In random order, so that what is sorted by class, or broken in one corner, is mixed; in many small shards."""
    from datasets import Dataset

    if not streaming:
        return rows
    mixed = Dataset(rows.data.table.take(np.random.default_rng(0).permutation(len(rows))))
    return mixed.to_iterable_dataset(num_shards=max(1, min(1024, len(rows) // 8)))


def _generate(where: str, function: Any, streaming: bool, **arguments: Any) -> Any:
    from datasets import Dataset, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    if streaming:
        return IterableDataset.from_generator(function, gen_kwargs=arguments)
    try:
        return Dataset.from_generator(function, gen_kwargs=arguments)
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(_reason(where, error)) from None


def _load(where: str, *arguments: Any, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return load_dataset(*arguments, **options)
    except DatasetNotFoundError:
        raise UserError(f"{where}: there is no such folder or file, and no such data set on the hub") from None
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(_reason(where, error)) from None


def _reason(where: str, error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) if isinstance(cause, UserError) else f"{where} cannot be read: {' '.join(str(cause).split())[:300]}"


def _standard(rows: Any, kind: Kind, where: str) -> Any:
    """The signal in its column, undecoded."""
    from datasets import Audio, Image, Value

    if rows.features is None:
        try:
            rows = rows._resolve_features()
        except StopIteration:
            raise UserError(f"{where}: nothing in it can be read as {kind}") from None
        except (ValueError, OSError) as error:
            raise UserError(_reason(where, error)) from None
    features = rows.features or {}
    media: Any = {"audio": Audio, "image": Image}.get(kind)
    if kind == "text":
        texts = [name for name in TEXT_COLUMNS if name in features]
        texts += [name for name, feature in features.items() if feature == Value("string") and name != "path"]
    else:
        texts = [name for name, feature in features.items() if isinstance(feature, media)]
        texts += [name for name in (kind, "bytes") if name in features]
        texts += [name for name, feature in features.items() if feature == Value("binary")]
    if not texts:
        raise UserError(f"{where}: no column holds {kind}; the columns are {', '.join(features) or 'none'}")
    if texts[0] != kind:
        rows = rows.rename_column(texts[0], kind)
    for name, feature in rows.features.items():
        if isinstance(feature, Audio | Image):
            rows = rows.cast_column(name, type(feature)(decode=False))
        elif name == kind != "text" and isinstance(feature, Value):  # bytes, or the path of a file
            rows = rows.cast_column(name, media(decode=False))
    return rows
