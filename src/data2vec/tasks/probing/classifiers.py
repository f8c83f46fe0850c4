"""The two simple classifiers of a probe."""

from typing import Any

import numpy as np


def accuracies(
    fit: np.ndarray, classes: np.ndarray, held: np.ndarray, truth: np.ndarray, k: int, seed: int
) -> tuple[float, float]:
    """What logistic regression and nearest neighbours, fitted on vectors (n, D) of known classes (n,), get right of `held`
    (m, D), whose classes are `truth` (m,): two shares, 0 to 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    classifiers: tuple[Any, Any] = (
        LogisticRegression(C=0.1, max_iter=2000, tol=1e-3, random_state=seed),
        KNeighborsClassifier(min(k, len(fit)), metric="cosine"),
    )
    scaler = StandardScaler().fit(fit)
    x, y = scaler.transform(fit), scaler.transform(held)
    with threadpool_limits(1):  # such small matrices are slower on several threads, far slower on a busy machine
        linear, knn = (float((each.fit(x, classes).predict(y) == truth).mean()) for each in classifiers)
    return linear, knn
