"""What is in a folder: which files, of which split, and the tables, lines and archives among them as rows."""

import csv
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
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
        folder = folder / inside[_pick(inside, split, folder)]
    found: list[Path] = []
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        found += [] if real in seen else [Path(root, name) for name in files if not name.startswith(".")]
        seen.add(real)
    return folder, sorted(found)


def of_split(files: Sequence[Path], split: str) -> list[Path]:
    """Of files that are all named after splits (train.tsv, train-00000-of-00008.parquet), those of `split`; else all."""
    names = [match.group(1).lower() if (match := _SPLIT_FILE.match(path.name)) else "" for path in files]
    if not files or not all(names):
        return list(files)
    chosen = names[_pick(names, split, files[0].parent)]
    return [path for path, name in zip(files, names, strict=True) if SPLITS[name] == SPLITS[chosen]]


def _pick(names: Sequence[str], split: str, where: Path) -> int:
    wanted = SPLITS.get(split.lower(), split)
    for i, name in enumerate(names):
        if SPLITS[name.lower()] == wanted:
            return i
    raise UserError(f"{where} has no split {split!r}, only {', '.join(dict.fromkeys(names))}: name one of them, or its folder")


def inventory(files: Sequence[Path]) -> str:
    """ "12 .txt, 3 .pdf" """
    counts = Counter(path.suffix.lower() or "without extension" for path in files)
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


def read_lines(files: Sequence[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """Rows of jsonl files, given as (path, size, time). A line that cannot be read gives a row without text."""
    columns: dict[str, None] | None = None
    for path, *_ in files:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                columns = columns if columns is not None else _columns(path)
                try:
                    fields = json.loads(line.decode())
                    text = fields["text"]
                except (ValueError, KeyError, TypeError):
                    fields, text = {}, None
                text = text if isinstance(text, str) else None
                yield {"text": text, "path": f"{path}, line {number}"} | {name: fields.get(name) for name in columns}


def _columns(path: str) -> dict[str, None]:
    """The other columns: those of the first line that can be read."""
    with open(path, "rb") as file:
        for line in file:
            try:
                first = json.loads(line.decode())
            except ValueError:
                continue
            if isinstance(first, dict):
                return {key: None for key, value in first.items() if isinstance(value, str | int | float) and key != "text"}
    return {}


def read_shards(shards: Sequence[tuple[str, int, int]], kind: str, suffixes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of tar shards in webdataset layout: files that share a name up to its first dot are one example.

    `.cls` becomes `label`; the fields of `.json` and the words of `.txt` become columns. Nothing is unpacked to disk."""
    columns: list[str] | None = None
    for shard, *_ in shards:
        try:
            for row in _samples(shard, kind, suffixes):
                columns = columns if columns is not None else list(row)
                yield {name: row.get(name) for name in columns}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{shard} is not a whole tar archive: {error}") from None


def _samples(shard: str, kind: str, suffixes: Sequence[str]) -> Iterator[dict[str, Any]]:
    name, sample = None, dict[str, Any]()
    with tarfile.open(shard, "r|*") as tar:
        for member in tar:
            folder, _, file = member.name.rpartition("/")
            stem, _, ending = file.partition(".")
            if not member.isfile() or not stem:
                continue
            if (folder, stem) != name:
                if kind in sample:
                    yield sample
                name, sample = (folder, stem), {"key": f"{folder}/{stem}".strip("/")}
            source = tar.extractfile(member)
            content = source.read() if source else b""
            ending = ending.lower()
            if f".{ending.rpartition('.')[2]}" in suffixes:
                sample[kind] = {"bytes": content, "path": f"{shard}/{member.name}"}
            elif ending == "json":
                fields = json.loads(content)
                if kind == "text" and isinstance(fields.get("text"), str):
                    fields["text"] = {"bytes": fields["text"].encode(), "path": f"{shard}/{member.name}"}
                sample |= {k: v for k, v in fields.items() if k == kind or isinstance(v, str | int | float)}
            elif ending in ("cls", "txt"):
                words = content.decode(errors="replace").strip()
                sample["label" if ending == "cls" else "txt"] = int(words) if ending == "cls" and words.isdigit() else words
    if kind in sample:
        yield sample
