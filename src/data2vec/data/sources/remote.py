"""Files on other machines: any address that fsspec knows, such as s3://bucket/shards/."""

import os
from typing import Any

from data2vec.data.sources.local import SPLITS, pick
from data2vec.errors import UserError


def file_system(where: str) -> tuple[Any, str]:
    """The `fsspec` file system of an address, and the path in it. Raises UserError naming the package it wants."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(where)
    except ImportError as error:
        raise UserError(f"{where}: a package is missing to read this: {error}") from None
    except ValueError as error:
        raise UserError(f"{where}: not an address that can be read: {error}") from None


def files_at(where: str, split: str, endings: tuple[str, ...]) -> list[str]:
    """The address of one file, of those that a pattern with * fits, or of all below a folder; sorted, hidden ones left out.
    When the sub-folders of a folder are all named like splits, those of `split`.

    Raises UserError when there is nothing, or no way to it."""
    fs, root = file_system(where)
    try:
        if "*" in root:
            found = fs.glob(root)
        elif root.lower().endswith(endings):  # asking whether it is a folder could download it
            found = [root] if fs.exists(root) else []
        else:
            found = _of_folder(sorted(fs.find(root)), root.rstrip("/") + "/", split)
    except UserError:
        raise
    except Exception as error:  # each file system raises errors of its own
        raise UserError(f"{where} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    if not found:
        raise UserError(f"{where}: there is no such file or folder, or nothing in it")
    return [fs.unstrip_protocol(path) for path in sorted(found)]


def stamp(where: str) -> str:
    """What changes when a file, or what is at an address, does."""
    if "://" in where:
        return str(file_system(where)[0].ukey(where))
    stat = os.stat(where)
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _of_folder(files: list[str], root: str, split: str) -> list[str]:
    inside = {path: path.removeprefix(root).split("/") for path in files}
    folders = sorted({parts[0] for parts in inside.values() if len(parts) > 1})
    if folders and all(name.lower() in SPLITS for name in folders):
        chosen = folders[pick(folders, split, root)]
        inside = {path: parts for path, parts in inside.items() if parts[0] == chosen}
    return [path for path, parts in inside.items() if not any(part.startswith(".") for part in parts)]
