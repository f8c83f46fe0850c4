"""The parts of pre-training for a training loop of your own: the objective, a torch module, and its batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from data2vec.batch import MaskedBatch
from data2vec.data.loader import Loader
from data2vec.data.masked_batches import rank_stride
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.modalities.custom_classes import CustomClass
from data2vec.objective import Objective
from data2vec.recipe.joint import require_single
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.settings import JsonMapping
from data2vec.train.pretrain import prepare_objective, resolve_recipe


class BatchLoader:
    """The batches of a pre-training run, one after the other and without end, on the CPU: the same ones in the same order as of
    `data2vec.pretrain`, from the first step whenever it is iterated."""

    def __init__(self, recipe: Recipe, rank: int = 0, world_size: int = 1, pin_memory: bool = False):
        """The part of process `rank` of `world_size`. Raises UserError for data of less than one step."""
        if not 0 <= rank < world_size:
            raise UserError(f"rank: {rank} is not a process of {world_size}; the first one is 0")
        self.recipe = recipe
        """The recipe with all that was read off the data, for the `Model` that is saved."""
        method, modality = recipe.objective, recipe.build_modality()
        rows = modality.selected_rows(str(recipe.data.train), recipe.data.train_rows, "data.train_rows")
        seed, masks = recipe.train.seed, method.masks_per_sample
        self.loader = Loader(modality, method.mask, rows, seed, rank, world_size, pin_memory, masks)
        self.accumulate = self.loader.per_step // rank_stride(self.loader.per_step, world_size)
        """Micro-batches of an optimizer step in this process: what `data.batch_…` and `data.micro_batch_…` say."""

    def __iter__(self) -> Iterator[MaskedBatch]:
        for step in self.loader.steps():
            for batch in step:
                assert isinstance(batch, MaskedBatch)
                yield batch


def build_objective(
    recipe: str | Path | Recipe,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    modality: CustomClass | None = None,
) -> Objective:
    """A pre-training objective as a torch module on the CPU, with the weights that a run of this recipe starts with.

    `objective(batch)` of a batch of `data2vec.build_loader` gives a `loss`, the sum over the predicted positions, and its
    `mean_loss`. Call `objective.before_step(n)` and `objective.after_step(n)`, which updates the teacher, around optimizer step
    n, counted from 1. `objective.student` is the encoder. The arguments are as of `data2vec.pretrain`; without data, what a run
    reads off its data has the values of the recipe.

    Raises UserError for wrong arguments, for a recipe of fine-tuning, and without data if targets are fitted to these."""
    resolved = _resolve(recipe, data, overrides, modality, needs_data=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolved.train.seed)
        objective = resolved.build_objective()
    fits_targets = type(objective).fit_targets is not Objective.fit_targets
    if fits_targets and resolved.data.train is None:
        raise UserError(f"data: the targets of objective {resolved.objective.name} are fitted to the training data; give it")
    batches = BatchLoader(resolved) if fits_targets else ()
    prepare_objective(resolved, objective, batches, Process(torch.device("cpu")))
    return objective


def build_loader(
    recipe: str | Path | Recipe,
    data: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    modality: CustomClass | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> BatchLoader:
    """The batches of pre-training for `data2vec.build_objective` with the same arguments: see `BatchLoader`.

    `rank`, `world_size`: this process and their number; each gets its part, so no other sampler is needed. `pin_memory`: in
    page-locked memory, for GPUs. Raises UserError for wrong arguments, missing data, and data of less than one step."""
    return BatchLoader(_resolve(recipe, data, overrides, modality, needs_data=True), rank, world_size, pin_memory)


def _resolve(
    recipe: str | Path | Recipe,
    data: Any,
    overrides: Iterable[str] | JsonMapping,
    modality: CustomClass | None,
    needs_data: bool,
) -> Recipe:
    loaded = load_recipe(recipe, overrides, modality=modality)
    require_single(loaded, "a training loop of your own")
    name = loaded.objective.name
    if isinstance(loaded.objective, SupervisedSettings):
        raise UserError(f"objective.name: {name} is of a recipe for fine-tuning; use one for pre-training")
    if data is None and loaded.data.train is None and not needs_data:
        return loaded
    return resolve_recipe(loaded, data, (), modality)
