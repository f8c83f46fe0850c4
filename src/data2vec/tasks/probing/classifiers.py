"""The two classifiers of a probe: logistic regression and k nearest neighbours."""

from typing import Any

import numpy as np


def classifier_accuracies(
    train_x: np.ndarray, train_y: np.ndarray, valid_x: np.ndarray, valid_y: np.ndarray, k: int, seed: int
) -> tuple[float, float]:
    """Accuracies, 0 to 1, of logistic regression and of k nearest neighbours by cosine distance.

    They are fitted on vectors `train_x` (n, D) of classes `train_y` (n,), and measured on `valid_x` (m, D), `valid_y` (m,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    classifiers: tuple[Any, Any] = (
        LogisticRegression(C=0.1, max_iter=2000, tol=1e-3, random_state=seed),
        KNeighborsClassifier(min(k, len(train_x)), metric="cosine"),
    )
    scaler = StandardScaler().fit(train_x)
    x, y = scaler.transform(train_x), scaler.transform(valid_x)
    with threadpool_limits(1):  # several threads are slower for such small matrices, much slower on a busy machine
        linear, knn = (float((each.fit(x, train_y).predict(y) == valid_y).mean()) for each in classifiers)
    return linear, knn
