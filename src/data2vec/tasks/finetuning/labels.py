"""From the labels of a data set to what a head has to say, and back."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.errors import UserError
from data2vec.modalities.base import Examples
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings
from data2vec.tasks.asr.vocabulary import Alphabet

log = logging.getLogger(__name__)
SHOWN = 5
"""How many of many are named in a message."""


class Targets(ABC):
    """What the labels of a task are."""

    head: Any
    """The settings of a head that tells them (`data2vec.nn.heads`)."""

    @abstractmethod
    def encode(self, value: Any) -> Any:
        """A label as numbers. Raises ValueError, saying what is wrong with it."""

    @abstractmethod
    def collate(self, values: Sequence[Any]) -> Tensor:
        """Encoded labels of a batch as one tensor."""

    def shares(self, labels: Tensor) -> Tensor:
        """The same as (B, V) shares of each class. Raises UserError where there are no classes."""
        raise UserError("objective.mixing: only classes can be mixed; set it to null")


class Transcripts(Targets):
    """Sequences of labels: (B, L), -1 after the last one of a row."""

    def __init__(self, alphabet: Alphabet):
        self.alphabet = alphabet
        self.head = CTCSettings(labels=tuple(alphabet.labels))

    def encode(self, value: Any) -> list[int]:
        return self.alphabet.encode(str(value))

    def collate(self, values: Sequence[list[int]]) -> Tensor:
        rows = [torch.tensor(value, dtype=torch.long) for value in values]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


class Classes(Targets):
    """One class of several (B,), or any number of them (B, V)."""

    def __init__(self, names: Sequence[str], settings: ClassificationSettings):
        self.numbers = {name: number for number, name in enumerate(names)}
        self.many = settings.problem == "multi_label_classification"
        self.head = _classifier(names, settings)

    def encode(self, value: Any) -> Any:
        found = split(value) if self.many else [str(value)]
        if strange := [name for name in found if name not in self.numbers]:
            raise ValueError(f"{strange[0]!r} is none of the {len(self.numbers)} classes of the training data")
        numbers = [self.numbers[name] for name in found]
        return numbers if self.many else numbers[0]

    def collate(self, values: Sequence[Any]) -> Tensor:
        if not self.many:
            return torch.tensor(values)
        rows = torch.zeros(len(values), len(self.numbers))
        for row, numbers in zip(rows, values, strict=True):
            row[numbers] = 1.0
        return rows

    def shares(self, labels: Tensor) -> Tensor:
        """The same as (B, V) shares of each class."""
        return labels if self.many else torch.nn.functional.one_hot(labels, len(self.numbers)).float()


class Numbers(Targets):
    """A number each, (B,)."""

    def __init__(self, settings: ClassificationSettings):
        self.head = _classifier([settings.label], settings)

    def encode(self, value: Any) -> float:
        number = float(value)
        if not np.isfinite(number):
            raise ValueError(f"{value!r} is no number")
        return number

    def collate(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)


def targets_of(values: Sequence[Any], settings: RecognitionSettings | ClassificationSettings, known: Any = None) -> Targets:
    """The targets that the labels of the training data ask for. `known`: the settings of a head that the model has already,
    whose alphabet is taken when none is given. Raises UserError when there is nothing to tell apart."""
    if isinstance(settings, RecognitionSettings):
        labels = settings.alphabet or (known.labels if isinstance(known, CTCSettings) else None)
        return Transcripts(Alphabet(labels) if labels else Alphabet.of([str(value) for value in values]))
    if settings.problem == "regression":
        return Numbers(settings)
    many = settings.problem == "multi_label_classification"
    names = {name for value in values for name in (split(value) if many else [str(value)])}
    if len(names) < 2:
        raise UserError(
            f"objective.label: every example has the {settings.label} {', '.join(names) or 'of no class'!r}; there is nothing "
            "to tell apart"
        )
    return Classes(sorted(names, key=_natural), settings)


def targets_of_head(head: CTCSettings | ClassifierSettings, settings: Any) -> Targets:
    """The targets that a head tells already. `settings`: of its task."""
    if isinstance(head, CTCSettings):
        return Transcripts(Alphabet(head.labels))
    return Numbers(settings) if head.problem == "regression" else Classes(head.labels, settings)


def read_labels(examples: Examples, column: str, where: str) -> list[Any]:
    """The value of `column` of every example, None where there is none. Raises UserError when no example has one."""
    try:
        values = [examples.label(index, column) for index in range(len(examples))]
    except UserError as error:
        raise UserError(f"objective.label: {error} ({where})") from None
    values = [None if value is None or (isinstance(value, float) and np.isnan(value)) else value for value in values]
    if all(value is None for value in values):
        raise UserError(f"objective.label: no example in {where} has a {column!r}")
    return values


def encode_labels(values: Sequence[Any], targets: Targets, where: str) -> tuple[np.ndarray, list[Any]]:
    """Which examples have a label that can be told, and these labels as numbers; the others are counted in a warning."""
    kept, encoded, wrong = [], [], []
    for index, value in enumerate(values):
        try:
            if value is None:
                raise ValueError("it has no label")
            encoded.append(targets.encode(value))
            kept.append(index)
        except (ValueError, UserError) as error:
            wrong.append(f"example {index}: {error}")
    if not kept:
        raise UserError(f"{where}: no example has a label that can be used ({'; '.join(wrong[:SHOWN])})")
    if wrong:
        log.warning("%s: %d of %d examples are left out (%s)", where, len(wrong), len(values), "; ".join(wrong[:SHOWN]))
    return np.array(kept), encoded


def warn_of_long(indices: np.ndarray, encoded: Sequence[list[int]], positions: np.ndarray, where: str) -> None:
    """Say which transcripts have more labels than their inputs have `positions` (n,); CTC parts like ones by a blank."""
    needed = [len(each) + sum(a == b for a, b in pairwise(each)) for each in encoded]
    long = np.flatnonzero(np.array(needed) > positions)
    if len(long):
        shown = "; ".join(f"example {indices[i]}: {needed[i]} positions, {int(positions[i])} are there" for i in long[:SHOWN])
        log.warning(
            "%s: %d of %d transcripts do not fit into their audio and teach nothing (%s)", where, len(long), len(needed), shown
        )


def balanced(labels: Sequence[Any]) -> np.ndarray:
    """(n,) how often to repeat each example so that every class is about as frequent as the commonest, 1 to 100 times; one of
    several classes counts by its rarest."""
    classes = [label if isinstance(label, list) else [label] for label in labels]
    counts = np.bincount([number for each in classes for number in each])
    rarest = np.array([min((counts[number] for number in each), default=counts.max()) for each in classes])
    return np.clip(np.round(counts.max() / rarest), 1, 100).astype(int)


def split(value: Any) -> list[str]:
    """The labels in a cell that may hold several: a list, or words separated by | or , or ;"""
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    text = str(value).replace(";", "|").replace(",", "|")
    return [part.strip() for part in text.split("|") if part.strip()]


def _classifier(names: Sequence[str], settings: ClassificationSettings) -> ClassifierSettings:
    shape = {key: getattr(settings, key) for key in ("problem", "pool", "norm_eps", "inner")}
    return ClassifierSettings(labels=tuple(names), **shape)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before words."""
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name
