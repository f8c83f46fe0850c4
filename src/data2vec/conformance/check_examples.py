"""`check_examples()`: read a complete data set by a modality, and report what it contains."""

import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.atomic_io import write_json
from data2vec.conformance.case import small_recipe
from data2vec.console.progress import progress
from data2vec.data.check.report import Distribution, describe_counts, describe_range
from data2vec.data.corrupt import load_example
from data2vec.errors import CorruptExample, UserError
from data2vec.local_path import output_file
from data2vec.modalities.custom_classes import CustomClass
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import MODALITIES, Recipe
from data2vec.settings import JsonMapping
from data2vec.train.pretrain import resolve_recipe

SHOWN = 20
"""Unreadable examples that are named."""


@dataclass(frozen=True)
class ExampleReport:
    """What a data set contains, as a modality reads it; `str()` is the report."""

    where: str
    modality: str
    examples: int
    unreadable: list[str]
    """ "name: reason" of each."""
    costs: Distribution
    positions: Distribution
    """Of the readable examples, not cropped."""
    shapes: dict[str, int]
    """The shapes of the input of an example, the most frequent first."""
    classes: dict[str, int]
    """Examples by label, with `data.label`; the largest class first."""
    batch: float
    """In units of the costs."""
    max_corrupt: float
    measured: dict[str, Any] = field(default_factory=dict)
    """Settings that are read off the data, such as the mean of log-mel values, by dotted key."""

    def __str__(self) -> str:
        bad = len(self.unreadable)
        readable = f"; {self.examples - bad:,} readable, {bad:,} unreadable" if bad else ", all readable"
        rows = {"examples": f"{self.examples:,}{readable}", "costs": describe_range(self.costs)}
        rows |= {"positions": describe_range(self.positions), "input": describe_counts(self.shapes)}
        rows |= {"classes": f"{len(self.classes):,}: {describe_counts(self.classes)}"} if self.classes else {}
        rows |= {"measured": " ".join(f"{key}={value}" for key, value in self.measured.items())} if self.measured else {}
        lines = [f"{self.where}: {self.modality}", *(f"  {name:<14}{text}" for name, text in rows.items())]
        lines += [f"  {reason}" for reason in self.unreadable[:SHOWN]]
        lines += [f"  and {bad - SHOWN:,} more"] if bad > SHOWN else []
        return "\n".join([*lines, "", self._advice()])

    def _advice(self) -> str:
        bad, allowed = len(self.unreadable), max(1, int(self.max_corrupt * self.examples))
        if bad > allowed:
            return f"Fix first: {bad:,} examples cannot be read, data.max_corrupt tolerates {allowed:,}: repair or remove them."
        if self.costs.total < self.batch:
            there = f"there are {self.costs.total:g}: add data, or lower the batch."
            return f"Not ready: a step needs {self.batch:g}, in units of costs; {there}"
        what = f"{self.modality}/v2-tiny" if self.modality in MODALITIES else f"RECIPE --modality {self.modality}"
        return f"Ready: data2vec pretrain {what} data.train={shlex.quote(self.where)}"


def check_examples(
    modality: CustomClass,
    data: Any,
    overrides: Iterable[str] | JsonMapping = (),
    recipe: str | Path | Recipe | None = None,
    out: str | Path | None = None,
) -> ExampleReport:
    """Read a complete data set by a modality. An unreadable example is part of the report, not an error.

    `modality`: a built-in one, such as "sound", whose statistics are measured; or a class outside the package, or its name
    "package.module:Class". `data`: as of `data2vec.pretrain`. `overrides`: settings; with
    `data.label`, classes are counted. `recipe`: the recipe with the settings of the modality (default: those of the class; of a
    built-in modality its recipe v2-tiny).
    `out`: a JSON file for the complete report.

    Raises UserError for an unknown class or setting, if the data cannot be opened, and if no example can be read."""
    out = None if out is None else output_file(out, "--json")
    with tempfile.TemporaryDirectory(prefix="data2vec-check-") as folder:
        built_in = isinstance(modality, str) and modality in MODALITIES
        chosen = recipe or (f"{modality}/v2-tiny" if built_in else small_recipe(Path(folder)))
        named = None if built_in else modality
        given = load_recipe(chosen, overrides, modality=named).flat()
        resolved = resolve_recipe(chosen, data, overrides, named)
    reader, train = resolved.build_modality(), str(resolved.data.train)
    examples = reader.labelled(reader.selected_rows(train, resolved.data.train_rows, "data.train_rows"))
    unreadable, costs, positions = list(examples.corrupt), list[float](), list[int]()
    shapes, classes = Counter[str](), Counter[str]()
    for index in progress(range(len(examples)), desc="reading", unit="example"):
        try:
            item = load_example(examples, index, None, None)
        except CorruptExample as error:
            unreadable.append(str(error))
            continue
        batch = reader.collate([item])
        costs.append(float(examples.costs[index]))
        positions.append(prod(reader.grid(batch)))
        shapes[f"({', '.join(map(str, batch.input.shape[1:]))})"] += 1
        if resolved.data.label is not None:
            label = examples.label(index, resolved.data.label)
            classes["none" if label is None else str(label)] += 1
    if not costs:
        reason = f", such as {unreadable[0]}" if unreadable else ""
        raise UserError(f"{train}: none of {len(unreadable)} examples can be read{reason}")
    report = ExampleReport(
        train,
        resolved.modality.name,
        len(costs) + len(unreadable),
        unreadable,
        _distribution(costs),
        _distribution(positions),
        dict(shapes.most_common()),
        dict(classes.most_common()),
        resolved.data.batch,
        resolved.data.max_corrupt,
        {key: value for key, value in resolved.flat().items() if key.startswith("modality.") and value != given.get(key)},
    )
    if out is not None:
        write_json(Path(out), asdict(report))
    return report


def _distribution(values: list[float] | list[int]) -> Distribution:
    array = np.asarray(values, np.float64)
    return Distribution(*(float(each) for each in (array.min(), np.median(array), array.mean(), array.max(), array.sum())))
