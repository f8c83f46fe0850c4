"""Few-shot probing, the protocol of MTEB and its audio benchmark MAEB: logistic regression on a few examples of each class,
drawn several times.

As in mteb's classification tasks: features averaged over positions and not standardised, scikit-learn's logistic regression
(L2, C = 1) with at most 100 iterations, and the mean over the draws. The draws are ours, by the run's seed.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.console.progress import progress
from data2vec.errors import UserError
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.settings import JsonMapping
from data2vec.tasks.probing.classifiers import format_scores, probability_scores
from data2vec.tasks.probing.dataset import load_probe_sets
from data2vec.tasks.probing.probe import open_probe

MAX_ITERATIONS = 100
"""Iterations of the logistic regression."""


@dataclass(frozen=True)
class LayerFewShot:
    """Accuracies on held-out data, 0 to 1, of one layer's features, in the order of the draws."""

    layer: int
    """From 1, the output of the first block."""
    accuracy: list[float]
    untrained_accuracy: list[float]


@dataclass(frozen=True)
class FewShotProbe:
    """The result of few-shot probing; `str()` of it is a table."""

    rows: list[LayerFewShot]
    shots: int
    """Examples of each class in a draw."""
    draws: int
    classes: list[str]
    train: int
    """Number of examples that are drawn from."""
    valid: int
    """Number of held-out examples."""
    scores: dict[str, float]
    """Of the last layer, means over the draws: accuracy, balanced_accuracy, kappa, auroc."""
    untrained_scores: dict[str, float]
    stopped: int
    """Fits that had not converged after `MAX_ITERATIONS`, of all layers, draws and both encoders."""

    def __str__(self) -> str:
        lines = [f"{'':>8}{'trained':^20}{'untrained':^20}", f"{'layer':>8}" + f"{'mean':>10}{'std':>10}" * 2]
        for row in self.rows:
            cells = [(np.mean(each), np.std(each)) for each in (row.accuracy, row.untrained_accuracy)]
            lines.append(f"{row.layer:8d}" + "".join(f"{mean:10.1%}{std:10.1%}" for mean, std in cells))
        lines += [f"last layer, {name}: {format_scores(each)}" for name, each in self._named_scores()]
        lines.append(
            f"Accuracy on {self.valid} held-out examples of {len(self.classes)} classes, mean and standard deviation over "
            f"{self.draws} draws of {self.shots} examples of each class, from {self.train}; the draws are the same for both."
        )
        if self.stopped:
            fits = 2 * len(self.rows) * self.draws
            lines.append(f"{self.stopped} of {fits} logistic regressions stopped after {MAX_ITERATIONS} iterations.")
        return "\n".join(lines)

    def _named_scores(self) -> list[tuple[str, dict[str, float]]]:
        return [("trained", self.scores), ("untrained", self.untrained_scores)]


def few_shot_probe(
    model: Model | str | Path,
    data: Any = None,
    valid: Any = None,
    shots: int = 8,
    draws: int = 10,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    modality: CustomClass | None = None,
    shard: str | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> FewShotProbe:
    """Probe every layer of a trained encoder, and of the same encoder untrained, with `shots` examples of each class of `data`,
    drawn `draws` times with the run's seed; accuracies are on all of `valid`.

    The other arguments are as of `data2vec.probe`; the result is written to probe_few_shot.json. Raises UserError as `probe`,
    and for a class with fewer examples than `shots`."""
    if shots < 1 or draws < 1:
        raise UserError(f"shots: {shots}, draws: {draws}; both must be at least 1")
    frozen = open_probe(model, data, valid, overrides, out, modality, "probe_few_shot", shard, precision, compile)
    seed = frozen.recipe.train.seed
    train_set, valid_set = load_probe_sets(frozen.modality, frozen.recipe.probe, seed)
    with frozen.features(train_set, valid_set) as ((x, train_set), (y, valid_set)):
        drawn = [draw_shots(train_set.classes, shots, seed, number) for number in range(draws)]
        rows, means, stopped = list[LayerFewShot](), list[dict[str, float]](), 0
        for layer in progress(range(x.shape[1]), "classifiers", unit="layer"):
            fits = [fit_few_shot(x[i, layer], train_set.classes, y[i, layer], valid_set.classes, drawn, seed) for i in (0, 1)]
            rows.append(LayerFewShot(layer + 1, *([each["accuracy"] for each in scores] for scores, _ in fits)))
            means = [{name: float(np.mean([each[name] for each in scores])) for name in scores[0]} for scores, _ in fits]
            stopped += sum(count for _, count in fits)
        classes = np.unique(train_set.classes).tolist()
        sizes = len(train_set.classes), len(valid_set.classes)
        return frozen.write(FewShotProbe(rows, shots, draws, classes, *sizes, means[0], means[1], stopped))


def draw_shots(classes: np.ndarray, shots: int, seed: int, draw: int) -> np.ndarray:
    """The rows of draw number `draw`: `shots` different ones of each class. Raises UserError for a class that has fewer."""
    names, counts = np.unique(classes, return_counts=True)
    if few := [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < shots]:
        raise UserError(f"shots: {shots} are more than the training examples of {', '.join(few[:5])}; use fewer, or more data")
    rng = np.random.default_rng((seed, draw))
    return np.concatenate([rng.choice(np.flatnonzero(classes == name), shots, replace=False) for name in names])


def fit_few_shot(
    train_x: np.ndarray, train_y: np.ndarray, valid_x: np.ndarray, valid_y: np.ndarray, drawn: list[np.ndarray], seed: int
) -> tuple[list[dict[str, float]], int]:
    """The scores of each draw on vectors `valid_x` (m, D), fitted to the drawn rows of `train_x` (n, D), and how many fits had
    not converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    scores, stopped = [], 0
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted
        for rows in drawn:
            classifier = LogisticRegression(max_iter=MAX_ITERATIONS, random_state=seed).fit(train_x[rows], train_y[rows])
            scores.append(probability_scores(classifier.predict_proba(valid_x), classifier.classes_, valid_y))
            stopped += int(classifier.n_iter_.max() >= MAX_ITERATIONS)
    return scores, stopped
