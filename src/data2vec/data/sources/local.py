"""What is in a folder: which files, of which split, and the tables among them."""

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data2vec.errors import UserError

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"} | dict.fromkeys(
    ("valid", "validation", "val", "dev"), "valid"
)
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})(?=[-_.]|$)", re.IGNORECASE)


def files_of(folder: Path, split: str) -> tuple[Path, list[Path]]:
    """All files below `folder`, sorted, hidden ones left out, and the folder they were taken from.

    When its sub-folders are all named like splits, those of `split`."""
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if inside and all(name.lower() in SPLITS for name in inside):
        folder = folder / inside[pick(inside, split, folder)]
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        found += [] if real in seen else [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(real)
    return folder, sorted(found)


def of_split(files: Sequence[str], split: str) -> list[str]:
    """Of files that are all named after splits (train.tsv, train-00000-of-00008.parquet), those of `split`; else all."""
    names = [match.group(1).lower() if (match := _SPLIT_FILE.match(path.rpartition("/")[2])) else "" for path in files]
    if not files or not all(names):
        return list(files)
    chosen = names[pick(names, split, files[0].rpartition("/")[0])]
    return [path for path, name in zip(files, names, strict=True) if SPLITS[name] == SPLITS[chosen]]


def pick(names: Sequence[str], split: str, where: str | Path) -> int:
    """Which of `names` means `split`. Raises UserError when none does."""
    wanted = SPLITS.get(split.lower(), split)
    for i, name in enumerate(names):
        if SPLITS[name.lower()] == wanted:
            return i
    raise UserError(f"{where} has no split {split!r}, only {', '.join(dict.fromkeys(names))}: name one of them, or its folder")


def inventory(files: Sequence[str]) -> str:
    """ "12 .txt, 3 .pdf" """
    counts = Counter(os.path.splitext(path)[1].lower() or "without extension" for path in files)
    return ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(5)) or "nothing"


def class_names(folder: Path, files: Sequence[Path]) -> list[str] | None:
    """The sub-folder of each file, when all files are exactly one folder deep."""
    inside = [path.relative_to(folder).parts for path in files]
    return [parts[0] for parts in inside] if all(len(parts) == 2 for parts in inside) else None


def read_table(path: Path, keep: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The columns of a csv (quoted) or tsv (no quoting, no escapes) file; numbers become numbers, except in `keep`."""
    tabs = path.suffix.lower() == ".tsv"
    try:
        with open(path, encoding="utf-8-sig", newline="\n" if tabs else "") as file:
            lines = [line.rstrip("\r\n").split("\t") for line in file] if tabs else list(csv.reader(file))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path} is not a csv table: {error}") from None
    header, *rows = [line for line in lines if line] or [[]]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number}: {len(row)} fields, but the header has {len(header)}")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return {name: values if name in keep else _numbers(values) for name, values in columns.items()}


def _numbers(values: list[str]) -> list[Any]:
    for kind in (int, float):
        try:
            return [kind(value) for value in values]
        except ValueError:
            continue
    return values
