"""The recipe that a run is resumed by: the run's own, with overrides on top; and what a change of its length means."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from data2vec.data.sources.library import data_path
from data2vec.errors import UserError
from data2vec.modalities.custom_classes import CustomClass, trust_class
from data2vec.recipe.loading import (
    AUTO,
    is_of_run,
    list_overrides,
    load_recipe,
    read_recipe,
    trust_recipe_classes,
    with_absolute_paths,
)
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.run_dir import Run, check_run_dir, read_recorded_recipe
from data2vec.settings import JsonDict, JsonMapping
from data2vec.train.optimizer import learning_rate

Verb = Literal["pretrain", "finetune"]


def resumes(folder: Path, resume: bool) -> bool:
    """Whether a run is resumed: because the caller says so, or because torchrun has restarted this process after it began."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return resume or (restarted and Run(folder).recipe.is_file())


def recipe_to_resume(
    folder: Path,
    overrides: Iterable[str] | JsonMapping = (),
    modality: CustomClass | None = None,
    named: str | Path | Recipe | None = None,
    verb: Verb | None = None,
    data: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recorded recipe of the run in `folder`, with overrides on top and with absolute paths.

    `named`: the recipe that the caller names besides, whose custom classes are trusted; `open_checkpoint` compares it. `verb`:
    what the run must be of; None: either. `data`: datasets by setting, as `data_path` takes them, or None.

    Raises UserError if there is no such run, and for overrides that are not valid."""
    check_run_dir(folder, resume=True)
    given = list_overrides(overrides)
    changes = {key: value for key, value in given.items() if not (key in AUTO and value == "auto")}  # it has numbers
    changes |= {key: data_path(value) for key, value in (data or {}).items() if value is not None}
    if modality is not None:
        trust_class(modality, "modality")
    trust_recipe_classes(named, changes)
    recorded = read_recorded_recipe(folder)
    if verb not in (None, verb_of(recorded)):
        kind = "fine-tuning" if verb == "pretrain" else "pre-training"
        raise UserError(f"--resume: {folder} is a run of {kind}; use: data2vec {verb_of(recorded)} --resume {folder}")
    return with_absolute_paths(load_recipe(recorded, changes, modality=modality), recorded)


def named_recipe(recipe: str | Path | Recipe) -> JsonDict | None:
    """What a run records of the recipe that it is started with, to compare it when it is resumed; None for the file in a run
    folder, which is the run's own recipe."""
    return None if is_of_run(recipe) else read_recipe(recipe)


def verb_of(recipe: Recipe) -> Verb:
    """The command for runs of this recipe."""
    return "finetune" if isinstance(recipe.objective, SupervisedSettings) else "pretrain"


def describe_new_length(old: Recipe, new: Recipe, step: int) -> str | None:
    """What it means for the schedules that a run at `step` gets another length; None if it does not."""
    before, after = old.train.steps, new.train.steps
    if before == after:
        return None
    following = step + 1
    rates = [f"{learning_rate(each.train, min(following, each.train.steps)):.3g}" for each in (old, new)]
    parts = [f"the learning rate is {rates[1]} instead of {rates[0]}"]
    if (teacher := getattr(old.objective, "teacher", None)) is not None:
        decays = [f"{teacher.schedule(steps)(following):.6g}" for steps in (before, after)]
        parts.append(f"the teacher's decay {decays[1]} instead of {decays[0]}")
    return (
        f"train.steps: {before} -> {after}; schedules that depend on the length of the run are those of {after} steps from now "
        f"on: at step {following} {' and '.join(parts)}"
    )
