"""Lists of files named by a split, such as testing_list.txt of Speech Commands or meta/train.txt of Food-101."""

import os
from collections.abc import Sequence
from pathlib import Path

from data2vec.data.sources.splits import TRAIN, SplitName, listed, split_of_name
from data2vec.errors import UserError, get_logger

log = get_logger(__name__)

LIST_ENDING = ".txt"
TRIED_LINES = 100
"""How many lines of a file are looked at; more than half of them must be paths, so that it is a list."""


def splits_of_lists(root: Path, files: Sequence[str], media: Sequence[str]) -> dict[str, SplitName]:
    """The splits of the files `media` that lists among `files` give them, all as relative paths; empty if there is no list.

    A list is a text file whose name contains a word for a split, and whose lines are paths of `media`, with or without their
    endings, below any folder. What no list names is in split train, if no list is of train. Raises UserError for a line that
    may be several files, and for a file that is listed for two splits."""
    found: dict[str, SplitName] = {}
    source: dict[str, str] = {}
    by_end: dict[str, str | None] | None = None
    for name in files:
        stem, ending = os.path.splitext(name.rpartition("/")[2])
        if ending.lower() != LIST_ENDING or (split := split_of_name(stem)) is None:
            continue
        by_end = _ends_of_paths(media) if by_end is None else by_end
        lines = _lines(root / name)
        tried = lines[:TRIED_LINES]
        if 2 * sum(line in by_end for line in tried) <= len(tried):
            continue
        if missing := [line for line in lines if line not in by_end]:
            message = "%s: %d of %d files that it lists are not there: %s"
            log.warning(message, root / name, len(missing), len(lines), listed(missing))
        for line in lines:
            if line not in by_end:
                continue
            if (file := by_end[line]) is None:
                raise UserError(f"{root / name}: several files are named {line}; write their folders, or remove the list")
            if found.setdefault(file, split).split != split.split:
                raise UserError(
                    f"{root}: {file} is listed by {source[file]} and by {name}; correct or remove one of them, or give the "
                    "folder of the files as the data"
                )
            source.setdefault(file, name)
    if found and all(split.split != TRAIN for split in found.values()):
        found |= {file: SplitName(TRAIN, TRAIN) for file in media if file not in found}
    return found


def _ends_of_paths(paths: Sequence[str]) -> dict[str, str | None]:
    """The path that ends in each of its last folders and name, with and without ending; None for several."""
    ends: dict[str, str | None] = {}
    for path in paths:
        parts = path.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            for key in (end, os.path.splitext(end)[0]):
                ends[key] = path if ends.get(key, path) == path else None
    return ends


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not blank; none if it is not UTF-8."""
    try:
        return [line.strip().removeprefix("./") for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        return []
