"""Labels of a dataset, encoded as the targets of a head."""

import ast
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.data.dataset import ExampleDataset
from data2vec.data.sources.columns import is_missing
from data2vec.errors import UserError, get_logger
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings, TaskSettings
from data2vec.tasks.asr.vocabulary import CTCVocabulary

log = get_logger(__name__)
SHOWN = 5
"""How many examples a message names."""
NAMES_OF_NONE = ("nan", "null", "none", "n/a", "na", "<na>", "nil")
"""What programs write for a missing value."""
MAX_LETTERS = 20
"""How many characters a message names."""


class Targets(ABC):
    """How the labels of a task are encoded."""

    head: CTCSettings | ClassifierSettings
    """The settings of a head that predicts them (`data2vec.nn.heads`)."""

    @abstractmethod
    def encode(self, value: object) -> Any:
        """A label as numbers. Raises ValueError for an invalid label."""

    @abstractmethod
    def collate(self, values: Sequence[Any]) -> Tensor:
        """The encoded labels of a batch as one tensor."""

    def describe_invalid(self, values: Sequence[object]) -> str:
        """What the labels have in common that cannot be encoded; "" if there is no more to say than for each by itself."""
        return ""

    def class_probabilities(self, labels: Tensor) -> Tensor:
        """Collated labels as class probabilities (B, V). Raises UserError if the targets are not classes."""
        raise UserError("objective.mixing: only class labels can be mixed; set it to null")


class Transcripts(Targets):
    """Transcripts as label ids of a CTC vocabulary: (B, L), padded with -1."""

    def __init__(self, vocabulary: CTCVocabulary):
        self.vocabulary = vocabulary
        self.head = CTCSettings(labels=tuple(vocabulary.labels))

    def encode(self, value: object) -> list[int]:
        return self.vocabulary.encode(str(value))

    def describe_invalid(self, values: Sequence[object]) -> str:
        """The characters without a label, the most frequent first, with their numbers."""
        counts = Counter[str]()
        for value in values:
            counts.update(self.vocabulary.unspelled(str(value)))
        if not counts:
            return ""
        names = ", ".join(f"{letter!r} ({count})" for letter, count in counts.most_common(MAX_LETTERS))
        more = f" and {len(counts) - MAX_LETTERS} more" if len(counts) > MAX_LETTERS else ""
        return f"{counts.total()} characters have no label: {names}{more}; the labels are {self.vocabulary.preview}"

    def collate(self, values: Sequence[list[int]]) -> Tensor:
        rows = [torch.tensor(value, dtype=torch.long) for value in values]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


class Classes(Targets):
    """One class per example, (B,); or with multi-label classification any number of them, (B, V)."""

    def __init__(self, names: Sequence[str], settings: ClassificationSettings):
        self.class_ids = {name: index for index, name in enumerate(names)}
        self.multi_label = settings.problem_type == "multi_label_classification"
        self.head = _classifier(names, settings)

    def encode(self, value: object) -> Any:
        if isinstance(value, list) and not self.multi_label:
            raise ValueError(f"{value} is a list, not a class")
        names = split_labels(value) if self.multi_label else [str(value)]
        if unknown := [name for name in names if name not in self.class_ids]:
            known = ", ".join(list(self.class_ids)[:SHOWN]) + (", …" if len(self.class_ids) > SHOWN else "")
            raise ValueError(f"{unknown[0]!r} is none of the {len(self.class_ids)} classes of the training data, {known}")
        ids = [self.class_ids[name] for name in names]
        return ids if self.multi_label else ids[0]

    def collate(self, values: Sequence[Any]) -> Tensor:
        if not self.multi_label:
            return torch.tensor(values)
        rows = torch.zeros(len(values), len(self.class_ids))
        for row, ids in zip(rows, values, strict=True):
            row[ids] = 1.0
        return rows

    def class_probabilities(self, labels: Tensor) -> Tensor:
        return labels if self.multi_label else torch.nn.functional.one_hot(labels, len(self.class_ids)).float()


class Numbers(Targets):
    """One number per example, (B,)."""

    def __init__(self, settings: ClassificationSettings):
        if settings.pooling == "linear-softmax":
            raise UserError(
                "objective.pooling: linear-softmax pools probabilities; for a regression use mean, first or attention"
            )
        self.head = _classifier([settings.label], settings)

    def encode(self, value: object) -> float:
        number = float(value)  # type: ignore[arg-type]
        if not np.isfinite(number):
            raise ValueError(f"{value!r} is not a finite number")
        return number

    def collate(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)


def targets_from_labels(
    values: Sequence[object], settings: TaskSettings, known: CTCSettings | ClassifierSettings | None = None
) -> Targets:
    """The targets for the labels of the training data. `known`: the settings of the head that the model already has, whose
    vocabulary is used if the settings give none. Raises UserError if there are fewer than two classes."""
    if isinstance(settings, RecognitionSettings):
        labels = settings.vocabulary or (known.labels if isinstance(known, CTCSettings) else None)
        return Transcripts(CTCVocabulary(labels) if labels else CTCVocabulary.from_texts([str(value) for value in values]))
    if settings.problem_type == "regression":
        return Numbers(settings)
    multi_label = settings.problem_type == "multi_label_classification"
    values = [value for value in values if not is_missing(value)]
    if not multi_label and (several := next((value for value in values if isinstance(value, list)), None)) is not None:
        raise UserError(
            f"objective.label: {settings.label} holds lists, such as {several}; set "
            "objective.problem_type=multi_label_classification, or name another column"
        )
    names = {name for value in values for name in (split_labels(value) if multi_label else [str(value)])}
    if len(names) < 2:
        raise UserError(
            f"objective.label: every example has the {settings.label} {', '.join(names) or 'of no class'!r}; classification "
            "needs at least two classes"
        )
    _warn_odd_names(sorted(names))
    return Classes(sorted(names, key=_natural), settings)


def targets_from_head(head: CTCSettings | ClassifierSettings, settings: TaskSettings) -> Targets:
    """The targets that a head already predicts. `settings`: of its task."""
    if isinstance(head, CTCSettings):
        return Transcripts(CTCVocabulary(head.labels))
    assert isinstance(settings, ClassificationSettings)
    return Numbers(settings) if head.problem_type == "regression" else Classes(head.labels, settings)


def read_labels(examples: ExampleDataset, column: str, where: str) -> list[object]:
    """The value of `column` of every example, None if it has none. Raises UserError if no example has one."""
    try:
        values = [examples.label(index, column) for index in range(len(examples))]
    except UserError as error:
        raise UserError(f"objective.label: {error} ({where})") from None
    if all(value is None for value in values):
        raise UserError(f"objective.label: no example in {where} has a {column!r}")
    return values


def encode_labels(values: Sequence[object], targets: Targets, where: str) -> tuple[np.ndarray, list[Any]]:
    """The indices of the examples with a valid label, and these labels encoded; the others are counted in a warning."""
    indices, encoded, invalid = [], [], []
    for index, value in enumerate(values):
        try:
            if is_missing(value):
                raise ValueError("no label")
            encoded.append(targets.encode(value))
            indices.append(index)
        except (ValueError, UserError) as error:
            invalid.append(f"example {index}: {error}")
    if not indices:
        raise UserError(f"{where}: no example has a usable label ({'; '.join(invalid[:SHOWN])})")
    if invalid:
        log.warning(
            "%s: %d of %d examples are left out: invalid label (%s)",
            where,
            len(invalid),
            len(values),
            "; ".join(invalid[:SHOWN]),
        )
        if shared := targets.describe_invalid([value for value in values if value is not None]):
            log.warning("%s: %s", where, shared)
    return np.array(indices), encoded


def warn_long_transcripts(indices: np.ndarray, encoded: Sequence[list[int]], positions: np.ndarray, where: str) -> None:
    """Warn about transcripts that need more than `positions` (n,) of their inputs: CTC needs a blank between equal labels."""
    needed = [len(each) + sum(a == b for a, b in pairwise(each)) for each in encoded]
    long = np.flatnonzero(np.array(needed) > positions)
    if len(long):
        shown = "; ".join(
            f"example {indices[i]}: {needed[i]} positions needed, {int(positions[i])} given" for i in long[:SHOWN]
        )
        log.warning(
            "%s: %d of %d transcripts are too long for their audio and do not train (%s)", where, len(long), len(needed), shown
        )


def balancing_repeats(labels: Sequence[Any]) -> np.ndarray:
    """(n,) repetitions of each example, 1 to 100, that make every class about as frequent as the most frequent one. An example
    of several classes counts for its rarest."""
    classes = [label if isinstance(label, list) else [label] for label in labels]
    counts = np.bincount([class_id for each in classes for class_id in each])
    rarest = np.array([min((counts[class_id] for class_id in each), default=counts.max()) for each in classes])
    return np.clip(np.round(counts.max() / rarest), 1, 100).astype(int)


def class_weights(labels: Sequence[Any]) -> np.ndarray:
    """(n,) the weight of each example in weighted sampling: the sum over its classes of 1 / their number of examples.

    An example without any class has the smallest weight of all others."""
    classes = [label if isinstance(label, list) else [label] for label in labels]
    counts = np.bincount([class_id for each in classes for class_id in each])
    weights = np.array([sum(1 / counts[class_id] for class_id in each) for each in classes])
    return np.where(weights > 0, weights, weights[weights > 0].min())


def split_labels(value: object) -> list[str]:
    """The labels in a cell that may hold several: a list, also as text in JSON or Python, or names separated by | , or ;

    Raises UserError for a text in brackets that is no list of labels."""
    if isinstance(value, list | tuple):
        return [str(each) for each in value]
    text = str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        return [str(each) for each in _written_list(text)]
    text = text.replace(";", "|").replace(",", "|")
    return [part.strip() for part in text.split("|") if part.strip()]


def _written_list(text: str) -> list[Any]:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str | int | float) for each in found):
        raise UserError(f"objective.label: {text[:50]!r} is no list of labels; write ['a', 'b'] or a|b")
    return found


def _warn_odd_names(names: Sequence[str]) -> None:
    """Warn about classes that are probably one, or none."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    if several := [group for group in alike.values() if len(group) > 1]:
        log.warning(
            "classes that differ only in case, spaces or Unicode form stay different: %s",
            "; ".join(" and ".join(map(repr, group)) for group in several[:SHOWN]),
        )
    if missing := [name for name in names if name.strip().casefold() in NAMES_OF_NONE]:
        log.warning("%s is a class; where it means a missing label, leave the cell empty", ", ".join(map(repr, missing)))


def warn_cut(examples: ExampleDataset, indices: np.ndarray, where: str) -> None:
    """Warn about examples that are longer than the model takes."""
    if cut := examples.cut(indices):
        message = "%s: %d of %d examples are cut, as they are longer than data.block_size (%s)"
        log.warning(message, where, len(cut), len(indices), "; ".join(cut[:SHOWN]))


def _classifier(names: Sequence[str], settings: ClassificationSettings) -> ClassifierSettings:
    shape = {key: getattr(settings, key) for key in ("problem_type", "pooling", "norm_eps", "hidden_layer")}
    return ClassifierSettings(labels=tuple(names), **shape)


def _natural(name: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, before other names."""
    try:
        number = float(name)
    except ValueError:
        number = np.nan
    return (0, number, name) if np.isfinite(number) else (1, 0.0, name)
