"""The classifiers of a probe: logistic regression and k nearest neighbours; and their scores."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data2vec.tasks.metrics import Scores, class_scores

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "kappa",
    "weighted_f1": "weighted F1",
    "auroc": "macro AUROC",
}
"""The scores of `probability_scores`, and how they are printed."""
Classifier = Callable[[np.ndarray], np.ndarray]
"""From vectors (m, D) to the probabilities (m, C) of the classes that it was fitted to, in sorted order."""


def classifier_accuracies(
    train_x: np.ndarray, train_y: np.ndarray, valid_x: np.ndarray, valid_y: np.ndarray, k: int, seed: int
) -> tuple[float, float]:
    """Accuracies, 0 to 1, of logistic regression and of k nearest neighbours by cosine distance.

    They are fitted on vectors `train_x` (n, D) of classes `train_y` (n,), and measured on `valid_x` (m, D), `valid_y` (m,)."""
    names = np.unique(train_y)
    classifiers = build_classifiers(train_x, train_y, k, seed)
    linear, knn = (float((names[each(valid_x).argmax(1)] == valid_y).mean()) for each in classifiers)
    return linear, knn


def build_classifiers(train_x: np.ndarray, train_y: np.ndarray, k: int, seed: int) -> tuple[Classifier, Classifier]:
    """Logistic regression, and k nearest neighbours by cosine distance, fitted on standardised vectors `train_x` (n, D) of
    classes `train_y` (n,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    classifiers: tuple[Any, Any] = (
        LogisticRegression(C=0.1, max_iter=2000, tol=1e-3, random_state=seed),
        KNeighborsClassifier(min(k, len(train_x)), metric="cosine"),
    )
    scaler = StandardScaler().fit(train_x)
    x = scaler.transform(train_x)
    with threadpool_limits(1):  # several threads are slower for such small matrices, much slower on a busy machine
        for each in classifiers:
            each.fit(x, train_y)

    def predicts(classifier: Any) -> Classifier:
        def predict(vectors: np.ndarray) -> np.ndarray:
            with threadpool_limits(1):
                probabilities: np.ndarray = classifier.predict_proba(scaler.transform(vectors))
            return probabilities

        return predict

    return predicts(classifiers[0]), predicts(classifiers[1])


def metric_score(metric: str, probabilities: np.ndarray, names: np.ndarray, classes: np.ndarray) -> float:
    """One of `METRICS`; the arguments are as of `probability_scores`."""
    if metric == "accuracy":
        return float((names[probabilities.argmax(1)] == classes).mean())
    return probability_scores(probabilities, names, classes)[metric]


def probability_scores(probabilities: np.ndarray, names: np.ndarray, classes: np.ndarray) -> Scores:
    """Scores of predicted `probabilities` (m, C) of the classes `names` (C,) against `classes` (m,).

    Those of `class_scores`, and auroc, the mean area under the ROC curve of each class against the others, over the classes
    that occur, if there are two."""
    from sklearn.metrics import roc_auc_score

    scores, occurring = class_scores(names[probabilities.argmax(1)], classes), np.unique(classes)
    if len(occurring) > 1:
        columns = np.searchsorted(names, occurring)
        areas = [roc_auc_score(classes == name, probabilities[:, i]) for name, i in zip(occurring, columns, strict=True)]
        scores["auroc"] = float(np.mean(areas))
    return scores


def format_scores(scores: Mapping[str, float]) -> str:
    """In one line, without the accuracy."""
    shown = {name: scores[key] for key, name in METRICS.items() if key in scores and key != "accuracy"}
    return ", ".join(f"{name} {value:.1%}" if "accuracy" in name else f"{name} {value:.3f}" for name, value in shown.items())
