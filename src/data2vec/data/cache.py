"""The cache of files derived from a dataset: token files, tokenizers, durations."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError


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
