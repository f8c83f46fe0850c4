"""Writing files and folders that are either complete or absent, also after a crash, a kill -9 or a full disk.

Content is written to a temporary path beside its target, synced to the disk (fsync) and renamed.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path for the content of the file `path`, which it replaces when the block ends without an error."""
    tmp = temporary_path(path)
    try:
        yield tmp
        sync_and_rename(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces `folder` when the block ends without an error."""
    tmp, old = temporary_path(folder), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(tmp, ignore_errors=True)  # left by a crash
    tmp.mkdir(parents=True)
    try:
        yield tmp
        for path in (*tmp.rglob("*"), tmp):
            sync(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        tmp.rename(folder)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
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
