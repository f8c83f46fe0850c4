"""Splits of a dataset, by the names of its folders and files."""

import re
from collections.abc import Sequence
from pathlib import Path

from data2vec.errors import UserError

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"} | dict.fromkeys(
    ("valid", "validation", "val", "dev"), "valid"
)
"""Names of folders and files that stand for a split."""
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.]|$)", re.IGNORECASE)


def files_of_split(files: Sequence[str], split: str) -> list[str]:
    """Those of `split`, when all files are named like splits (train.tsv, train-00000-of-00008.parquet); else all."""
    names = [match.group(1).lower() if (match := _SPLIT_FILE.match(path.rpartition("/")[2])) else "" for path in files]
    if not files or not all(names):
        return list(files)
    name = names[find_split(names, split, files[0].rpartition("/")[0])]
    return [path for path, other in zip(files, names, strict=True) if SPLITS[other] == SPLITS[name]]


def find_split(names: Sequence[str], split: str, path: str | Path) -> int:
    """The index of the name that stands for `split`. Raises UserError when none does."""
    wanted = SPLITS.get(split.lower(), split)
    for i, name in enumerate(names):
        if SPLITS[name.lower()] == wanted:
            return i
    raise UserError(f"{path} has no split {split!r}, only {', '.join(dict.fromkeys(names))}: use one of them, or its folder")
