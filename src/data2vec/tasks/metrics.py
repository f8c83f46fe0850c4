"""The measures of tasks, by jiwer, scikit-learn and SciPy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LESS_IS_BETTER = ("wer", "cer", "mean_squared_error")
"""Of all the measures here."""
Scores = dict[str, float]


def single_label(logits: np.ndarray, classes: np.ndarray) -> Scores:
    """Of `logits` (n, V) and `classes` (n,): accuracy (top 1), top5 where there are more than five classes; of two classes
    also F1 of the second and its mean with accuracy; Matthews' correlation."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    said = logits.argmax(1)
    scores = {"accuracy": float(accuracy_score(classes, said)), "matthews": float(matthews_corrcoef(classes, said))}
    if logits.shape[1] > 5:
        best = np.argpartition(-logits, 4, axis=1)[:, :5]
        scores["top5"] = float((best == classes[:, None]).any(1).mean())
    if logits.shape[1] == 2:
        scores["f1"] = float(f1_score(classes, said, zero_division=0))
        scores["accuracy_f1"] = (scores["accuracy"] + scores["f1"]) / 2
    return scores


def multi_label(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Of `logits` and `labels` (n, V): mean average precision over the classes that occur."""
    from sklearn.metrics import average_precision_score

    there = labels.any(0)
    return {"map": float(average_precision_score(labels[:, there], logits[:, there], average="macro"))}


def regression(said: np.ndarray, numbers: np.ndarray) -> Scores:
    """Of (n,) and (n,): Pearson's and Spearman's correlation, their mean, and the mean squared error.

    A correlation with what is constant is 0."""
    from scipy.stats import pearsonr, spearmanr

    constant = np.ptp(said) == 0 or np.ptp(numbers) == 0
    pearson, spearman = (0.0 if constant else float(of(said, numbers).statistic) for of in (pearsonr, spearmanr))
    return {
        "pearson": pearson,
        "spearman": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
        "mean_squared_error": float(np.square(said - numbers).mean()),
    }


OF_PROBLEM: Mapping[str, Callable[[np.ndarray, np.ndarray], Scores]] = {
    "single_label_classification": single_label,
    "multi_label_classification": multi_label,
    "regression": lambda logits, numbers: regression(logits[:, 0], numbers),
}


def better(metric: str, one: float, other: float) -> bool:
    """Whether `one` is better than `other`."""
    return one < other if metric in LESS_IS_BETTER else one > other


@dataclass(frozen=True)
class ErrorRates:
    """Edits and lengths, summed over a corpus."""

    word_edits: int
    words: int
    """Of the references."""
    character_edits: int
    characters: int
    """Of the references, spaces among them."""

    @property
    def wer(self) -> float:
        """Edits a word of the references, 0 to 1 and above; where these have no word, the number of edits."""
        return self.word_edits / max(self.words, 1)

    @property
    def cer(self) -> float:
        """The same of characters."""
        return self.character_edits / max(self.characters, 1)


def error_rates(hypotheses: Sequence[str], references: Sequence[str]) -> ErrorRates:
    """Word and character errors of texts, each against its reference, as they are: case and punctuation count.

    A reference may be empty: every word of its hypothesis is an edit. Raises ValueError where there are not as many."""
    import jiwer

    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses, {len(references)} references")
    if not references:
        return ErrorRates(0, 0, 0, 0)
    pair = [" ".join(text.split()) for text in references], [" ".join(text.split()) for text in hypotheses]
    words, characters = jiwer.process_words(*pair), jiwer.process_characters(*pair)
    found = [
        (o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions) for o in (words, characters)
    ]
    return ErrorRates(*found[0], *found[1])
