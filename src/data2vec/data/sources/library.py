"""The `datasets` library: its calls, with errors as `UserError`s, the folders that it saves, and datasets in memory."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.atomic_io import atomic_dir
from data2vec.data.cache import cache_folder
from data2vec.data.dataset import UNREADABLE, Row, Rows
from data2vec.data.sources.columns import NoSignal
from data2vec.errors import UserError
from data2vec.untrusted import Boundary, read_json

_SPLIT_NAME = re.compile(r"\w[\w.-]*")


def load_library_dataset(path: str, *arguments: Any, **options: Any) -> Any:
    """`datasets.load_dataset(*arguments, **options)`; `path` is what the user asked for. Raises UserError."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return load_dataset(*arguments, **options)
    except DatasetNotFoundError:
        raise UserError(f"{path}: there is no such dataset on the hub") from None
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(error_reason(path, error)) from None


def load_parquet(path: str, files: Sequence[tuple[str, str]], streaming: bool) -> Rows:
    """The rows of parquet files, given as (path or URL, version), as `parquet.builder.ParquetRows`: indexed in the library's
    cache or streamed. Raises UserError, also if no row can be read."""
    import pyarrow.compute as pc
    from datasets.exceptions import DatasetGenerationError

    from data2vec.data.sources.parquet.builder import ROW, ParquetRows, parquet_features

    features = parquet_features(path, [file for file, _ in files])
    builder = ParquetRows(files=tuple(files), features=features)
    if streaming:
        return builder.as_streaming_dataset("train")
    try:
        builder.download_and_prepare()
        rows = builder.as_dataset("train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise UserError(error_reason(path, error)) from None
    about = rows.data.column(ROW)
    if len(rows) and not pc.struct_field(about, UNREADABLE).null_count:
        place, reason = about[0].as_py().values()
        raise UserError(f"{place}: {reason}; no row can be read; copy or create the file again")
    return rows


def dataset_from_generator(
    path: str,
    generator: Callable[..., Iterator[Row]],
    features: Mapping[str, Any],
    streaming: bool,
    fingerprint: str | None = None,
    **arguments: Any,
) -> Rows:
    """The rows that `generator(**arguments)` yields, indexed in the library's cache or streamed. Raises UserError.

    `features`: the type of each column. `fingerprint`: what the content depends on, instead of all arguments."""
    from datasets import Dataset, Features, IterableDataset
    from datasets.exceptions import DatasetGenerationError

    types = Features(features)
    if streaming:
        return IterableDataset.from_generator(generator, types, gen_kwargs=arguments)
    try:
        return Dataset.from_generator(generator, types, gen_kwargs=arguments, fingerprint=fingerprint)
    except (DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise NoSignal(f"{path}: nothing in it can be read") from None
        raise UserError(error_reason(path, error)) from None


def dataset_from_table(table: Any, fingerprint: str | None = None) -> Rows:
    """A `pyarrow.Table` as an indexed dataset; `fingerprint` saves hashing a large one."""
    from datasets import Dataset

    return Dataset(table, fingerprint=fingerprint)


def shuffled_stream(rows: Rows) -> Rows:
    """An indexed dataset as a stream of many small shards in random order, so that data sorted by class is mixed."""
    shuffled = dataset_from_table(rows.data.table.take(np.random.default_rng(0).permutation(len(rows))))
    return shuffled.to_iterable_dataset(num_shards=max(1, min(1024, len(rows) // 8)))


def saved_datasets(folder: Path) -> dict[str, Path]:
    """The datasets that `save_to_disk` wrote to a folder, by the name of their split, "" for a single one; empty for others."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return {"": folder}
    if (listing := folder / "dataset_dict.json").is_file():
        try:
            names = read_json(listing)["splits"]
            if not isinstance(names, list) or not all(isinstance(name, str) and _SPLIT_NAME.fullmatch(name) for name in names):
                raise ValueError("its splits are no names")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{listing} is damaged ({error}); save the dataset again") from None
        return {name: folder / name for name in names}
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/state.json")) if saved_datasets(path.parent)}


def is_in_cache(path: Path) -> bool:
    """Whether this is a dataset that `data_path` has saved, of the user's own objects."""
    return path.is_relative_to(_saved_folder())


def _saved_folder() -> Path:
    return cache_folder() / "datasets"


def load_saved(folder: Path, boundary: Boundary) -> Rows:
    """One dataset that `save_to_disk` wrote, memory-mapped. Raises UserError if it is not complete, or has files elsewhere."""
    from datasets import Dataset

    try:
        files = [str(folder / file["filename"]) for file in read_json(folder / "state.json")["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} is damaged ({error}); save the dataset again") from None
    boundary.require(files, "the files of its parts")

    try:
        return Dataset.load_from_disk(str(folder), keep_in_memory=False).with_format(None)  # such as "torch"
    except (ValueError, OSError) as error:
        raise UserError(error_reason(str(folder), error)) from None


def data_path(data: Any) -> str:
    """The path or name of a dataset; a `datasets.Dataset` or `DatasetDict` is saved to the cache first, once.

    Raises UserError for any other object, also one that can only be streamed."""
    if isinstance(data, str | Path):
        return str(data)
    from datasets import Dataset, DatasetDict

    if not isinstance(data, Dataset | DatasetDict):
        raise UserError(
            f"data: {type(data).__name__} is no dataset; give a folder, a file, the name of a dataset on the hub, or a "
            "datasets.Dataset or DatasetDict"
        )
    from filelock import FileLock

    parts = data if isinstance(data, DatasetDict) else {"": data}
    content = "\n".join(f"{split} {rows._fingerprint}" for split, rows in parts.items())
    folder = _saved_folder() / hashlib.sha256(content.encode()).hexdigest()[:32]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with atomic_dir(folder) as tmp:
                    data.save_to_disk(str(tmp))
    except OSError as error:
        raise UserError(
            f"the dataset cannot be saved to the cache {folder.parent} ({error.strerror or error}): free some space, or set "
            "DATA2VEC_CACHE to another folder"
        ) from None
    return str(folder)


def error_reason(path: str, error: BaseException) -> str:
    """The root cause of one of the library's errors, in one line."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) if isinstance(cause, UserError) else f"{path} cannot be read: {' '.join(str(cause).split())[:300]}"
