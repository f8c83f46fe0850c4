"""Selection of rows of a dataset: by the values of columns, by a fixed part, and by a random fraction."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from data2vec.data.cache import column_paths
from data2vec.data.sources.columns import class_names, label_value
from data2vec.errors import UserError, did_you_mean, get_logger
from data2vec.settings import Settings

log = get_logger(__name__)
SHOWN = 10
"""How many values or columns a message names."""
PATH = "path"
"""The column name that stands for the path of a row's file, if the data has no such column."""


def _as_sequence(values: object) -> object:
    return (values,) if isinstance(values, str | int | float) else values


Values = Annotated[tuple[str | int | float, ...], Field(strict=False, min_length=1), BeforeValidator(_as_sequence)]
"""One or several values of a column, compared as text; `*` and `?` are wildcards."""


class RowSelection(Settings):
    """The rows of a dataset to use; all by default. `where` and `exclude` come first, then `part`, then `fraction`."""

    where: dict[str, Values] = Field(default={})
    """Only rows with these values, by column: {speaker: [anna, ben]}; * and ? are wildcards. `path` is the file's path."""
    exclude: dict[str, Values] = Field(default={})
    """Without the rows with these values, by column, such as {speaker: [anna]}."""
    part: Annotated[tuple[float, float], Field(strict=False)] = (0.0, 1.0)
    """From where to where, 0 to 1, in a fixed random order of the rows: [0, 0.9] and [0.9, 1] share no row."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A random fraction of the rows, drawn with `seed`, of each class of `stratify` and at least one of it."""
    seed: int = 0
    """Seed of `fraction`. With the same seed, a smaller fraction is a subset of a larger one."""
    stratify: str | None = None
    """A column of classes: `part` and `fraction` are taken of each class. None: of all rows together."""

    @model_validator(mode="after")
    def _part_is_a_range(self) -> "RowSelection":
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(f"part: {list(self.part)} is not a range within 0 and 1, such as [0, 0.9]")
        return self


def select_rows(rows: Any, selection: RowSelection, name: str, kind: str | None = None) -> Any:
    """The selected rows of a `datasets.Dataset`, a list of rows or an array, in their order.

    `name`: the setting, for messages. `kind`: the column of the signal. Raises UserError when streaming, for a column or value
    that the data does not have, and if no row remains."""
    if selection == RowSelection(seed=selection.seed, stratify=selection.stratify):
        return rows
    if not hasattr(rows, "__len__"):
        raise UserError(f"{name}: rows of a stream cannot be selected; set data.streaming=false, or select them beforehand")
    keep = np.ones(len(rows), bool)
    for setting, columns, wanted in (("where", selection.where, True), ("exclude", selection.exclude, False)):
        for column, values in columns.items():
            keep &= _matches(rows, column, values, f"{name}.{setting}", kind) == wanted
    indices = np.flatnonzero(keep)
    if not len(indices):
        raise UserError(f"{name}: none of the {len(rows)} rows is selected by {_shown(selection)}; relax where or exclude")
    classes = np.zeros(len(indices), np.int64)
    if selection.stratify is not None:
        texts = _column(rows, selection.stratify, f"{name}.stratify", kind)
        classes = np.unique([texts[index] for index in indices], return_inverse=True)[1]
    rank, size = _ranks(classes, 0)
    first, last = selection.part
    in_part = (first <= rank / size) & (rank / size < last)
    indices, classes = indices[in_part], classes[in_part]
    if not len(indices):
        raise UserError(f"{name}.part: [{first:g}, {last:g}] of {len(in_part)} rows is none; use a larger part")
    rank, size = _ranks(classes, selection.seed + 1)
    indices = indices[rank < np.ceil(selection.fraction * size - 1e-9)]
    log.warning("%s: %d of %d rows selected", name, len(indices), len(rows))  # a warning, since these are always shown
    if hasattr(rows, "select"):
        return rows.select(indices)
    return rows[indices] if isinstance(rows, np.ndarray) else [rows[index] for index in indices]


def _ranks(classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the rank of each row within its class, from 0, in a random order; and (n,) the size of its class."""
    rank = np.empty(len(classes), np.int64)
    order = np.random.default_rng(seed).permutation(len(classes))
    sizes = np.bincount(classes, minlength=1)
    for number, size in enumerate(sizes):
        rank[order[classes[order] == number]] = np.arange(size)
    return rank, sizes[classes]


def _matches(rows: Any, column: str, values: Sequence[object], name: str, kind: str | None) -> np.ndarray:
    """(n,) whether the value of `column` is one of `values`. Raises UserError for a value that no row has."""
    texts = _column(rows, column, name, kind)
    existing = {text for text in texts if text is not None}
    matching: set[str] = set()
    for value in values:
        found = {text for text in existing if text == str(value) or fnmatchcase(text, str(value))}
        if not found:
            names = _listed(existing)
            raise UserError(f"{name}.{column}: no row has {str(value)!r}{did_you_mean(str(value), existing)}; it is {names}")
        matching |= found
    return np.array([text in matching for text in texts])


def _column(rows: Any, column: str, name: str, kind: str | None) -> list[str | None]:
    """The values of a column as text; a class as its name."""
    features = getattr(rows, "features", None)
    columns = list(features or (rows[0] if isinstance(rows, list) and rows else ()))
    if column not in columns:
        if column == PATH and features and kind is not None and kind in features and (paths := column_paths(rows, kind)):
            return [str(path) for path in paths]
        raise UserError(f"{name}: there is no column {column!r} in the data; the columns are {_listed(columns)}")
    values = [row[column] for row in rows] if features is None else rows[column]
    names = class_names(features[column]) if features is not None else None
    return [None if (label := label_value(value, names)) is None else str(label) for value in values]


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "") if names else "none"


def _shown(selection: RowSelection) -> str:
    changes = {
        key: {column: list(values) for column, values in getattr(selection, key).items()} for key in ("where", "exclude")
    }
    return ", ".join(f"{key}: {value}" for key, value in changes.items() if value)
