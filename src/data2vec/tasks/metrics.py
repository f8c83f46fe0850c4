"""Evaluation metrics of the tasks (jiwer, scikit-learn, SciPy)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data2vec.errors import UserError

LOWER_IS_BETTER = ("wer", "cer", "mean_squared_error")
"""The metrics of this file that are errors."""
NOT_PERCENT = ("matthews", "kappa", "dprime", "pearson", "spearman", "pearson_spearman", "mean_squared_error")
"""Scores that are not printed as percentages."""
CLASS_NAMES = ("accuracy", "balanced_accuracy", "weighted_f1", "top5", "map", "auroc", "f1", "accuracy_f1")
RECORDING = "recording_"
"""Begins the names of scores of complete recordings, whose windows are the examples."""
NAMES = ("wer", "cer", "wer_greedy", *CLASS_NAMES, *NOT_PERCENT)
"""All scores of labelled data; the metrics of a run have them with the prefix valid_."""
D_PRIME_LIMIT = 1e-9
"""An area under the ROC curve that is closer to 0 or 1 counts as this far from it, as d' would be infinite."""
Scores = dict[str, float]


def format_score(name: str, value: float) -> str:
    """A score as it is printed: a percentage, or a number."""
    return f"{value:.1%}" if is_percentage(name) else f"{value:.4g}"


def is_percentage(name: str) -> bool:
    """Whether a score is printed as a percentage."""
    return name.removeprefix(RECORDING) not in NOT_PERCENT


def single_label_scores(logits: np.ndarray, classes: np.ndarray) -> Scores:
    """Scores of `logits` (n, V) against `classes` (n,): those of `class_scores`; Matthews' correlation; top5 accuracy if there
    are more than five classes; with two classes, F1 of the second one, and its mean with accuracy."""
    from sklearn.metrics import f1_score, matthews_corrcoef

    predicted = logits.argmax(1)
    scores = class_scores(predicted, classes) | {"matthews": float(matthews_corrcoef(classes, predicted))}
    if logits.shape[1] > 5:
        best = np.argpartition(-logits, 4, axis=1)[:, :5]
        scores["top5"] = float((best == classes[:, None]).any(1).mean())
    if logits.shape[1] == 2:
        scores["f1"] = float(f1_score(classes, predicted, zero_division=0))
        scores["accuracy_f1"] = (scores["accuracy"] + scores["f1"]) / 2
    return scores


def class_scores(predicted: np.ndarray, classes: np.ndarray) -> Scores:
    """Scores of predicted classes (n,) against `classes` (n,): accuracy; balanced accuracy, the mean recall of the classes that
    occur; Cohen's kappa, 0 for what chance would reach with these frequencies; and F1 weighted by how often a class occurs."""
    from sklearn.metrics import f1_score

    right = predicted == classes
    names, counts = np.unique(classes, return_counts=True)
    accuracy = float(right.mean())
    by_chance = float(sum((predicted == name).mean() * count for name, count in zip(names, counts, strict=True)) / len(classes))
    return {
        "accuracy": accuracy,
        "balanced_accuracy": float(np.mean([right[classes == name].mean() for name in names])),
        "kappa": (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0,
        "weighted_f1": float(f1_score(classes, predicted, average="weighted", zero_division=0)),
    }


def multi_label_scores(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Scores of `logits` against `labels`, both (n, V): mean average precision over the classes that occur; the mean area under
    the ROC curve over those that some examples have and others do not, if there is one; and d', √2 times the normal quantile of
    this area, as reported for AudioSet. Raises UserError if no example
    has a label."""
    from scipy.stats import norm
    from sklearn.metrics import average_precision_score, roc_auc_score

    occurs = labels.any(0)
    if not occurs.any():
        raise UserError(
            f"none of the {len(labels)} examples has any of the classes, so there is no average precision; add some"
        )
    scores = {"map": float(average_precision_score(labels[:, occurs], logits[:, occurs], average="macro"))}
    differs = occurs & ~labels.all(0)
    if differs.any():
        scores["auroc"] = float(roc_auc_score(labels[:, differs], logits[:, differs], average="macro"))
        scores["dprime"] = math.sqrt(2) * float(norm.ppf(np.clip(scores["auroc"], D_PRIME_LIMIT, 1 - D_PRIME_LIMIT)))
    return scores


def regression_scores(predictions: np.ndarray, numbers: np.ndarray) -> Scores:
    """Scores of `predictions` (n,) against `numbers` (n,): Pearson's and Spearman's correlation, their mean, and mean squared
    error. A correlation with a constant is 0."""
    from scipy.stats import pearsonr, spearmanr

    constant = np.ptp(predictions) == 0 or np.ptp(numbers) == 0
    pearson, spearman = (0.0 if constant else float(f(predictions, numbers).statistic) for f in (pearsonr, spearmanr))
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
        "mean_squared_error": float(np.square(predictions - numbers).mean()),
    }


ScoreFunction = Callable[[np.ndarray, np.ndarray], Scores]


def _nan_if_not_finite(score: ScoreFunction) -> ScoreFunction:
    """The scores of `score`, all of them NaN where a logit is NaN or inf: its largest class would be the first one."""

    def scores(logits: np.ndarray, labels: np.ndarray) -> Scores:
        finite = np.isfinite(logits)
        found = score(np.where(finite, logits, 0), labels)
        return found if finite.all() else dict.fromkeys(found, math.nan)

    return scores


SCORES: Mapping[str, ScoreFunction] = {
    "single_label_classification": _nan_if_not_finite(single_label_scores),
    "multi_label_classification": _nan_if_not_finite(multi_label_scores),
    "regression": _nan_if_not_finite(lambda logits, numbers: regression_scores(logits[:, 0], numbers)),
}
"""The scores of logits (n, V) against labels, by the type of the problem."""


def chance_scores(problem_type: str, labels: np.ndarray) -> Scores:
    """What guessing reaches against `labels`, classes (n,) or multi-hot (n, V): always the most frequent class; and a random
    order, whose mean average precision is the mean frequency of the classes that occur."""
    if problem_type == "single_label_classification":
        return {"accuracy": float(np.bincount(labels).max() / len(labels))}
    if problem_type == "multi_label_classification":
        return {"map": float(labels[:, labels.any(0)].mean())}
    return {}


def is_better(metric: str, one: float, other: float) -> bool:
    """Whether the value `one` of a metric is better than `other`."""
    return one < other if metric in LOWER_IS_BETTER else one > other


def validations_since_best(metric: str, values: Sequence[float]) -> int:
    """How many of the last validations are not better than the best before them; `values` of a metric, oldest first,
    of which those that are not finite are never better."""
    best, waited = math.nan, 0
    for value in values:
        improved = not math.isfinite(best) or is_better(metric, value, best)
        best, waited = (value, 0) if improved else (best, waited + 1)
    return waited


@dataclass(frozen=True)
class ErrorRates:
    """Edit counts and reference lengths, summed over a corpus."""

    word_edits: int
    words: int
    """In the references."""
    character_edits: int
    characters: int
    """In the references, including spaces."""

    @property
    def wer(self) -> float:
        """Word error rate: edits per reference word, 0 and above; the number of edits if the references have no words."""
        return self.word_edits / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character error rate."""
        return self.character_edits / max(self.characters, 1)


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> ErrorRates:
    """Word and character errors of hypotheses against their references, without normalisation: case and punctuation count.

    If a reference is empty, every word of its hypothesis is an edit. Raises ValueError if the numbers of texts differ."""
    import jiwer

    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references")
    if not references:
        return ErrorRates(0, 0, 0, 0)
    pair = [" ".join(text.split()) for text in references], [" ".join(text.split()) for text in hypotheses]
    words, characters = jiwer.process_words(*pair), jiwer.process_characters(*pair)
    counts = [
        (o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions) for o in (words, characters)
    ]
    return ErrorRates(*counts[0], *counts[1])
