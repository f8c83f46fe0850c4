"""The labelled data of a probe: training and validation sets."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data2vec.data.dataset import ExampleDataset
from data2vec.data.sources.selection import RowSelection
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.recipe.task_settings import ProbeSettings

VALID_FRACTION = 0.2
"""The fraction of `probe.data` that is held out if there is no `probe.valid`."""


@dataclass(frozen=True)
class ProbeSet:
    """ProbeSet examples and their classes."""

    name: str
    """The setting that names the data, for error messages."""
    examples: ExampleDataset
    indices: np.ndarray
    """(n,) indices into `examples`."""
    classes: np.ndarray
    """(n,) class names."""

    def subset(self, rows: np.ndarray) -> "ProbeSet":
        """The examples at `rows`, from 0 to n - 1."""
        return ProbeSet(self.name, self.examples, self.indices[rows], self.classes[rows])


def load_probe_sets(modality: Modality, settings: ProbeSettings, seed: int) -> tuple[ProbeSet, ProbeSet]:
    """The training and the validation set.

    Raises UserError if data or labels are missing, if there is only one class, or if a class is in the validation set only."""
    if settings.data is None:
        raise UserError("probe.data: no labelled data; set probe.data to a folder of class folders, or a table with labels")
    train = _load("probe.data", settings.data, settings.data_rows, modality, settings, seed)
    if settings.valid is not None:
        valid = _load("probe.valid", settings.valid, settings.valid_rows, modality, settings, seed)
    else:
        train, valid = _split(train, seed)
    classes = np.unique(train.classes)
    if len(classes) < 2:
        raise UserError(
            f"probe.data: every example has the {settings.label} {str(classes[0])!r}; a probe needs at least two classes"
        )
    if unknown := sorted(set(valid.classes) - set(classes)):
        raise UserError(
            f"{valid.name}: {settings.label} {', '.join(unknown[:5])} {'is' if len(unknown) == 1 else 'are'} not among the "
            f"{len(train.indices)} training examples, which have {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        )
    return train, valid


def _load(name: str, where: str, selection: RowSelection, modality: Modality, settings: ProbeSettings, seed: int) -> ProbeSet:
    try:
        rows = modality.selected_rows(where, selection, f"{name}_rows")
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(f"{name}_rows") else f"{name}: {error}") from None
    examples = modality.labelled(rows)
    indices = np.arange(len(examples))
    if len(indices) > settings.max_examples:
        indices = np.random.default_rng(seed).permutation(len(indices))[: settings.max_examples]
    return ProbeSet(name, examples, indices, _classes(examples, indices, settings.label, where))


def _split(probe_set: ProbeSet, seed: int) -> tuple[ProbeSet, ProbeSet]:
    """A stratified split: the same class frequencies in both sets."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(probe_set.indices))
    try:
        train, valid = train_test_split(rows, test_size=VALID_FRACTION, stratify=probe_set.classes, random_state=seed)
    except ValueError as error:
        raise UserError(
            f"probe.data: cannot hold out a fifth of it ({error}); set probe.valid, or add examples of each class"
        ) from None
    return probe_set.subset(np.sort(train)), probe_set.subset(np.sort(valid))


def _classes(examples: ExampleDataset, indices: np.ndarray, column: str, where: str) -> np.ndarray:
    try:
        values: list[Any] = [examples.label(int(index), column) for index in indices]
    except UserError as error:
        raise UserError(f"probe.label: {error} ({where})") from None
    if missing := sum(value is None for value in values):
        raise UserError(f"probe.label: {missing} of {len(values)} examples in {where} have no {column!r}; label or remove them")
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise UserError(f"probe.label: {column!r} in {where} holds numbers such as {values[0]:g}, not classes")
    return np.array([str(value) for value in values])
