"""`data2vec plan`: what a run will be, without starting it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from data2vec.distributed import process_group
from data2vec.local_path import local_path
from data2vec.modalities.custom_classes import CustomClass
from data2vec.recipe.joint import require_single
from data2vec.recipe.loading import list_overrides, load_recipe, read_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import SUPERVISED
from data2vec.run_dir import default_run_dir
from data2vec.settings import JsonMapping
from data2vec.train import finetune, pretrain
from data2vec.train.planning.auto import Auto, find_auto, resolve_auto
from data2vec.train.planning.measure import measure_step
from data2vec.train.planning.run_plan import RunPlan, plan_run
from data2vec.train.trainer import stop_without_memory


def plan(
    recipe: str | Path | Recipe,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    model: str | Path | None = None,
    valid: Any = None,
    scratch: bool = False,
    measure: bool = True,
    modality: CustomClass | None = None,
) -> RunPlan:
    """What a run of `data2vec.pretrain` or `data2vec.finetune` with these arguments will be: amounts of data, steps, epochs and
    batches, memory and time, disk, schedules, and what would be unwise.

    Nothing is written but files derived from the data, such as tokens of text, which the run uses too. `measure`: make two
    steps with one micro-batch of the data, for memory and time. `model`, `valid`, `scratch`: of fine-tuning.

    Raises UserError as the run would, and RunStopped when a micro-batch does not fit into the memory."""
    keys: set[str] = set()
    overrides = list_overrides(overrides)
    task = overrides.get("objective.name", (read_recipe(recipe).get("objective") or {}).get("name"))
    supervised = task in SUPERVISED
    if supervised:
        resolved = finetune.resolve_recipe(recipe, model, data, valid, overrides, scratch, modality, keys)
    else:
        resolved = pretrain.resolve_recipe(recipe, data, overrides, modality, keys)
    require_single(resolved, "a plan (of a joint run, that of each part is printed when it starts)")
    auto = find_auto(recipe, overrides, keys, modality)
    folder = local_path(out) if out is not None else default_run_dir(recipe)
    task_class: Any = finetune.FinetuneTask if supervised else pretrain.PretrainTask
    return plan_resolved(resolved, auto, task_class, folder, measure)


def plan_resolved(resolved: Recipe, auto: Auto, task_class: Any, folder: Path, measure: bool = True) -> RunPlan:
    """The plan of a run in `folder` by a resolved recipe, but for what is auto; see `plan`."""
    with process_group(resolved.train.device) as process, torch.random.fork_rng(), stop_without_memory():
        resolved = resolve_auto(resolved, auto, task_class, process)
        # Evaluation is not planned, and reads other data.
        single = load_recipe(resolved, {"data.workers": 0, "probe.data": None, "data.valid": None})
        task = task_class(single, process)
        planned = plan_run(resolved, task.loader, task.objective, process, folder)
        if not measure:
            return planned
        measured = measure_step(single, task.loader, task.objective, process)
        return plan_run(resolved, task.loader, task.objective, process, folder, measured=measured)
