"""Files that a stranger may have written: opened only if they are regular files, parsed only within bounds.

A FIFO or a device has no end, a file of a few bytes can nest or claim anything. So whatever is read as data is opened by
`open_regular`, and settings in JSON are read by `read_json`.
"""

import json
import os
import stat
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from data2vec.errors import UserError, quoted

MAX_SETTINGS_BYTES = 64 * 2**20
"""Of a file of settings in JSON: those of a large tokenizer have 10 MB."""
MAX_NESTING = 100
"""Of lists and objects in JSON."""


class NotRegular(OSError):
    """A file that is none: a FIFO, a socket or a device."""


def require_regular(path: str | Path) -> os.stat_result:
    """The status of a regular file. Raises OSError if it is none, or does not exist."""
    return _regular(os.stat(path), path)


def _regular(status: os.stat_result, path: str | Path) -> os.stat_result:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(21, "is a folder, not a file", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular(22, "not a regular file, but a FIFO, a socket or a device", str(path))
    return status


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading bytes. Raises OSError for any other, without waiting for it."""
    require_regular(path)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115  # the caller closes it
    try:
        _regular(os.fstat(file.fileno()), path)  # another may stand there by now
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: str | Path, max_bytes: int = MAX_SETTINGS_BYTES) -> bytes:
    """The content of a regular file. Raises OSError if it is none, and ValueError if it is larger."""
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > max_bytes:
            raise ValueError(f"it has {size} bytes; at most {max_bytes} are read")
        return file.read(max_bytes)


def read_json(path: str | Path, max_bytes: int = MAX_SETTINGS_BYTES) -> Any:
    """The content of a JSON file in UTF-8. Raises OSError if it cannot be read, and ValueError for all else."""
    return parse_json(read_regular(path, max_bytes))


def parse_json(content: bytes | str) -> Any:
    """A value in JSON. Raises ValueError for anything that is none, is nested too deeply, or has numbers of too many digits."""
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(MAX_NESTING):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _parts(value: Any) -> list[Any]:
    """The values in a list or an object that can have values themselves."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [part for part in parts if isinstance(part, dict | list)]


class Boundary(NamedTuple):
    """The folder that the files of a dataset must be in."""

    where: str
    """The dataset, for messages."""
    folder: Path | None
    """None: of data that is not local, which names no local file."""
    follow_links: bool = False
    """Read files outside, too (`data.follow_links`)."""

    def require(self, paths: Iterable[str], what: str = "links and paths") -> None:
        """Raise UserError if one of the paths leads outside, by itself or by a link. `what` they are, for the message."""
        real: dict[str, str] = {}  # of folders, as most files share one
        if outside := [path for path in paths if self.is_outside(path, real)]:
            raise UserError(
                f"{self.where}: {what} lead outside of its folder, {len(outside)}: such as {quoted(outside[0])}; a dataset "
                "reads only files in its own folder, unless data.follow_links=true (--follow-links)"
            )

    def is_outside(self, path: str, real: dict[str, str] | None = None) -> bool:
        """Whether a path leads outside, by itself or by a link, and these are not followed. `real`: known folders."""
        if self.follow_links or self.folder is None:
            return not self.follow_links
        real = {} if real is None else real
        try:
            for each in (os.path.dirname(path), str(self.folder)):
                real[each] = real.get(each) or os.path.realpath(each)
            folder, root = real[os.path.dirname(path)], real[str(self.folder)]
            target = os.path.realpath(path) if os.path.islink(path) else os.path.join(folder, os.path.basename(path))
        except (OSError, ValueError):  # a name that no file can have; reading it says so
            return False
        return os.path.commonpath([root, os.path.normpath(target)]) != root
