"""Labelled examples for a probe: some to fit classifiers on, some held out."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data2vec.data.dataset import ExampleDataset
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.recipe.task_settings import ProbeSettings

HELD_OUT = 0.2
"""The share of `probe.data` that is held out where there is no `probe.valid`."""


@dataclass(frozen=True)
class Labelled:
    """Some of a set of examples, and their classes."""

    name: str
    """The setting that says where they are."""
    examples: ExampleDataset
    indices: np.ndarray
    """(n,) which of the examples."""
    classes: np.ndarray
    """(n,) as words."""

    def take(self, places: np.ndarray) -> "Labelled":
        """Those at `places`, counted from 0 to n - 1."""
        return Labelled(self.name, self.examples, self.indices[places], self.classes[places])


def open_labelled(modality: Modality, settings: ProbeSettings, seed: int) -> tuple[Labelled, Labelled]:
    """What to fit on and what to measure on.

    Raises UserError when data or labels are missing, when there is only one class, or when a class is only held out."""
    if settings.data is None:
        raise UserError("probe.data: where is the labelled data? A folder of class folders, or a table with labels")
    fit = _open("probe.data", settings.data, modality, settings, seed)
    if settings.valid is not None:
        held = _open("probe.valid", settings.valid, modality, settings, seed)
    else:
        fit, held = _split(fit, seed)
    classes = np.unique(fit.classes)
    if len(classes) < 2:
        raise UserError(
            f"probe.data: every example has the {settings.label} {str(classes[0])!r}; a probe needs at least two classes"
        )
    if strange := sorted(set(held.classes) - set(classes)):
        raise UserError(
            f"{held.name}: {settings.label} {', '.join(strange[:5])} {'is' if len(strange) == 1 else 'are'} not among the "
            f"{len(fit.indices)} examples to fit on, which have {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        )
    return fit, held


def _open(name: str, where: str, modality: Modality, settings: ProbeSettings, seed: int) -> Labelled:
    try:
        rows = modality.rows(where)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    examples = modality.labelled(rows)
    indices = np.arange(len(examples))
    if len(indices) > settings.max_examples:
        indices = np.random.default_rng(seed).permutation(len(indices))[: settings.max_examples]
    return Labelled(name, examples, indices, _classes(examples, indices, settings.label, where))


def _split(labelled: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Every class in the same shares on both sides."""
    from sklearn.model_selection import train_test_split

    places = np.arange(len(labelled.indices))
    try:
        fit, held = train_test_split(places, test_size=HELD_OUT, stratify=labelled.classes, random_state=seed)
    except ValueError as error:
        raise UserError(
            f"probe.data: a fifth of it cannot be held out ({error}); give held-out data by probe.valid, or more examples of "
            "each class"
        ) from None
    return labelled.take(np.sort(fit)), labelled.take(np.sort(held))


def _classes(examples: ExampleDataset, indices: np.ndarray, column: str, where: str) -> np.ndarray:
    try:
        values: list[Any] = [examples.label(int(index), column) for index in indices]
    except UserError as error:
        raise UserError(f"probe.label: {error} ({where})") from None
    if missing := sum(value is None for value in values):
        raise UserError(f"probe.label: {missing} of {len(values)} examples in {where} have no {column!r}; label or remove them")
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise UserError(f"probe.label: {column!r} in {where} holds numbers, such as {values[0]:g}, not classes")
    return np.array([str(value) for value in values])
