"""`resume()`: continue a run of any kind, from its folder alone."""

from collections.abc import Iterable
from pathlib import Path

from data2vec.local_path import local_path
from data2vec.modalities.custom_classes import CustomClass, trust_class
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.run_dir import Run
from data2vec.settings import JsonMapping
from data2vec.train.finetune import FinetuneTask
from data2vec.train.pretrain import pretraining_task
from data2vec.train.resumed_recipe import Verb, recipe_to_resume
from data2vec.train.trainer import run_training


def resume(
    run: str | Path,
    overrides: Iterable[str] | JsonMapping = (),
    modality: CustomClass | None = None,
    objective: CustomClass | None = None,
    verb: Verb | None = None,
) -> Run:
    """Resume a run of pre-training or fine-tuning from its latest complete checkpoint, bit-exactly, by its own recipe.

    `run`: the run folder. `overrides`: settings to change, such as {"train.steps": 2000}, of those that may
    (`data2vec.run_dir.CHANGEABLE_ON_RESUME`); another length is announced, with what it means for the schedules. `modality` and
    `objective`: see `data2vec.load`. `verb`: "pretrain" or "finetune", to refuse a run of the other kind. A finished run is
    left as it is.

    Raises UserError if there is no such run, for other overrides, and for fewer steps than it has made; RunStopped as
    `data2vec.pretrain` does."""
    folder = local_path(run)
    if objective is not None:
        trust_class(objective, "objective")
    recipe = recipe_to_resume(folder, overrides, modality, verb=verb)
    task = FinetuneTask if isinstance(recipe.objective, SupervisedSettings) else pretraining_task(recipe)
    return run_training(folder, recipe, True, task)
