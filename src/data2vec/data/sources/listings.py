"""Tables that list files: metadata.csv beside them, or any table with a column of paths, such as Common Voice's or NeMo's; and
lists of files that are named by a split, such as testing_list.txt of Speech Commands or meta/train.txt of Food-101."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from data2vec.data.dataset import Rows
from data2vec.data.sources.columns import FILE_COLUMNS, find_column
from data2vec.data.sources.formats import FRAMES, MANIFESTS, MEDIA, TABLES, SignalKind, is_example, with_ending
from data2vec.data.sources.library import dataset_from_table
from data2vec.data.sources.local import TRIED_PATHS, base_folder, signal_table
from data2vec.data.sources.splits import TRAIN, Source, SplitChoice, SplitName, listed, name_splits, split_of_name
from data2vec.data.sources.tables import (
    ArrowTable,
    concat_tables,
    first_values,
    read_manifest,
    read_table,
    rename_column,
    unwrapped,
)
from data2vec.errors import UserError, get_logger
from data2vec.untrusted import Boundary

log = get_logger(__name__)

BEGINNINGS = (
    "start",
    "begin",
    "onset",
    "start_time",
    "begin_time",
    "start_seconds",
    "start_s",
    "start_sec",
    "start_ms",
    "from",
)
"""Columns that say where in a recording a row begins."""
TABLES_OF_FOLDER = 100
"""How many tables of a folder are looked at."""
LIST_ENDING = ".txt"
TRIED_LINES = 100
"""How many lines of a file are looked at; more than half of them must be paths, so that it is a list."""
METADATA = tuple(f"metadata{ending}" for ending in TABLES)
"""The names of tables that list the files of their folder and of those below it."""


@dataclass(frozen=True)
class Listing:
    """A table that lists files."""

    name: str
    """Its relative path."""
    table: ArrowTable
    """Its columns, with the files in column `kind`."""
    files: list[str]
    """The path of each row's file."""
    covers: str
    """The start of the relative paths of all files that it should list."""

    @property
    def prefix(self) -> str:
        """What precedes the path of a file that this table lists, so that the table can be asked for as a split by its name."""
        return "" if is_metadata(self.name) or not self.name else f"{PurePosixPath(self.name).with_suffix('')}/"


def find_listings(root: Path, files: Sequence[str], kind: SignalKind, column: str | None, boundary: Boundary) -> list[Listing]:
    """The tables among `files` (relative paths) that list files of this kind: metadata tables, and other tables whose files are
    there; for texts only the former.

    Raises UserError for a metadata table without a column of files."""
    found = []
    media = [name.removesuffix("/") for name in with_ending(files, (*MEDIA[kind], *FRAMES))]
    for name in _candidates(files, kind):
        is_table_of_files = is_metadata(name)
        columns = path_columns(root / name, kind)
        if is_table_of_files and not columns:
            _refuse_without_files(root, name, media, kind)
        if columns and (is_table_of_files or column is None or column in columns):
            listing = read_listing(root / name, columns, kind, column, name, root, media)
            if is_table_of_files or any(map(os.path.exists, listing.files[:TRIED_PATHS])):
                boundary.require(listing.files, f"paths in {name}")
                found.append(listing)
            else:
                message = "%s: %s is not used: it lists %s files that are not there, such as %s"
                log.warning(message, root, name, kind, _relative(listing.files[0], root))
    return found


def _candidates(files: Sequence[str], kind: SignalKind) -> list[str]:
    """The tables that may list files; of folders with very many, such as one for each file, only the metadata."""
    tables = with_ending(files, (*TABLES, *MANIFESTS))
    of_folder = Counter(name.rpartition("/")[0] for name in tables)
    return [
        name
        for name in tables
        if is_metadata(name) or (kind != "text" and of_folder[name.rpartition("/")[0]] <= TABLES_OF_FOLDER)
    ]


def is_metadata(name: str) -> bool:
    """Whether a file is named as a metadata table."""
    return name.rpartition("/")[2].lower() in METADATA


def _refuse_without_files(root: Path, name: str, media: Sequence[str], kind: SignalKind) -> None:
    """Raise UserError for a metadata table without a column of files, or with one that names files of no kind."""
    first = first_values(root / name)
    if any("|" in column for column in first):
        raise UserError(
            f"{root / name} is separated by |, as LJ Speech's, which has no header either: write it as csv with a header "
            "such as file_name,transcript, or rename or remove it"
        )
    path_column = next((column for column in FILE_COLUMNS if column in first), None)
    if path_column is None:
        raise UserError(
            f"{root / name} has no column file_name with the paths of {kind} files, only {', '.join(first)}; add it, or rename "
            "or remove the table"
        )
    folder = name.rpartition("/")[0]
    stems = {os.path.splitext(os.path.relpath(file, folder or "."))[0] for file in media}
    values = [value for value in first[path_column] if value]
    near = [file for file in media if not folder or file.startswith(f"{folder}/")]
    if without := next((value for value in values if value in stems), None):
        raise UserError(f"{root / name}: column {path_column} names files without their endings, such as {without}; add them")
    endings = tuple(ending for of_kind in MEDIA.values() for ending in of_kind)
    if near and not any(value.lower().endswith(endings) for value in values):
        example = f"no {kind} files, but such as {values[0]}" if values else "no files, it has no text in its first rows"
        raise UserError(f"{root / name}: column {path_column} names {example}; correct it, or rename or remove the table")


def path_columns(path: Path, kind: SignalKind) -> dict[str, str]:
    """The columns of a table whose first value is the path of a file of this kind, or of a folder that is one, and what they
    hold; of columns that are named as those of files any of the first values."""
    manifest = read_manifest(path, rows=1)
    first = first_values(path) if manifest is None else manifest.columns.to_pydict()
    values = {name: next(filter(None, column), "") for name, column in first.items()}
    found = {
        name: "paths"
        for name, value in values.items()
        if any(each.lower().endswith(MEDIA[kind]) for each in (filter(None, first[name]) if name in FILE_COLUMNS else [value]))
    }
    if kind == "video" and not found:
        found = {name: "paths" for name in FILE_COLUMNS if values.get(name) and (path.parent / values[name]).is_dir()}
    return found


def read_listing(
    path: Path,
    columns: Mapping[str, str],
    kind: SignalKind,
    column: str | None,
    name: str,
    root: Path | None = None,
    media: Sequence[str] = (),
) -> Listing:
    """A table of files. Relative paths are relative to the folder of the table, or to a folder clips in it; if they are not
    there, to a folder above it, up to `root`, or to any folder below it, if only one of the files `media` in it is meant.

    `columns`: the `path_columns`. Raises UserError if several of them can be it, if most rows are without a file,
    and if rows are parts of recordings."""
    manifest = read_manifest(path)
    others = first_values(path) if manifest is None else manifest.columns.column_names
    chosen = find_column(columns, kind, column, str(path), others)
    table = manifest or read_table(path)
    values = [unwrapped(value) for value in table.columns[chosen].to_pylist()]
    broken = {i: "it names no file" for i, value in enumerate(values) if not isinstance(value, str) or not value}
    urls = {i: f"{value} is a URL; download it" for i, value in enumerate(values) if i not in broken and "://" in value}
    if urls and len(urls) == len(values) - len(broken):
        raise UserError(f"{path} names files by URLs, such as {values[min(urls)]}; download them")
    table = replace(table, broken=broken | urls | table.broken)
    table.refuse_if_mostly_broken()
    named = [index for index in range(len(values)) if index not in table.broken]
    values = [values[index] for index in named]
    _refuse_parts(path, table.columns.take(named), values)
    if any("\\" in value for value in values) and not any(map(os.path.exists, _joined(path.parent, values[:TRIED_PATHS]))):
        values = [value.replace("\\", "/") for value in values]
    found, is_elsewhere = _find_files(path.parent, values, root, media)
    files = [table.name(index) for index in range(len(table.columns))]
    for index, file in zip(named, found, strict=True):
        files[index] = file
    folder = name.rpartition("/")[0]
    columns_beside = rename_column(table.columns.drop_columns([chosen]), kind)
    signals = signal_table(files, kind, table.broken)[kind]
    return Listing(
        name, columns_beside.add_column(0, kind, signals), files, f"{folder}/" if folder and not is_elsewhere else ""
    )


def _joined(folder: Path, values: Sequence[str]) -> list[str]:
    return [os.path.join(folder, value) for value in values]


def _find_files(folder: Path, values: Sequence[str], root: Path | None, media: Sequence[str]) -> tuple[list[str], bool]:
    """The files that a table in `folder` lists as `values`; and whether they are outside of it."""
    tried = values[:TRIED_PATHS]
    above = [] if root is None else [parent for parent in folder.parents if parent.is_relative_to(root)]
    for base in (base_folder(folder, tried), *above):
        if any(map(os.path.exists, _joined(base, tried))):
            return [str(base / value) for value in values], base in above or any(value.startswith("..") for value in tried)
    by_name: dict[str, list[str]] = {}
    for file in media:
        by_name.setdefault(file.rpartition("/")[2], []).append(file)
    found = []
    for value in values:
        same = [file for file in by_name.get(value.rpartition("/")[2], ()) if f"/{file}".endswith(f"/{value}")]
        found.append(same[0] if len(same) == 1 else None)
    if root is None or None in found:
        return [str(folder / value) for value in values], False
    return [str(root / file) for file in found if file is not None], True


def _refuse_parts(path: Path, table: ArrowTable, values: Sequence[str]) -> None:
    """Raise UserError if rows are parts of recordings: with an offset, or several of one file that begin at other times."""
    if "offset" in table.column_names and any(map(_is_offset, table["offset"].to_pylist())):
        raise UserError(
            f"{path}: column offset is not 0 in all rows, but parts of recordings cannot be read; cut the recordings"
        )
    for name in table.column_names:
        if name.lower() in BEGINNINGS:
            first: dict[str, Any] = {}
            for value, begin in zip(values, table[name].to_pylist(), strict=True):
                if first.setdefault(value, begin) != begin:
                    raise UserError(
                        f"{path}: by column {name}, rows are parts of {value}, but parts of recordings cannot be read; cut the "
                        "recordings, or remove the column"
                    )


def listing_source(
    where: str,
    root: Path,
    listings: Sequence[Listing],
    files: Sequence[str],
    kind: SignalKind,
    of_lists: Mapping[str, SplitName] | None = None,
) -> Source:
    """The rows of tables that list files.

    `files`: the relative paths of all files of this kind; those in the folder of a table that does not list them are left out.
    `of_lists`: the splits of files by `splits_of_lists`. A row belongs to the split that its table is named by, or else its
    file. Raises UserError if a file is listed for two."""
    tables = [listing for listing in listings for _ in listing.files]
    paths = [os.path.normpath(path) for listing in listings for path in listing.files]
    of_rows = [_relative(path, root) for path in paths]
    known = set(of_rows)
    unlisted = [file for file in files if file not in known and any(file.startswith(each.covers) for each in listings)]
    loose = sorted({*files} - known - {*unlisted})
    rows = concat_tables(
        [listing.table for listing in listings] + [signal_table([str(root / file) for file in loose], kind)] * bool(loose),
        [listing.name for listing in listings],
    )
    every = [*of_rows, *loose, *unlisted]
    splits = [
        (of_lists or {}).get(file, split) for file, split in zip(every, name_splits(every, is_example, where), strict=True)
    ]
    of_table = name_splits([listing.name for listing in listings], is_example, where)
    split_of_table = {listing.name: split for listing, split in zip(listings, of_table, strict=True)}
    first: dict[str, SplitName] = {}
    for index, listing in enumerate(tables):
        split = split_of_table[listing.name]
        if split is not None and (other := splits[index]) is not None and other.split != split.split:
            raise UserError(
                f"{where}: {listing.name} lists {of_rows[index]}, which belongs to another split; correct the table"
            )
        splits[index] = split = split or splits[index]
        if split is not None and (before := first.setdefault(paths[index], split)).split != split.split:
            raise UserError(f"{where}: {of_rows[index]} is listed for {before.name} and for {split.name}; remove one of them")
    names = [listing.prefix + file for listing, file in zip(tables, of_rows, strict=True)] + loose + unlisted
    order, which = [*of_rows, *loose], ", ".join(listing.name for listing in listings)

    def read(indices: list[int], choice: SplitChoice) -> Rows:
        taken = [index for index in indices if index < len(rows)]
        left_out = [names[index] for index in indices if index >= len(rows)]
        if not taken:
            raise UserError(
                f"{where}: {which} lists none of {len(left_out)} {kind} files, such as {left_out[0]}; list them, or give their "
                "folder as the data"
            )
        if left_out:
            there = {order[index] for index in taken} & {*files}  # not what a row names that is missing, or twice
            message = "%s: left out as %s does not list them, %d of %d %s files: %s"
            log.warning(message, where, which, len(left_out), len(left_out) + len(there), kind, listed(left_out))
        listed_files = [paths[index] for index in taken if index < len(tables)]
        if again := len(listed_files) - len(
            {*zip(listed_files, (tables[i].name for i in taken if i < len(tables)), strict=True)}
        ):
            log.warning("%s: %d of %d rows of %s name a file that another row names", where, again, len(listed_files), which)
        if len(listings) > 1 or loose:
            first_table: dict[str, str] = {}
            once = [
                index
                for index in taken
                if index >= len(tables) or first_table.setdefault(paths[index], tables[index].name) == tables[index].name
            ]
            if len(once) < len(taken):
                message = "%s: left out as another table lists the same file, %d of %d rows"
                log.warning(message, where, len(taken) - len(once), len(taken))
            # In the order of files without tables, so that a table in a folder changes no run on all folders.
            taken = sorted(once, key=order.__getitem__)
        return dataset_from_table(rows.take(taken))

    return Source(where, names, splits, read)


def _relative(path: str, root: Path) -> str:
    """The path below `root`; of another file only its name, as its folders say nothing of this dataset."""
    relative = os.path.relpath(path, root)
    return os.path.basename(path) if relative.startswith("..") else PurePosixPath(relative).as_posix()


def _is_offset(value: Any) -> bool:
    try:
        return float(value or 0) != 0
    except ValueError:
        return False


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
        parts = path.removesuffix("/").split("/")
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
