"""Cross-validation of fine-tuning: one run for each group of a data set, such as the folds of ESC-50, which is validated on
that group and trained on the others."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from data2vec.atomic_io import write_json
from data2vec.console.progress import labelled
from data2vec.data.dataset import column_value
from data2vec.data.sources.selection import RowSelection
from data2vec.data.sources.splits import ALL, TRAIN, VALID, NoSplit
from data2vec.distributed import Process, is_rank_zero
from data2vec.errors import UserError, get_logger
from data2vec.modalities.custom_classes import CustomClass
from data2vec.recipe.loading import list_overrides, load_recipe, with_absolute_paths
from data2vec.run_dir import default_run_dir, exclusive_lock
from data2vec.settings import JsonDict
from data2vec.tasks.metrics import format_score
from data2vec.train.finetune import finetune
from data2vec.train.sweeps.sweep import best_score

log = get_logger(__name__)
MOST_FOLDS = 100


@dataclass(frozen=True)
class CrossValidation:
    """The scores of fine-tuning by fold; `str()` of it is a table."""

    metric: str
    column: str
    """The column of the groups."""
    scores: dict[str, float]
    """The score of the last model on each group, when trained on the others; NaN if it is not a finite number."""
    best: dict[str, float]
    """The best score of all validations, which is chosen on what is held out and so is optimistic."""

    @property
    def mean(self) -> float:
        """The mean over the folds."""
        return float(np.mean(list(self.scores.values())))

    @property
    def std(self) -> float:
        """The standard deviation over the folds."""
        return float(np.std(list(self.scores.values()), ddof=1))

    def __str__(self) -> str:
        rows = [f"{self.column:<12} {self.metric} at the last step (best of all validations)"]
        rows += [f"{name:<12} {self._shown(value)} ({self._shown(self.best[name])})" for name, value in self.scores.items()]
        mean_of_best = self._shown(float(np.mean(list(self.best.values()))))
        return "\n".join([*rows, f"{'mean':<12} {self._shown(self.mean)} ± {self._shown(self.std)} ({mean_of_best})"])

    def _shown(self, value: float) -> str:
        return format_score(self.metric, value)


def cross_validate(
    recipe: str | Path,
    column: str,
    model: str | Path | None = None,
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    scratch: bool = False,
    modality: CustomClass | None = None,
) -> CrossValidation:
    """Run `data2vec.finetune` once for each value of `column` in `data.train`, which is held out for validation.

    Each run has its own folder in `out`, which also gets folds.json. Finished runs are skipped and interrupted ones resumed, so
    the same call completes a cross-validation. The rows of all splits are divided, or those of `data.split`, if `overrides`
    have it or the recipe has another one than train. Of `data.train_rows`, `where` and `exclude` come before the folds;
    `fraction` is of the rows that a run is trained on. `modality`: see `data2vec.pretrain`.

    Raises UserError as `finetune` does, and if the column does not divide the data."""
    folder = Path(out) if out is not None else Path(f"{default_run_dir(recipe)}-folds")
    words = list_overrides(overrides)
    if named := [key for key in words if key.startswith("data.valid")]:
        raise UserError(f"{named[0]}: is set by --folds, which validates on a part of data.train; omit it")
    loaded = with_absolute_paths(load_recipe(recipe, words, modality=modality))
    words = {key: value for key, value in words.items() if not key.startswith("data.train_rows")}  # each fold has its own
    if loaded.data.train is None:
        raise UserError("data.train: no labelled data; give it with data.train=FOLDER")
    if getattr(loaded.objective, "patience", None) is not None:
        raise UserError("objective.patience: would end each run by the scores of what is held out; set it to null for --folds")
    selection = loaded.data.train_rows
    if selection.part != RowSelection().part:
        raise UserError(
            "data.train_rows.part: would be another part in each fold; select rows by where and exclude for --folds"
        )
    every = RowSelection(where=selection.where, exclude=selection.exclude)
    split = ALL if "data.split" not in words and loaded.data.split == TRAIN else loaded.data.split
    reader = loaded.build_modality()
    rows = reader.reading(split=split).selected_rows(loaded.data.train, every, "data.train_rows")
    try:
        reader.reading(VALID, split=split).rows(loaded.data.train)
    except NoSplit:  # data without splits counts as train, but for validation as valid
        split = ALL
    groups = group_names(rows, column, loaded.data.train)
    is_main, process = is_rank_zero(), Process(torch.device("cpu"))
    with exclusive_lock(folder, process, "another cross-validation runs") if is_main else nullcontext():
        scores, best = dict[str, float](), dict[str, float]()
        for name in groups:
            place = folder / quote(f"{column}-{name}", safe=" ")  # names that differ have folders that differ
            left_out = {**selection.exclude, column: (*selection.exclude.get(column, ()), name)}
            held_out = every.model_copy(update={"where": {**selection.where, column: (name,)}})
            fold: JsonDict = {
                "data.valid": loaded.data.train,
                "data.split": split,
                "data.valid_split": split,
                "data.train_rows": _dumped(selection.model_copy(update={"exclude": left_out})),
                "data.valid_rows": _dumped(held_out),
            }
            with labelled(f"{column} {name}"):
                resume = (place / "recipe.yaml").is_file()
                run = finetune(recipe, model, None, None, words | fold, place, resume, scratch, modality)
            best[name] = best_score(run, loaded.objective.metric)
            values = [line[key] for line in run.metrics if (key := f"valid_{loaded.objective.metric}") in line]
            scores[name] = math.nan if not values or values[-1] is None else values[-1]
        result = CrossValidation(loaded.objective.metric, column, scores, best)
        if is_main:
            folds = {"scores": {name: _or_null(value) for name, value in scores.items()}}
            folds |= {"best": {name: _or_null(value) for name, value in best.items()}}
            means = {"mean": _or_null(result.mean), "std": _or_null(result.std)}
            write_json(folder / "folds.json", asdict(result) | folds | means)
        return result


def _dumped(selection: RowSelection) -> JsonDict:
    return selection.model_dump(mode="json", exclude_defaults=True)


def _or_null(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def group_names(rows: Any, column: str, where: str) -> list[str]:
    """The values of `column`, at least two; rows without one, which no fold holds out, are counted in a warning. Raises
    UserError."""
    if not hasattr(rows, "__len__"):
        raise UserError("data.streaming: folds need the values of a column before the run; set it to false")
    values = [column_value(rows, index, column) for index in range(len(rows))]
    found = {str(value) for value in values if value is not None}
    if not 2 <= len(found) <= MOST_FOLDS:
        raise UserError(f"--folds {column}: has {len(found)} values in {where}; name a column with 2 to {MOST_FOLDS}")
    if patterns := sorted(name for name in found if any(letter in name for letter in "*?[")):
        raise UserError(f"--folds {column}: {patterns[0]!r} is a pattern, which may select rows of other groups; rename it")
    if missing := sum(value is None for value in values):
        log.warning("--folds %s: %d of %d rows have none, and are trained on in every fold", column, missing, len(values))
    return sorted(found, key=lambda name: (len(name), name))
