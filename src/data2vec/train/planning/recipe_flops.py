"""Floating-point operations of a pre-training run, by the shapes of a recipe alone: without data or computation."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.train.planning.flops import flop_counter

CLIP_SECONDS = 10.0
"""Of speech: the length of the clips that are counted, if the recipe does not crop to less."""

COUNTED_STEPS = 5
"""Of a run whose steps differ."""


def count_run_flops(recipe: Recipe, device: str = "meta") -> float:
    """All optimizer steps of a recipe for speech, images or text, without layer drop; by some of them, evenly over the run, if
    the input is predicted too or the student is frozen at first. `device`: on any other than meta they are computed.

    Raises UserError for other modalities, whose shapes the data decides, and for objectives that cannot be counted so."""
    recipe = load_recipe(recipe, {"encoder.layerdrop": 0})
    modality, (item, cost) = recipe.build_modality(), _example(recipe)
    with torch.device(device):
        objective = recipe.build_objective().train()
    batch = modality.collate([item])
    drawn = recipe.objective.mask.draw(recipe.objective.masks_per_sample, modality.grid(batch), np.random.default_rng(0))
    masked = MaskedBatch(
        batch.input,
        batch.padding,
        mask=torch.from_numpy(drawn.masked),
        predicted_indices=torch.from_numpy(np.flatnonzero(drawn.predicted)),
    ).to(torch.device(device))
    count = COUNTED_STEPS if objective.may_skip_parameters else 1
    with flop_counter() as counter:
        for step in range(count):
            objective.before_step(1 + int(recipe.train.steps * (step + 0.5) / count))
            objective(masked).loss.backward()
    return counter.get_total_flops() / count * recipe.data.batch / cost * recipe.train.steps


def _example(recipe: Recipe) -> tuple[Tensor, float]:
    """An example as it is loaded, and what it counts for in the batch."""
    data: Any = recipe.data
    modality: Any = recipe.modality
    if recipe.objective.name not in ("data2vec", "data2vec2", "mlm", "wav2vec2"):
        raise UserError(f"objective.name: {recipe.objective.name} needs its data")
    if recipe.modality.name == "speech":
        seconds = min(CLIP_SECONDS, data.max_seconds)
        return torch.zeros(round(16_000 * seconds)), seconds
    if recipe.modality.name == "vision":
        return torch.zeros(3, modality.image, modality.image), 1
    if recipe.modality.name == "text":
        return torch.zeros(data.block_size, dtype=torch.long), 1
    raise UserError(f"modality.name: {recipe.modality.name} has shapes that its data decides")
