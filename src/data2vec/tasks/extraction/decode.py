"""Many inputs: opened in any form, and decoded by worker processes, in order."""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data2vec.data.corrupt import load_example
from data2vec.data.dataset import UNREADABLE, DataSettings, Rows
from data2vec.data.loader import init_worker
from data2vec.data.sources.library import data_path
from data2vec.errors import CorruptExample, UserError, did_you_mean
from data2vec.feature_extraction import num_positions
from data2vec.inputs import list_inputs, read_input, require_pairs, require_tokenizer
from data2vec.modalities.base import Modality
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict, JsonMapping

CHUNK = 32
"""Number of inputs that a worker decodes at a time."""
WINDOW = 8
"""Number of batches whose inputs are sorted by length together."""
SHOWN = 20
"""How many unreadable inputs a summary names."""
NAMED = 1000
"""How many unreadable inputs a result names; all are counted."""
READING = (
    *("split", "column", "second", "follow_links", "workers", "tokenizer", "block_size", "frame_stride"),
    *("rate", "time_axis", "channels", "time_column", "time_unit", "array", "missing_channels"),
)
"""The settings of `data:` that say how inputs are read. Those of a custom modality may, too."""
DecodedInput = tuple[str, Any]
"""The name of an input, and the decoded input or, as a string, why it cannot be decoded."""


def open_inputs(
    recipe: Recipe,
    inputs: Any,
    split: str,
    column: str | None,
    follow_links: bool,
    second: str | None = None,
    overrides: JsonMapping = MappingProxyType({}),
) -> tuple[Modality, Rows]:
    """The rows of a data set, or the list of inputs, and the modality that reads them, of this recipe with another data set.

    `inputs`: a data set in any form that `data.train` accepts, or a `datasets.Dataset` or `DatasetDict`, of which `split` is
    used; or a list of inputs as for `Model.features`. `column`, `second`, `follow_links`: as in the `data:` section; without
    `second` the recipe's; without `column` the recipe's, if the data has it. `overrides`: other settings by which inputs are
    read, which precede these. Raises UserError if there are no inputs, and for settings of something else."""
    _require_reading(recipe, overrides)
    changes: JsonDict = {"data.split": split, "data.follow_links": follow_links}
    changes |= {} if column is None else {"data.column": column}
    changes |= {} if second is None else {"data.second": second}
    modality = load_recipe(recipe, changes | dict(overrides) | {"data.streaming": False}).build_modality()
    inputs = data_path(inputs) if hasattr(inputs, "save_to_disk") else inputs
    if isinstance(inputs, str | Path):
        require_tokenizer(modality)
        modality, rows = _open_dataset(modality, str(inputs), column is None and "data.column" not in overrides)
        if not len(rows):
            raise UserError(f"{inputs}: has no rows, so there is nothing to do")
    else:
        rows = list_inputs(modality, inputs)
        folder = next((row for row in rows if isinstance(row, Path) and row.is_dir()), None)
        if folder is not None and getattr(modality, "kind", None) != "video":  # where each may be the frames of one
            raise UserError(f"{folder} is a folder: give one dataset alone, or files")
    require_pairs(modality, rows)
    return modality, rows


def _require_reading(recipe: Recipe, keys: Iterable[str]) -> None:
    """Raises UserError for a setting that has no effect on how inputs are read, or that is unknown."""
    known = type(recipe.data).model_fields
    own = {name for name in known if name in READING or not _is_shipped(type(recipe.data), name)}
    aliases = [key for key in ("modality.aliases",) if "aliases" in type(recipe.modality).model_fields]
    allowed = [*(f"data.{each}" for each in known if each in own), *aliases]
    for key in keys:
        section, name = [*key.split("."), ""][:2]
        if f"{section}.{name}" in allowed:
            continue
        exists = name in getattr(type(getattr(recipe, section, None)), "model_fields", ())
        hint = "" if exists else did_you_mean(f"{section}.{name}", allowed)
        settings = ", ".join(allowed)
        raise UserError(f"{key}: is not about how inputs are read{hint}; of this model these settings are: {settings}")


def _is_shipped(data: type[DataSettings], name: str) -> bool:
    """Whether a setting of `data:` is defined by this package, not by a custom modality."""
    shipped = (each for each in data.__mro__ if each.__module__.partition(".")[0] == __name__.partition(".")[0])
    return any(name in getattr(each, "model_fields", {}) for each in shipped)


def _open_dataset(modality: Modality, where: str, may_guess: bool) -> tuple[Modality, Rows]:
    """The rows of a data set, by the column that the model has learned from. `may_guess`: or another one, in other data."""
    if may_guess and modality.data.column is not None:
        try:
            return modality, modality.rows(where)
        except UserError:
            modality = modality.reading(modality.whole_split, column=None)
    return modality, modality.rows(where)


def list_unreadable(unreadable: Sequence[str], count: int, what: str) -> list[str]:
    """The lines of a summary that name the first of `count` inputs that cannot be decoded, and have in the file what `what`
    says."""
    if not count:
        return []
    groups = _by_reason(unreadable)
    left = count - sum(len(names) for _, names in groups[:SHOWN])
    lines = [f"{count} more cannot be decoded, and {what}:", *(f"  {line}" for line in reasons(unreadable)[:SHOWN])]
    return [*lines, *([f"  and {left} more"] if left else [])]


def reasons(unreadable: Sequence[str]) -> list[str]:
    """A line for each reason in "name: reason" of inputs: it names the first of them, and counts the others."""
    return [f"{first}{f' and {len(more)} more' if more else ''}: {reason}" for reason, (first, *more) in _by_reason(unreadable)]


def _by_reason(unreadable: Sequence[str]) -> list[tuple[str, list[str]]]:
    names: dict[str, list[str]] = {}
    for name, _, reason in (each.partition(": ") for each in unreadable):
        names.setdefault(reason, []).append(name)
    return list(names.items())


def decode_in_order(
    modality: Modality, rows: Rows, ranges: Sequence[range], positions: int
) -> Iterator[tuple[int, list[DecodedInput]]]:
    """The decoded inputs of `ranges` in order, in lists of at least `positions` positions, or up to the end of a range, each
    with the index of its first input."""
    chunks = [part[start : start + CHUNK] for part in ranges for start in range(0, len(part), CHUNK)]
    loader = DataLoader(
        _DecodeDataset(modality, rows),
        batch_size=None,
        sampler=chunks,
        num_workers=min(modality.data.num_workers, len(chunks) // 2),
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else creating the iterator would advance the global random state
    )
    window: list[DecodedInput] = []
    first = size = 0
    for chunk, packed in zip(chunks, loader, strict=True):
        if window and first + len(window) != chunk.start:
            yield first, window
            window, size = [], 0
        first = first if window else chunk.start
        window += (decoded := pickle.loads(packed))
        size += sum(0 if isinstance(item, str) else num_positions(modality, item) for _, item in decoded)
        if size >= positions:
            yield first, window
            window, size = [], 0
    if window:
        yield first, window


class _DecodeDataset(Dataset[bytes]):
    """Decodes a range of inputs in a worker; pickled here, since every tensor sent by itself would take a file descriptor."""

    def __init__(self, modality: Modality, rows: Rows):
        self.modality, self.rows = modality, rows
        self.kind = getattr(modality, "kind", None)
        self.examples = modality.labelled(rows) if self.kind is None else None
        if hasattr(rows, "select_columns"):
            needed = (self.kind, getattr(modality.data, "second", None), "path", "key", UNREADABLE)
            self.rows = rows.select_columns([name for name in needed if name in rows.column_names])

    def __getitem__(self, chunk: range) -> bytes:
        return pickle.dumps([self._read(index) for index in chunk])

    def _read(self, index: int) -> DecodedInput:
        row, name = self.rows[index], f"input {index + 1}"
        if isinstance(row, Path):
            name = str(row)
        elif isinstance(row, dict):
            signal = row.get(self.kind)
            name = (signal.get("path") if isinstance(signal, dict) else None) or row.get("path") or row.get("key") or name
        try:
            if self.examples is not None:
                return name, load_example(self.examples, index, None, None)
            return name, read_input(self.modality, row, name)
        except (CorruptExample, UserError) as error:
            return name, str(error)
