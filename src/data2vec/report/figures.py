"""What there is to look at in a run: pictures of what its model is shown and makes of it, each with how to read it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.model import load_model_folder
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.objective import Objective, build_objective
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.report import panels as pictures
from data2vec.report import samples as inside
from data2vec.report.samples import Sample
from data2vec.train import checkpoint

MASKS = 8
"""At least so many masks of each example are tried for the loss at each position."""


@dataclass(frozen=True)
class Look:
    """A figure, what it shows, and how to read it."""

    figure: Any
    title: str
    says: str


def looks(run: Path, recipe: Recipe) -> tuple[list[Look], str]:
    """The pictures that the run folder and the training data allow, and why the others are missing, if some are."""
    if isinstance(recipe.objective, SupervisedSettings):
        return _tuned(run), ""
    modality = recipe.build_modality()
    try:
        sample = inside.sample(modality, str(recipe.data.train))
        batches = list(sample.masked(recipe.objective.mask, recipe.objective.masks, ceil(MASKS / recipe.objective.masks)))
    except Exception as error:  # loading is the modality's, and a modality may be anybody's
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return [], f"pictures of inputs, features, attention and loss, since no training data can be loaded ({reason})"
    found = [_masks(sample, batches)]
    newest = checkpoint.latest(run)
    if newest is None:
        return found, "pictures of features, attention and loss, since there is no whole checkpoint"
    objective = _untrained(recipe, modality)
    untrained = copy.deepcopy(objective.student)
    try:
        checkpoint.weights(newest, objective)
    except UserError as error:
        return found, f"pictures of features, attention and loss, since {error}"
    found.append(_losses(sample, batches, objective))
    found.append(_components(sample, untrained, objective.student))
    found.append(_attention(sample, objective.student))
    return found, ""


def _tuned(run: Path) -> list[Look]:
    """Of a fine-tuned model: which layers its head takes its sum from, if it does."""
    if not (run / "model" / "config.json").is_file():
        return []
    head = load_model_folder(run).head
    if head is None or head.mix is None:
        return []
    says = "The weights of the blocks' outputs, each normalised, in the sum that the head is given: which layer carries what."
    return [Look(pictures.bars(head.mix.softmax(0).detach().numpy()), "Which layers the head listens to", says)]


def _untrained(recipe: Recipe, modality: Modality) -> Objective:
    """The objective as a run of this recipe starts from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        encoder = build_encoder(modality, recipe.encoder)
        return build_objective(encoder, recipe.objective).eval().requires_grad_(False)


def _masks(sample: Sample, batches: Sequence[MaskedBatch]) -> Look:
    n = len(sample.batch)
    hidden = torch.cat([batch.mask.view(n, -1, batch.mask.shape[1]) for batch in batches], dim=1).numpy()
    says = f"Grey is hidden: {hidden.mean():.0%} of {hidden.shape[2]} positions. The teacher sees the whole input."
    return Look(pictures.masks(sample.canvas, hidden), "What the student does not see", says)


def _losses(sample: Sample, batches: Sequence[MaskedBatch], objective: Objective) -> Look:
    errors = inside.errors(objective, batches)
    says = (
        f"At each hidden position; bright: hard to predict. The mean is over {errors.shape[1]} masks of each of {len(errors)} "
        "examples: a pattern in it comes from where a position is, not from what is there."
    )
    return Look(pictures.losses(sample.canvas, errors), "Loss, mask by mask", says)


def _components(sample: Sample, before: Encoder, after: Encoder) -> Look:
    untrained, trained = (inside.features(encoder, sample.batch) for encoder in (before, after))
    says = (
        "First three principal components as red, green and blue: like colours, like features. What belongs together should "
        "have a colour in common after training; one colour everywhere is collapse."
    )
    return Look(pictures.components(sample.canvas, untrained, trained), "Features", says)


def _attention(sample: Sample, encoder: Encoder) -> Look:
    layers = len(encoder.transformer.blocks)
    blocks = sorted({0, layers // 2, layers - 1})
    weights = inside.attention(encoder, sample.batch, blocks)
    whose = "Of the red position to all" if len(sample.grid) == 2 else "Of each position (row) to each (column)"
    says = (
        f"{whose}, mean over {weights.shape[1]} heads; bright: much. A map that has nothing to do with the input, or one "
        "position that takes all, says that content plays no part."
    )
    return Look(pictures.attention(sample.canvas, weights, blocks, sample.grid), "Attention", says)
