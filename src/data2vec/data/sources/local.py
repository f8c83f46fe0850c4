"""Local folders: their files, and media files as rows with labels or metadata."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data2vec.data.dataset import Rows
from data2vec.data.sources.formats import SignalKind
from data2vec.data.sources.splits import SPLITS, find_split
from data2vec.data.sources.tables import read_table
from data2vec.errors import UserError


def list_files(folder: Path, split: str) -> tuple[Path, list[Path]]:
    """All files below `folder`, sorted and without hidden ones, and the folder they were taken from.

    When all sub-folders are named like splits, only the files of `split`."""
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if inside and all(name.lower() in SPLITS for name in inside):
        folder = folder / inside[find_split(inside, split, folder)]
    paths: list[Path] = []
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        paths += [] if real in visited else [Path(root, name) for name in files if not name.startswith(".")]
        visited.add(real)
    return folder, sorted(paths)


def media_rows(folder: Path, files: Sequence[Path], kind: SignalKind, is_folder: bool) -> Rows:
    """Rows of file paths, with the columns of `folder`/metadata.csv, or with the sub-folders as labels, if `is_folder`.

    The folder builders of the `datasets` library would hash and copy every file."""
    import pyarrow as pa
    from datasets import Dataset

    columns: dict[str, list[Any]] = {}
    metadata = folder / "metadata.csv"
    if is_folder and metadata.is_file():
        columns = read_table(metadata, text_columns=("file_name", "transcript", "text"))
        if "file_name" not in columns:
            raise UserError(f"{metadata} has no column file_name, only {', '.join(columns)}")
        files = [folder / name for name in columns.pop("file_name")]
    elif is_folder and (labels := _class_folders(folder, files)):
        columns = {"label": labels}
    paths = pa.array([str(path) for path in files], pa.string())
    signal = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), paths], ["bytes", "path"])
    return Dataset(pa.table({kind: signal} | {name: pa.array(values) for name, values in columns.items() if name != kind}))


def _class_folders(folder: Path, files: Sequence[Path]) -> list[str] | None:
    """The sub-folder of each file, when all files are exactly one folder deep."""
    inside = [path.relative_to(folder).parts for path in files]
    return [parts[0] for parts in inside] if all(len(parts) == 2 for parts in inside) else None
