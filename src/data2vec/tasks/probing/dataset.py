"""The labelled data of a probe: training and validation sets."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data2vec.data.dataset import ExampleDataset, Rows
from data2vec.data.sources.selection import RowSelection
from data2vec.errors import UserError, get_logger
from data2vec.modalities.base import Modality
from data2vec.recipe.task_settings import ProbeSettings

log = get_logger(__name__)
SHOWN = 5
"""How many examples a message names."""
VALID_FRACTION = 0.2
"""The fraction of `probe.data` that is held out if there is no `probe.valid`."""


@dataclass(frozen=True)
class ProbeSet:
    """Labelled examples of a probe, and their classes."""

    name: str
    """The setting that names the data, for error messages."""
    examples: ExampleDataset
    indices: np.ndarray
    """(n,) indices into `examples`."""
    classes: np.ndarray
    """(n,) class names."""
    groups: np.ndarray | None = None
    """(n,) the names of their groups: of `probe.group`, or of the recordings that they are windows of; None: no groups."""
    group: str | None = None
    """What the groups are."""
    rows: Rows = None
    """What `examples` are made from."""

    def subset(self, rows: np.ndarray) -> "ProbeSet":
        """The examples at `rows`, from 0 to n - 1."""
        groups = None if self.groups is None else self.groups[rows]
        return replace(self, indices=self.indices[rows], classes=self.classes[rows], groups=groups)


def load_probe_set(modality: Modality, settings: ProbeSettings, seed: int) -> ProbeSet:
    """The set for cross-validation. Raises UserError as `load_probe_sets`."""
    if settings.data is None:
        raise UserError("probe.data: no labelled data; set probe.data to a folder of class folders, or a table with labels")
    if settings.valid is not None:
        raise UserError("probe.folds: is cross-validation on probe.data alone; leave out probe.valid (--valid), or probe.folds")
    return _load("probe.data", settings.data, settings.data_rows, modality, settings, seed)


def load_probe_sets(modality: Modality, settings: ProbeSettings, seed: int) -> tuple[ProbeSet, ProbeSet]:
    """The training and the validation set.

    Raises UserError if data or labels are missing, if there is only one class, or if a class is in the validation set only."""
    if settings.data is None:
        raise UserError("probe.data: no labelled data; set probe.data to a folder of class folders, or a table with labels")
    train = _load("probe.data", settings.data, settings.data_rows, modality, settings, seed)
    if settings.valid is not None:
        valid = _load("probe.valid", settings.valid, settings.valid_rows, modality.validation(), settings, seed)
        _warn_common_groups(train, valid, settings.group)
    else:
        train, valid = hold_out(train, seed)
    classes = np.unique(train.classes)
    require_two_classes(classes, settings.label)
    if unknown := sorted(set(valid.classes) - set(classes)):
        raise UserError(
            f"{valid.name}: {settings.label} {', '.join(unknown[:5])} {'is' if len(unknown) == 1 else 'are'} not among the "
            f"{len(train.indices)} training examples, which have {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        )
    return train, valid


def require_two_classes(classes: np.ndarray, label: str) -> None:
    """Raises UserError unless there are two `classes`, the different ones of the column `label`."""
    if len(classes) < 2:
        raise UserError(f"probe.data: every example has the {label} {str(classes[0])!r}; a probe needs at least two classes")


def _warn_common_groups(train: ProbeSet, valid: ProbeSet, group: str | None) -> None:
    """`probe.group` keeps groups apart where `probe.data` is split; with `probe.valid` that is the user's split."""
    if group is None or train.groups is None or valid.groups is None:
        return
    if common := sorted(set(train.groups.tolist()) & set(valid.groups.tolist())):
        shown = ", ".join(common[:SHOWN]) + (", …" if len(common) > SHOWN else "")
        log.warning("probe.group: probe.data and probe.valid have %s %s in common; scores are not of new ones", group, shown)


def _load(name: str, where: str, selection: RowSelection, modality: Modality, settings: ProbeSettings, seed: int) -> ProbeSet:
    try:
        rows = modality.reading(modality.whole_split, column=settings.column).selected_rows(where, selection, f"{name}_rows")
    except UserError as error:
        problem = str(error).replace("data.column", "probe.column")
        raise UserError(problem if problem.startswith(f"{name}_rows") else f"{name}: {problem}") from None
    examples = modality.labelled(rows)
    order = np.arange(len(examples))
    if len(order) > settings.max_examples:
        order = np.random.default_rng(seed).permutation(order)
    indices, classes = _labelled(examples, order, settings, where)
    if settings.group is None and (recordings := examples.recordings) is not None and len(set(recordings)) < len(recordings):
        return ProbeSet(name, examples, indices, classes, recordings[indices].astype(str), "recording", rows)
    if settings.group is None:
        return ProbeSet(name, examples, indices, classes, rows=rows)
    try:
        groups = np.array([str(examples.label(index, settings.group)) for index in indices.tolist()])
    except UserError as error:
        raise UserError(f"probe.group: {error} ({where})") from None
    if (missing := int((groups == "None").sum())) == len(groups):
        raise UserError(f"probe.group: no example in {where} has a {settings.group!r}")
    if missing:
        raise UserError(f"probe.group: {missing} of {len(groups)} examples in {where} have no {settings.group!r}")
    return ProbeSet(name, examples, indices, classes, groups, settings.group, rows)


def hold_out(probe_set: ProbeSet, seed: int) -> tuple[ProbeSet, ProbeSet]:
    """A stratified split: the same class frequencies in both sets; with groups about the same, and no group in both."""
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    rows = np.arange(len(probe_set.indices))
    if probe_set.groups is not None:
        count = round(1 / VALID_FRACTION)
        if len(set(probe_set.groups)) < count:
            raise UserError(
                f"probe.group: {probe_set.group} has {len(set(probe_set.groups))} groups, too few to hold out a fifth; set "
                "probe.folds=leave-one-out, or probe.valid"
            )
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        train, valid = next(splitter.split(rows, probe_set.classes, probe_set.groups))
        return probe_set.subset(train), probe_set.subset(valid)
    try:
        train, valid = train_test_split(rows, test_size=VALID_FRACTION, stratify=probe_set.classes, random_state=seed)
    except ValueError as error:
        raise UserError(
            f"probe.data: cannot hold out a fifth of it ({error}); set probe.valid, or add examples of each class"
        ) from None
    return probe_set.subset(np.sort(train)), probe_set.subset(np.sort(valid))


def _labelled(
    examples: ExampleDataset, order: np.ndarray, settings: ProbeSettings, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) the first `max_examples` of `order` that have a label, and (n,) their classes. Those without one are logged."""
    column, indices, missing = settings.label, list[int](), list[int]()
    values: list[Any] = []
    try:
        for index in order.tolist():
            if (value := examples.label(index, column)) is None:
                missing.append(index)
                continue
            indices.append(index)
            values.append(value)
            if len(indices) == settings.max_examples:
                break
    except UserError as error:
        raise UserError(f"probe.label: {error} ({where})") from None
    if not indices:
        raise UserError(f"probe.label: no example in {where} has a {column!r}")
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN]))
        message = "%s: %d of %d examples are left out: no %s (examples %s)"
        log.warning(message, where, len(missing), len(missing) + len(indices), column, shown)
    if (several := next((value for value in values if isinstance(value, list)), None)) is not None:
        raise UserError(f"probe.label: {column!r} in {where} holds lists, such as {several}, not classes; name another column")
    if (number := next(filter(_has_decimals, values), None)) is not None:
        raise UserError(f"probe.label: {column!r} in {where} holds numbers such as {number}, not classes")
    return np.array(indices), np.array([str(value) for value in values])


def _has_decimals(value: Any) -> bool:
    """Whether a label is a number with decimals, also as text."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return bool(np.isfinite(number)) and not number.is_integer()
