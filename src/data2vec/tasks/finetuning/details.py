"""What the report shows of a validation: the confusion matrix, and the examples that are worst and typical.

Written to RUN/validation.json when the best model is, so it is of that model.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from data2vec.errors import printable
from data2vec.settings import JsonDict
from data2vec.tasks.metrics import error_rates

NUM_WORST, NUM_TYPICAL = 6, 3
"""Examples with the largest loss, and with the loss closest to the median."""
MAX_CELLS = 2000
"""Cells of a confusion matrix that are kept, the most frequent ones."""
MAX_CHARACTERS = 300
"""Longer labels and predictions are cut."""
Shown = tuple[str, str, bool | None]
"""Label, prediction, and whether it is correct."""


@dataclass(frozen=True)
class EvaluatedExample:
    """A validation example, its label and what was predicted."""

    index: int
    """Its number in the validation data, from 0."""
    kind: Literal["worst", "typical"]
    label: str
    prediction: str
    loss: float
    """How wrong the prediction is: cross-entropy; squared error; or, of a transcript, character edits by character."""
    correct: bool | None = None
    """Whether the prediction is the label; None for numbers, which are only near."""


@dataclass(frozen=True)
class ValidationDetails:
    """What the report shows of a validation."""

    loss: str
    """What the loss of the examples is."""
    examples: Sequence[EvaluatedExample]
    classes: Sequence[str] = ()
    """Of a single-label classification."""
    confusion: Sequence[tuple[int, int, int]] = ()
    """(class, predicted class, number of examples), the most frequent first."""

    def to_json(self, step: int) -> JsonDict:
        """The content of validation.json."""
        return {"step": step, **asdict(self)}


def classification_details(
    logits: np.ndarray, labels: Sequence[Any], indices: Sequence[int], names: Sequence[str], problem_type: str
) -> ValidationDetails:
    """Details of `logits` (n, V) for encoded `labels` (n,) of the examples at `indices` (n,)."""
    with np.errstate(invalid="ignore", over="ignore"):  # of logits that are NaN or inf, which are not shown
        if problem_type == "regression":
            return _number_details(logits[:, 0], np.array(labels, dtype=float), indices)
        if problem_type == "multi_label_classification":
            return _several_details(logits, labels, indices, names)
        return _class_details(logits, np.array(labels), indices, names)


def _number_details(predicted: np.ndarray, numbers: np.ndarray, indices: Sequence[int]) -> ValidationDetails:
    losses = np.square(predicted - numbers)

    def texts(i: int) -> Shown:
        return f"{numbers[i]:.4g}", f"{predicted[i]:.4g}", None

    return ValidationDetails("squared error", _select(losses, indices, texts))


def _several_details(
    logits: np.ndarray, labels: Sequence[Any], indices: Sequence[int], names: Sequence[str]
) -> ValidationDetails:
    targets = np.zeros_like(logits)
    for row, each in zip(targets, labels, strict=True):
        row[each] = 1

    def describe(row: np.ndarray) -> str:
        return ", ".join(names[int(i)] for i in np.flatnonzero(row > 0)) or "none"

    losses = (np.logaddexp(0, logits) - targets * logits).sum(1)
    correct = ((logits > 0) == (targets > 0)).all(1)

    def texts(i: int) -> Shown:
        return describe(targets[i]), describe(logits[i]), bool(correct[i])

    return ValidationDetails("cross-entropy", _select(losses, indices, texts))


def _class_details(logits: np.ndarray, classes: np.ndarray, indices: Sequence[int], names: Sequence[str]) -> ValidationDetails:
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    losses, predicted = -log_probs[np.arange(len(classes)), classes], logits.argmax(1)

    def describe(i: int) -> Shown:
        prediction = f"{names[int(predicted[i])]} ({np.exp(log_probs[i].max()):.0%})"
        return names[int(classes[i])], prediction, bool(predicted[i] == classes[i])

    cells, counts = np.unique(np.stack([classes, predicted], 1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MAX_CELLS]
    confusion = [(int(cells[i, 0]), int(cells[i, 1]), int(counts[i])) for i in order]
    return ValidationDetails("cross-entropy", _select(losses, indices, describe), [_cut(name) for name in names], confusion)


def recognition_details(hypotheses: Sequence[str], references: Sequence[str], indices: Sequence[int]) -> ValidationDetails:
    """Details of transcripts, each with its reference, of the examples at `indices`."""
    losses = np.array([error_rates([one], [other]).cer for one, other in zip(hypotheses, references, strict=True)])

    def texts(i: int) -> Shown:
        return references[i], hypotheses[i], bool(losses[i] == 0)

    return ValidationDetails("character error rate", _select(losses, indices, texts))


def _select(losses: np.ndarray, indices: Sequence[int], texts: Callable[[int], Shown]) -> list[EvaluatedExample]:
    """The examples with the largest losses, and of the others those closest to the median."""
    finite = np.flatnonzero(np.isfinite(losses))
    if not len(finite):
        return []
    worst = finite[np.argsort(-losses[finite], kind="stable")][:NUM_WORST]
    rest = np.setdiff1d(finite, worst)
    typical = rest[np.argsort(np.abs(losses[rest] - np.median(losses[finite])), kind="stable")][:NUM_TYPICAL]
    found = []
    for row in (*worst, *typical):
        kind: Literal["worst", "typical"] = "worst" if row in worst else "typical"
        label, prediction, correct = texts(int(row))
        loss = round(float(losses[row]), 6)
        found.append(EvaluatedExample(int(indices[row]), kind, _cut(label), _cut(prediction), loss, correct))
    return found


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
