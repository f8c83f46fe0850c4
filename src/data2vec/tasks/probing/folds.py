"""Cross-validation of a probe: each fold holds out some of the examples, such as those of one subject, and the classifiers are
fitted on the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data2vec.errors import UserError, get_logger
from data2vec.tasks.metrics import class_scores
from data2vec.tasks.probing.classifiers import build_classifiers
from data2vec.tasks.probing.dataset import SHOWN, ProbeSet

log = get_logger(__name__)


@dataclass(frozen=True)
class Fold:
    """The scores of a classifier of one layer on what a fold holds out."""

    held_out: str
    """The groups that are held out; without groups, the number of the fold."""
    examples: int
    accuracy: float
    balanced_accuracy: float
    kappa: float
    weighted_f1: float


def split_folds(probe_set: ProbeSet, folds: int | str, seed: int) -> list[tuple[str, np.ndarray]]:
    """What each fold holds out: its name, and the rows (m,) of the set. With groups, a group is held out as a whole; folds have
    about the same share of each class. Classes that occur only in what a fold holds out are named in a warning.

    Raises UserError for more folds than groups or examples of a class, and if a fold leaves fewer than two classes to learn."""
    parts = _split(probe_set, folds, seed)
    for name, rows in parts:
        held_out = set(probe_set.classes[rows].tolist())
        learned = set(np.delete(probe_set.classes, rows).tolist())
        if len(learned) < 2:
            raise UserError(
                f"probe.folds: without {name} every example has the class {', '.join(learned)!r}, so nothing can be learned; "
                "use other folds or groups, or set probe.valid"
            )
        if unseen := sorted(held_out - learned):
            shown = ", ".join(unseen[:SHOWN]) + (", …" if len(unseen) > SHOWN else "")
            log.warning("probe.folds: all examples of %s are in what one fold holds out, %s, and count as errors", shown, name)
    return parts


def _split(probe_set: ProbeSet, folds: int | str, seed: int) -> list[tuple[str, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups = probe_set.groups
    if folds == "leave-one-out":
        if groups is None:
            raise UserError("probe.folds: leave-one-out needs probe.group, the column of what is left out, such as subject")
        names = sorted(set(groups.tolist()), key=lambda name: (len(name), name))
        if len(names) < 2:
            raise UserError(f"probe.folds: leave-one-out, but {probe_set.group} has only {names[0]!r}")
        return [(name, np.flatnonzero(groups == name)) for name in names]
    count = int(folds)
    most = len(set(groups)) if groups is not None else int(np.unique(probe_set.classes, return_counts=True)[1].min())
    if count > most:
        what = f"groups of {probe_set.group}" if groups is not None else "examples of the rarest class"
        raise UserError(f"probe.folds: {count} are more than the {most} {what}; use fewer")
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    parts = splitter(count, shuffle=True, random_state=seed).split(probe_set.classes, probe_set.classes, groups)
    held = [np.asarray(rows) for _, rows in parts]
    if groups is None:
        return [(f"fold {number}", rows) for number, rows in enumerate(held, 1)]
    return [(", ".join(sorted(set(groups[rows].tolist()))), rows) for rows in held]


def cross_validate(
    x: np.ndarray, classes: np.ndarray, parts: Sequence[tuple[str, np.ndarray]], k: int, seed: int
) -> tuple[list[Fold], list[Fold]]:
    """The folds of the linear probe on vectors `x` (n, D) of `classes` (n,), and those of the k nearest neighbours."""
    folds: tuple[list[Fold], list[Fold]] = [], []
    for name, rows in parts:
        train = np.ones(len(x), bool)
        train[rows] = False
        names = np.unique(classes[train])
        for of_classifier, classifier in zip(folds, build_classifiers(x[train], classes[train], k, seed), strict=True):
            predicted = names[classifier(x[rows]).argmax(1)]
            of_classifier.append(Fold(name, len(rows), **class_scores(predicted, classes[rows])))
    return folds


def fold_mean(folds: Sequence[Fold], metric: str) -> float:
    """The mean over the folds."""
    return float(np.mean([getattr(fold, metric) for fold in folds]))
