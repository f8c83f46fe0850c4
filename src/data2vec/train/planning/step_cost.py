"""The cost of an optimizer step: floating-point operations (`data2vec.train.planning.flops`) and seconds."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from data2vec.distributed import process_group
from data2vec.recipe.joint import require_single
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.train.finetune import FinetuneTask
from data2vec.train.planning.flops import flop_counter
from data2vec.train.pretrain import PretrainTask
from data2vec.train.train_step import TrainStep

STEPS = 4
"""Steps that are counted; their batches differ in length, and the objective may differ along a run."""


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step of a recipe costs, on average."""

    flops: float
    """Floating-point operations."""
    seconds: float
    """Duration on this machine, without data loading."""


def step_cost(recipe: Recipe, steps: int = STEPS) -> StepCost:
    """The cost of an optimizer step of a complete recipe, of pre-training or of fine-tuning, on its own data.

    Steps are made with the first batches of the data, numbered evenly over the run, such that frozen phases count by their
    share. Recomputation and compilation, which change the count but not the result, are off. Raises UserError as training
    does."""
    require_single(recipe, "a comparison at equal compute")
    recipe = load_recipe(
        recipe, {"train.recompute": False, "train.compile": False, "data.workers": 0, "probe.data": None, "data.valid": None}
    )
    task_class: Any = FinetuneTask if isinstance(recipe.objective, SupervisedSettings) else PretrainTask
    with process_group(recipe.train.device) as process, torch.random.fork_rng():
        task = task_class(recipe, process)
        make_step = TrainStep(task.objective, recipe.train, process)
        batches = task.loader.steps()
        counted, durations = [], []
        for i in range(steps):
            number, micro_batches = 1 + int(recipe.train.steps * (i + 0.5) / steps), next(batches)
            counter = flop_counter()
            with counter:
                make_step(number, micro_batches, measure=False, norm=False)
            counted.append(counter.get_total_flops())
            begin = time.perf_counter()
            float(make_step(number, micro_batches, measure=False, norm=False).loss)
            durations.append(time.perf_counter() - begin)
        batches.close()
    return StepCost(sum(counted) / steps, sum(durations) / steps)
