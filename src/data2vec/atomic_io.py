"""Writing files and folders that are either complete or absent, also after a crash, a kill -9 or a full disk.

Content is written to a temporary path beside its target, synced to the disk (fsync) and renamed. One process at a time writes
to a path; a second one is refused.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data2vec.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path for the content of the file `path`, which it replaces when the block ends without an error.

    What cannot be replaced, such as a pipe or /dev/stdout, is yielded itself; a link stays one. Raises UserError when `path`
    is a folder, or another process is writing it."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; choose the name of a file")
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    tmp = temporary_path(target)
    with _only_writer(tmp, path, folder=False):
        try:
            yield tmp
            sync_and_rename(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text atomically."""
    with atomic_write(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON atomically, indented."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # What cannot be encoded, in the name of a file that is not UTF-8, becomes an escape, as JSON has it: \udce9.
    write_text(path, text.encode("utf-8", "backslashreplace").decode())


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces `folder` and all that is in it when the block ends without an error.

    For folders that nobody else writes to; see `merge_dir`. Raises UserError when `folder` is a file, or another process is
    writing it."""
    _refuse_file(folder)
    tmp, old = temporary_path(folder), folder.with_name(f".{folder.name}.old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_writer(tmp, folder, folder=True):
        try:
            yield tmp
            for path in (*tmp.rglob("*"), tmp):
                sync(path)
            if folder.exists():
                remove_path(old)
                folder.rename(old)
            tmp.rename(folder)
            sync(folder.parent)
            remove_path(old)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


@contextmanager
def merge_dir(folder: Path, last: str, obsolete: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder, whose files are added to `folder` when the block ends without an error.

    Files of the same name are replaced; `obsolete` files of an earlier writing are removed; all others are left alone. `last`:
    the file without which the folder is not read. It is removed first and added last, so that files of two writings are never
    read together. Raises UserError when `folder` is a file, or another process is writing it."""
    folder = folder.resolve()
    if not folder.exists():
        with atomic_dir(folder) as tmp:
            yield tmp
        return
    _refuse_file(folder)
    tmp = folder / ".data2vec.tmp"
    with _only_writer(tmp, folder, folder=True):
        try:
            yield tmp
            files = sorted(tmp.iterdir(), key=lambda path: path.name == last)
            for path in files:
                if (folder / path.name).is_dir():
                    raise UserError(f"{folder / path.name}: is a folder, but a file of that name has to be written")
                sync(path)
            for path in (folder / name for name in (last, *obsolete)):
                if path.is_file():
                    path.unlink()
            for path in files:
                path.replace(folder / path.name)
            sync(folder)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def sync_and_rename(tmp: Path, path: Path) -> None:
    """Give the complete file `tmp` the name `path`, in place of a file of that name, once its content is on the disk."""
    sync(tmp)
    tmp.replace(path)


def temporary_path(path: Path) -> Path:
    """Where the content of `path` is written first; always the same, so that a new attempt replaces what a crash left."""
    return path.with_name(f".{path.name}.tmp")


def sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose the name of a folder")


@contextmanager
def _only_writer(tmp: Path, target: Path, folder: bool) -> Iterator[None]:
    """Create `tmp` empty, a folder or a file, in place of what a crash has left, and lock it.

    The lock (flock) belongs to the open file: it goes with the process, however that ends."""
    handle = _lock(tmp, target) if tmp.is_file() or tmp.is_dir() else None
    try:
        remove_path(tmp)
        if folder:
            tmp.mkdir()
        else:
            tmp.touch(exist_ok=False)
    except FileExistsError:
        raise _busy(target) from None
    finally:
        if handle is not None:
            os.close(handle)
    handle = _lock(tmp, target)
    try:
        yield
    finally:
        os.close(handle)


def remove_path(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, not what it leads to; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _busy(target: Path) -> UserError:
    return UserError(f"{target}: another process is writing it; wait until it ends, or choose another name")


def _lock(tmp: Path, target: Path) -> int:
    try:
        handle = os.open(tmp, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:  # renamed by the other one a moment ago
        raise _busy(target) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_current = os.path.samestat(os.fstat(handle), tmp.stat())
    except (BlockingIOError, FileNotFoundError):
        is_current = False
    except OSError:  # a file system without locks
        is_current = True
    if not is_current:
        os.close(handle)
        raise _busy(target)
    return handle
