"""Tables that list files: metadata.csv beside them, or any table with a column of paths, such as Common Voice's or NeMo's."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data2vec.data.dataset import Rows
from data2vec.data.sources.columns import FILE_COLUMNS, find_column
from data2vec.data.sources.formats import MANIFESTS, MEDIA, TABLES, SignalKind, is_example, with_ending
from data2vec.data.sources.library import dataset_from_table
from data2vec.data.sources.local import TRIED_PATHS, base_folder, signal_table
from data2vec.data.sources.splits import Source, SplitChoice, SplitName, listed, name_splits
from data2vec.data.sources.tables import ArrowTable, concat_tables, first_values, read_table, rename_column
from data2vec.errors import UserError, get_logger

log = get_logger(__name__)

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

    @property
    def covers(self) -> str:
        """The start of the relative paths of all files that it should list."""
        folder = self.name.rpartition("/")[0]
        return f"{folder}/" if folder else ""

    @property
    def prefix(self) -> str:
        """What precedes the path of a file that this table lists, so that the table can be asked for as a split by its name."""
        is_metadata = self.name.rpartition("/")[2].lower() in METADATA
        return "" if is_metadata or not self.name else f"{PurePosixPath(self.name).with_suffix('')}/"


def find_listings(root: Path, files: Sequence[str], kind: SignalKind, column: str | None) -> list[Listing]:
    """The tables among `files` (relative paths) that list files of this kind: metadata tables in any folder, and other tables
    directly in `root` whose files are there; for texts only the former.

    Raises UserError for a metadata table without a column of files."""
    found = []
    for name in with_ending(files, (*TABLES, *MANIFESTS)):
        is_metadata = name.rpartition("/")[2].lower() in METADATA
        if is_metadata or (kind != "text" and "/" not in name):
            columns = path_columns(root / name, kind)
            if is_metadata and not columns and not any(other in FILE_COLUMNS for other in first_values(root / name)):
                raise UserError(
                    f"{root / name} has no column file_name with the paths of {kind} files, only "
                    f"{', '.join(first_values(root / name))}; add it, or rename or remove the table"
                )
            if columns and (is_metadata or column is None or column in columns):
                listing = read_listing(root / name, columns, kind, column, name)
                if is_metadata or any(map(os.path.exists, listing.files[:TRIED_PATHS])):
                    found.append(listing)
    return found


def path_columns(path: Path, kind: SignalKind) -> dict[str, str]:
    """The columns of a table whose first value is the path of a file of this kind, and what they hold."""
    values = {name: next(filter(None, column), "") for name, column in first_values(path).items()}
    return {name: "paths" for name, value in values.items() if value.lower().endswith(MEDIA[kind])}


def read_listing(path: Path, columns: Mapping[str, str], kind: SignalKind, column: str | None, name: str) -> Listing:
    """A table of files. Relative paths are relative to the folder of the table, or to a folder clips in it.

    `columns`: the `path_columns`. Raises UserError if several of them can be it, and for rows without a file."""
    chosen = find_column(columns, kind, column, str(path), first_values(path))
    table = read_table(path)
    values = table[chosen].to_pylist()
    if missing := [number for number, value in enumerate(values) if not value]:
        raise UserError(f"{path}: row {missing[0] + 1} has no {chosen}{_more(missing)}; fill it in, or remove the row")
    if "offset" in table.column_names and any(map(_is_offset, table["offset"].to_pylist())):
        raise UserError(
            f"{path}: column offset is not 0 in all rows, but parts of recordings cannot be read; cut the recordings"
        )
    base = base_folder(path.parent, values[:TRIED_PATHS])
    files = [str(base / value) for value in values]
    others = rename_column(table.drop_columns([chosen]), kind)
    return Listing(name, others.add_column(0, kind, signal_table(files, kind)[kind]), files)


def listing_source(where: str, root: Path, listings: Sequence[Listing], files: Sequence[str], kind: SignalKind) -> Source:
    """The rows of tables that list files.

    `files`: the relative paths of all files of this kind; those in the folder of a table that does not list them are left out.
    A row belongs to the split that its table is named by, or else its file. Raises UserError if a file is listed for two."""
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
    splits = name_splits([*of_rows, *loose, *unlisted], is_example, where)
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
            message = "%s: left out as %s does not list them, %d of %d %s files: %s"
            log.warning(message, where, which, len(left_out), len(indices), kind, listed(left_out))
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


def _more(numbers: Sequence[int]) -> str:
    return f", nor {len(numbers) - 1} more rows" if len(numbers) > 1 else ""
