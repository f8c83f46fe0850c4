"""Which column of a table is what: the signal, by setting, name or type; and labels as text, missing ones as None."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from data2vec.data.sources.formats import SignalKind
from data2vec.errors import UserError, did_you_mean, quoted

FILE_COLUMNS = ("file_name", "filename", "file", "path", "filepath", "file_path")
KNOWN_COLUMNS: dict[SignalKind, tuple[str, ...]] = {
    "audio": ("audio", "audio_filepath", "audio_path", "audio_file", "wav", "speech", *FILE_COLUMNS, "bytes"),
    "image": ("image", "img", "image_path", "image_file", "picture", *FILE_COLUMNS, "bytes"),
    "recording": ("recording", "signal", *FILE_COLUMNS),
    "video": ("video", "volume", *FILE_COLUMNS, "bytes"),
    "text": ("text", "sentence", "sentence1", "content", "document"),
}
"""Columns that are taken for the signal, in order of preference."""
NOT_TEXT = re.compile(rf"labels?|split|key|{'|'.join(FILE_COLUMNS)}|(.*[_\W])?(id|ids|idx|index|uuid|url)", re.IGNORECASE)
"""Names of columns that are not taken for the text, if another one can be."""


class NoSignal(UserError):
    """The data has nothing that can be read as audio, image or text."""


def find_column(candidates: Mapping[str, str], kind: SignalKind, column: str | None, where: str, others: Iterable[str]) -> str:
    """The column that holds the signal: `column` (`data.column`), or else the first of `KNOWN_COLUMNS`, or the only candidate.

    `candidates`: the columns that can hold it, and what they hold; `others`: all columns. Raises UserError if there is none, or
    several of which none has a known name."""
    others = list(others)
    if column is not None:
        if column in candidates:
            return column
        if column in others:
            raise NoSignal(f"data.column: {column!r} of {where} does not hold {kind}{_or_one_of(candidates)}")
        raise UserError(
            f"data.column: {where} has no column {column!r}{did_you_mean(column, others)}; it has {_listed(others)}"
        )
    if known := next((name for name in KNOWN_COLUMNS[kind] if name in candidates), None):
        return known
    likely = [name for name in candidates if kind != "text" or not NOT_TEXT.fullmatch(name)] or list(candidates)
    if len(likely) == 1:
        return likely[0]
    if not likely:
        raise NoSignal(f"{where}: no column holds {kind}; the columns are {_listed(others)}")
    raise UserError(f"{where}: several columns can hold {kind}, {_listed(likely)}; name one by data.column")


def _or_one_of(candidates: Iterable[str]) -> str:
    return f"; {_listed(candidates)} can" if list(candidates) else ", and neither does another column"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def require_labels(label: str, columns: Iterable[str], kind: SignalKind, column: str | None) -> None:
    """Raise UserError if rows have no column `label` (`--labels`), unless it is the default one.

    `columns`: of the rows, in which `column` (`data.column`) of the data is `kind`."""
    if label != "label" and label not in columns:
        others = _listed(name.removeprefix("original_") for name in columns if name != kind)
        raise UserError(f"--labels: the data has no column {quoted(label)} beside {column or f'the {kind}'}, only {others}")


def class_names(feature: Any) -> list[str] | None:
    """The names of a column of classes, or of lists of classes; None for other columns."""
    feature = feature[0] if isinstance(feature, list) else feature
    return getattr(getattr(feature, "feature", feature), "names", None)


def label_value(value: Any, names: list[str] | None = None) -> Any:
    """The value of a label: classes by `names`; None for a missing one, which is null, NaN, empty, or the class -1."""
    if isinstance(value, list | tuple):
        values = [label_value(each, names) for each in value]
        return None if None in values else values
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        return names[value] if value >= 0 else None
    return None if is_missing(value) else value


def is_missing(value: Any) -> bool:
    """Whether a label is null, NaN or empty. An empty list is a label: none of the classes."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip())
