"""Classifiers of a comparison's probes: layer and regularisation are chosen on the dev set, the test sets are only scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data2vec.settings import JsonDict

Features = Sequence[Any]
"""Features of the inputs; with pairs of texts, of the first and of the second one: a matrix (n, D) by layer. Sparse matrices
(`scipy.sparse.csr_array`) are not standardised or centered, which would fill them."""
Metric = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class LabelledSet:
    """Features and labels of a set."""

    features: Features
    labels: np.ndarray
    """(n,) class names, or numbers."""


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of correct predictions."""
    return float((predicted == labels).mean())


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews' correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation; 0 with a constant."""
    from data2vec.tasks.metrics import regression_scores

    return regression_scores(predicted, labels)["spearman"]


PROBE_METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "matthews": matthews, "spearman": spearman}
"""By name; predictions and labels (n,) to a score, higher is better."""


def probe_scores(
    metric: str, sets: Mapping[str, LabelledSet], knn_k: int, grid: Sequence[float], seed: int
) -> tuple[dict[str, float], dict[str, dict[str, float]], JsonDict]:
    """The dev scores and the test scores, by "linear METRIC" and so on, and what was chosen.

    `sets`: `train`, `dev` and "test NAME". Classes: logistic regression (C in `grid`) and k nearest neighbours. Numbers: ridge
    regression (1/alpha in `grid`), and the cosine of the two texts of a pair. Ties: the smaller C and the earlier layer."""
    from threadpoolctl import threadpool_limits

    tests = [name for name in sets if name.startswith("test ")]
    score = PROBE_METRICS[metric]
    dev: dict[str, float] = {}
    test: dict[str, dict[str, float]] = {name.removeprefix("test "): {} for name in tests}
    details: JsonDict = {"examples": {name: len(each.labels) for name, each in sets.items()}}
    with threadpool_limits(1):  # several threads are slower for such small matrices
        for method, fit in _methods(metric, sets["train"], knn_k, grid, seed).items():
            best: tuple[float, int, Any, Callable[[Features], np.ndarray]] | None = None
            for layer in range(len(sets["train"].features[0])):
                for option, predict in fit(layer):
                    value = score(predict(sets["dev"].features), sets["dev"].labels)
                    if best is None or value > best[0]:
                        best = value, layer, option, predict
            assert best is not None
            value, layer, option, predict = best
            dev[f"{method} {metric}"] = value
            details[method] = {"layer": layer + 1} | ({} if option is None else {"regularisation": option})
            for name in tests:
                test[name.removeprefix("test ")][f"{method} {metric}"] = score(predict(sets[name].features), sets[name].labels)
    return dev, test, details


def pair_vectors(views: Features, layer: int, symmetric: bool) -> Any:
    """The vectors (n, D') of a layer for a classifier; of a pair |u − v| and u·v, and u and v unless `symmetric`."""
    from scipy.sparse import hstack

    if len(views) == 1:
        return views[0][layer]
    u, v = (view[layer] for view in views)
    parts = [abs(u - v), u * v, *([] if symmetric else [u, v])]
    return np.concatenate(parts, 1) if isinstance(u, np.ndarray) else hstack(parts, "csr")


def _methods(metric: str, train: LabelledSet, knn_k: int, grid: Sequence[float], seed: int) -> dict[str, Callable[[int], Any]]:
    """By name: a function of the layer that yields (regularisation, predictor of features)."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    numbers = metric == "spearman"

    def fitted(layer: int, options: Sequence[Any], build: Callable[[Any], Any]) -> Any:
        x = pair_vectors(train.features, layer, numbers)
        dense = isinstance(x, np.ndarray)
        scaler = StandardScaler(with_mean=dense, with_std=dense).fit(x)
        x = scaler.transform(x)
        for option in options:
            model = build(option).fit(x, train.labels)
            yield option, lambda views, model=model: model.predict(scaler.transform(pair_vectors(views, layer, numbers)))

    def cosine(layer: int) -> Any:
        matrices = [view[layer] for view in train.features]
        # Without centering, the common direction of all vectors hides the differences.
        center: Any = np.concatenate(matrices).mean(0) if isinstance(matrices[0], np.ndarray) else None

        def predict(views: Features) -> np.ndarray:
            u, v = (view[layer] if center is None else view[layer] - center for view in views)
            norms = np.sqrt((u * u).sum(1) * (v * v).sum(1))
            return np.asarray((u * v).sum(1) / np.maximum(norms, 1e-12))

        yield None, predict

    grid = sorted(grid)
    if numbers:
        methods: dict[str, Callable[[int], Any]] = {"ridge": lambda layer: fitted(layer, grid, lambda c: Ridge(1 / c))}
        return methods | ({"cosine": cosine} if len(train.features) == 2 else {})
    k = min(knn_k, len(train.labels))
    return {
        "linear": lambda layer: fitted(
            layer, grid, lambda c: LogisticRegression(C=c, max_iter=2000, tol=1e-3, random_state=seed)
        ),
        "kNN": lambda layer: fitted(layer, [None], lambda _: KNeighborsClassifier(k, metric="cosine")),
    }
