"""The cache of files derived from a dataset: token files, tokenizers, durations; and fingerprints, which tell when data has
changed."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data2vec.atomic_io import atomic_write
from data2vec.data.sources.formats import ARCHIVES, JSON_LINES, MEDIA, PARQUET
from data2vec.errors import UserError
from data2vec.settings import JsonDict, JsonMapping

DATA_ENDINGS = tuple({*PARQUET, *ARCHIVES, *JSON_LINES, *(ending for endings in MEDIA.values() for ending in endings)})


def cache_folder() -> Path:
    """$DATA2VEC_CACHE, or data2vec in the user's cache folder. The user's data folders are never written to."""
    folder = os.environ.get("DATA2VEC_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "data2vec"


def cached(name: str, write: Callable[[BinaryIO], None]) -> Path:
    """The file `name` in the cache, created by `write` if it does not exist.

    Written atomically, so an incomplete file is never read; other processes that need the same file wait for it.
    Raises UserError when the cache cannot be written."""
    from filelock import FileLock

    path = cache_folder() / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                with atomic_write(path) as tmp, tmp.open("wb") as file:
                    write(file)
    except OSError as error:
        raise UserError(
            f"the cache {path.parent} cannot be written ({error.strerror or error}): "
            "free some space, or set DATA2VEC_CACHE to another folder"
        ) from None
    return path


def fingerprint(rows: Any, column: str, *more: str) -> str:
    """A hash of a column's content in a `datasets.Dataset`, which changes when size or mtime of a file it points to does."""
    digest = hashlib.sha256("\n".join((rows._fingerprint, column, *more)).encode())
    for path in column_paths(rows, column):
        try:
            stat = os.stat(path)
        except OSError:
            continue
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def column_paths(rows: Any, column: str) -> list[str]:
    """The files that `column` points to; empty when the rows contain the content."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = rows.data.column(column)
    if not pa.types.is_struct(values.type) or min(map(values.type.get_field_index, ("bytes", "path"))) < 0:
        return []
    if pc.struct_field(values, "bytes").null_count < len(values):
        return []
    paths = pc.struct_field(values, "path")
    return (paths if rows._indices is None else paths.take(rows._indices.column(0))).to_pylist()


def data_fingerprint(rows: Any, column: str | None, where: str | None, costs: np.ndarray | None) -> JsonDict:
    """The number of `examples`, None if it is not known, and the `digest` of their names, sizes and order.

    `rows`: those of `where`, indexed or streamed; `column`: that of the signal; `costs`: those of the examples."""
    digest = hashlib.sha256()
    if costs is not None:
        digest.update(np.ascontiguousarray(costs, dtype="<f8").tobytes())
    if hasattr(rows, "data"):
        _add_column(digest, rows, column)
    elif not hasattr(rows, "__len__"):
        digest.update(f"{rows.num_shards} shards".encode())
        for name, size in _files_below(Path(where)) if where and os.path.exists(where) else ():
            digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return {"examples": None if costs is None else len(costs), "digest": digest.hexdigest()[:32]}


def describe_change(before: Any, now: JsonMapping) -> str | None:
    """How the data differs from that of the fingerprint `before`, in words; None if it does not, or was not recorded."""
    if not isinstance(before, dict) or before.get("digest") in (None, now["digest"]):
        return None
    if before.get("examples") != now["examples"]:
        return f"it has {now['examples']} examples, and had {before.get('examples')}"
    return "names, sizes or order of its files or examples differ"


def _add_column(digest: Any, rows: Any, column: str | None) -> None:
    """Names and sizes of the files that a column points to, or the sizes of its content."""
    if column is None or column not in rows.column_names:
        return
    if paths := column_paths(rows, column):
        present = [path or "" for path in paths]
        start = len(os.path.dirname(os.path.commonprefix([min(present), max(present)])))  # noqa: RUF071
        with ThreadPoolExecutor(16) as threads:
            for path, size in zip(present, threads.map(_size, present, chunksize=1000), strict=True):
                digest.update(f"{path[start:]}\0{size}\n".encode(errors="surrogateescape"))
    else:
        digest.update(_content_sizes(rows, column))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


def _content_sizes(rows: Any, column: str) -> bytes:
    """The sizes of bytes or texts in a column, in order; nothing for other columns."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = rows.data.column(column)
    if pa.types.is_struct(values.type) and values.type.get_field_index("bytes") >= 0:
        values = pc.struct_field(values, "bytes")
    types = pa.types
    if not any(has(values.type) for has in (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string)):
        return b""
    sizes = pc.fill_null(pc.cast(pc.binary_length(values), pa.int64()), -1)
    sizes = sizes if rows._indices is None else sizes.take(rows._indices.column(0))
    return np.ascontiguousarray(sizes.to_numpy(), dtype="<i8").tobytes()


def _files_below(root: Path) -> Iterator[tuple[str, int]]:
    """(name, size) of the data files of a folder, or of a single file."""
    if root.is_file():
        yield root.name, _size(str(root))
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(DATA_ENDINGS) and not name.startswith("."):
                path = os.path.join(folder, name)
                yield os.path.relpath(path, root), _size(path)
