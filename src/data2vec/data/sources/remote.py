"""Remote files, at any URL that fsspec can read, such as s3://bucket/shards/."""

import io
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

from data2vec.data.sources.formats import is_hidden
from data2vec.errors import UserError
from data2vec.untrusted import NotRegular, require_regular


def open_binary(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a file, or a URL such as s3://bucket/name, for reading."""
    if "://" not in path:
        require_file(path)
        return open(path, "rb")
    from fsspec.core import url_to_fs

    files, name = url_to_fs(path)
    if files.protocol == "memory":  # its file object, and the position in it, is shared by all readers
        return io.BytesIO(files.cat_file(name))
    return files.open(name, "rb")


def require_file(path: str | Path) -> None:
    """Raise UserError for a FIFO, a socket or a device, which would be read without end."""
    try:
        require_regular(path)
    except NotRegular as error:
        raise UserError(f"{path}: {error.strerror}; remove it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def file_system(url: str) -> tuple[Any, str]:
    """The `fsspec` file system of a URL, and the path in it. Raises UserError that names a missing package."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: reading it needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise UserError(f"{url}: not a supported URL: {error}") from None


def list_remote_files(url: str, endings: tuple[str, ...]) -> tuple[str, list[str]]:
    """The URL of the folder, and those of one file, of all files that match a pattern with *, or of all files below a folder;
    sorted, without hidden ones.

    Raises UserError when there are none, or they cannot be reached."""
    fs, root = file_system(url)
    try:
        if "*" in root:
            paths, root = fs.glob(root), root.partition("*")[0].rpartition("/")[0]
        elif root.lower().endswith(endings):  # asking whether it is a folder could download it
            paths, root = [root] if fs.exists(root) else [], root.rpartition("/")[0]
        else:
            paths, root = fs.find(root), root.rstrip("/")
    except Exception as error:  # each file system raises its own errors
        raise UserError(f"{url} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    paths = [path for path in sorted(paths) if not is_hidden(path[len(root) :])]
    if not paths:
        raise UserError(f"{url}: there is no such file or folder, or it is empty")
    return fs.unstrip_protocol(root), [fs.unstrip_protocol(path) for path in paths]


def file_version(path: str) -> str:
    """A string that changes when the file or the content of the URL does."""
    if "://" in path:
        return str(file_system(path)[0].ukey(path))
    stat = os.stat(path)
    return f"{stat.st_size} {stat.st_mtime_ns}"
