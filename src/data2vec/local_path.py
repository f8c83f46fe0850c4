"""Paths that a user gives, on this machine."""

import os
import re
from pathlib import Path

from data2vec.errors import UserError, quoted

_WEIGHTS = re.compile(r"(.+)@(step-[0-9]+|last|best)", re.DOTALL)


def local_path(path: str | Path) -> Path:
    """A path with `~` expanded; there need not be a file of that name.

    Raises UserError for an empty name, for what no file can be named, for the home of an unknown user, and for what may not be
    looked at."""
    if not str(path).strip():
        raise UserError("the name of a file or folder is empty; write . for the current folder")
    try:
        found = Path(path).expanduser()
        found.exists() or found.parent.exists()
    except RuntimeError:
        raise UserError(f"{quoted(str(path))}: there is no such user; write the folder in full") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{quoted(str(path))}: not a path that can be opened: {reason}") from None
    return found


def absolute_path(path: str) -> str:
    """The absolute path of an existing file or folder, also as RUN@last; anything else, such as a name on the hub, as it is.

    Raises UserError."""
    run, which = split_weights(path)
    found = local_path(run)
    return f"{found.resolve()}{'@' * bool(which)}{which}" if found.exists() else path


def split_weights(model: str | Path) -> tuple[str, str]:
    """The folder of a run and which of its weights RUN@step-N, RUN@last or RUN@best means; of any other name all, and "".

    What exists under its whole name is that. Raises UserError as `local_path` does."""
    match = _WEIGHTS.fullmatch(str(model))
    if match is None or local_path(model).exists() or not local_path(match[1]).is_dir():
        return str(model), ""
    return match[1], match[2]


def output_file(path: str | Path, option: str, inputs: object = None) -> Path:
    """The path of a file that will be written; `option`: what names it. `inputs`: what is read for it, a path or a list with
    paths. Raises UserError where that cannot be done, or would replace an input, before the work whose result it is."""
    found = local_path(path)
    read = [each for each in (inputs if isinstance(inputs, list | tuple) else [inputs]) if isinstance(each, str | Path)]
    if found.is_file() and any(_is_file(each, found) for each in read):
        raise UserError(f"{option} {path}: is the input, which would be replaced; choose another file")
    if found.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")
    folder = found.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{option} {path}: there is no folder {folder}; create it first")
    if not os.access(found if found.exists() else folder, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written (permission denied, or a read-only disk); choose another file")
    return found


def _is_file(name: str | Path, file: Path) -> bool:
    """Whether a name, which may be any text, is that of this file."""
    try:
        return Path(name).expanduser().samefile(file)
    except (OSError, ValueError, RuntimeError):
        return False
