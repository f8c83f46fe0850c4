"""The figures of a run beside its curves: masks, losses, features and attention on training examples, each with a caption.

Shapes: n examples, M masks, T positions, D width, H heads.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.model import load_model_folder
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.objective import Objective
from data2vec.objective.latent import LatentSettings
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.report.curves import SHARES
from data2vec.report.renderers import ColorScale, Renderer, mosaic
from data2vec.report.samples import (
    Sample,
    attention_weights,
    encoder_features,
    layer_variance_shares,
    load_sample,
    masked_errors,
)
from data2vec.report.style import WIDTH, hide_axes, new_figure
from data2vec.run_dir import Run, latest_checkpoint, load_checkpoint_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_MASKS = 8
"""Masks per example, at least, over which the loss at each position is averaged."""
SHOWN = 3
"""Masks, or blocks, side by side."""
MASKED = (0.62, 0.62, 0.62, 1.0)
"""The colour over masked positions."""
QUERY = (0.82, 0.29, 0.36, 1.0)
"""The colour over the position whose attention is shown."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its title, and how to read it."""

    figure: "Figure"
    title: str
    caption: str


def collect_figures(run: Path, recipe: Recipe) -> tuple[list[ReportFigure], str]:
    """The figures that the run folder and the training data allow, and why others are missing ("" if none are)."""
    if isinstance(recipe.objective, SupervisedSettings):
        return _finetuning_figures(run), ""
    modality = recipe.build_modality()
    try:
        sample = load_sample(modality, str(recipe.data.train))
        masks = recipe.objective.masks_per_sample
        batches = list(sample.masked_batches(recipe.objective.mask, masks, ceil(MIN_MASKS / masks)))
    except Exception as error:  # a custom modality may raise anything; the reason is on the page
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return [], f"figures of inputs, features, attention and loss: the training data cannot be loaded ({reason})"
    figures = [_mask_figure(sample, batches, has_teacher=isinstance(recipe.objective, LatentSettings))]
    latest = latest_checkpoint(run)
    if latest is None and not Run(run).has_model:
        return figures, "figures of features, attention and loss: there is no complete checkpoint"
    objective = _untrained_objective(recipe, modality)
    untrained = copy.deepcopy(objective.student)
    try:
        if latest is not None:
            load_checkpoint_weights(latest, objective)
        else:
            _load_model_weights(run, objective)
    except UserError as error:
        return figures, f"figures of features, attention and loss: {error}"
    figures.append(_loss_figure(sample, batches, objective))
    figures.append(_feature_figure(sample, untrained, objective.student))
    figures.append(_attention_figure(sample, objective.student))
    if len(sample.batch) > 1:
        figures.append(_variance_figure(sample, objective.student))
    return figures, ""


def _load_model_weights(run: Path, objective: Objective) -> None:
    """Load student, head and teacher of the model of a run into `objective`. Raises UserError if they do not fit."""
    model = load_model_folder(run)
    weights = {f"student.{name}": weight for name, weight in model.encoder.state_dict().items()} | dict(model.pretraining)
    try:
        objective.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{run}: its model does not fit its recipe: {str(error).splitlines()[0]}") from None


def _finetuning_figures(run: Path) -> list[ReportFigure]:
    """The layer weights of a head that takes a weighted sum of all blocks."""
    if not (run / "model" / "config.json").is_file():
        return []
    head = load_model_folder(run).head
    if head is None or head.mix is None:
        return []
    caption = "The learned weights of the blocks' normalised outputs in the weighted sum that the head takes as input."
    return [ReportFigure(plot_layer_weights(head.mix.softmax(0).detach().numpy()), "Layer weights", caption)]


def _untrained_objective(recipe: Recipe, modality: Modality) -> Objective:
    """The objective with the initial weights of a run of this recipe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        encoder = build_encoder(modality, recipe.encoder)
        return recipe.build_objective(encoder).eval().requires_grad_(False)


def _mask_figure(sample: Sample, batches: Sequence[MaskedBatch], has_teacher: bool) -> ReportFigure:
    n = len(sample.batch)
    mask = torch.cat([batch.mask.view(n, -1, batch.mask.shape[1]) for batch in batches], dim=1).numpy()
    caption = f"Grey: masked, {mask.mean():.0%} of {mask.shape[2]} positions."
    caption += " The teacher sees the full input." if has_teacher else ""
    return ReportFigure(plot_masks(sample.renderer, mask), "Masked positions", caption)


def _loss_figure(sample: Sample, batches: Sequence[MaskedBatch], objective: Objective) -> ReportFigure:
    errors = masked_errors(objective, batches)
    caption = (
        f"At each masked position; bright: hard to predict. The mean is over {errors.shape[1]} masks of {len(errors)} "
        "examples: a pattern in it depends on the position, not on the content."
    )
    return ReportFigure(plot_losses(sample.renderer, errors), "Loss by position", caption)


def _feature_figure(sample: Sample, untrained: Encoder, trained: Encoder) -> ReportFigure:
    before, after = (encoder_features(encoder, sample.batch) for encoder in (untrained, trained))
    caption = (
        "First three principal components as red, green and blue: similar colours are similar features. After training, "
        "related content should share a colour; a single colour everywhere is collapse."
    )
    return ReportFigure(plot_components(sample.renderer, before, after), "Features", caption)


def _attention_figure(sample: Sample, encoder: Encoder) -> ReportFigure:
    layers = len(encoder.transformer.blocks)
    blocks = sorted({0, layers // 2, layers - 1})
    weights = attention_weights(encoder, sample.batch, blocks)
    direction = "From the red position to all" if len(sample.grid) > 1 else "From each position (row) to each (column)"
    caption = (
        f"{direction}, mean over {weights.shape[1]} heads; bright: high. A map that ignores the input, or one position that "
        "takes all attention, means that content is not used."
    )
    return ReportFigure(plot_attention(sample.renderer, weights, blocks, sample.grid), "Attention", caption)


def _variance_figure(sample: Sample, encoder: Encoder) -> ReportFigure:
    caption = (
        f"How the variance of each block's output divides, over {len(sample.batch)} examples: differences between positions, "
        "which are the same in all examples; between examples, the same at all positions; and within, the rest."
    )
    shares = layer_variance_shares(encoder, sample.batch)
    return ReportFigure(plot_variance_shares(shares), "Variance of each block", caption)


def plot_masks(renderer: Renderer, mask: np.ndarray, width: float = WIDTH) -> "Figure":
    """The first example, unmasked and under some of its masks; `mask` (n, M, T) bool."""
    colours = mask[0, :SHOWN, None, :, None] * np.array(MASKED)
    names = [f"mask {i + 1}" for i in range(len(colours))]
    return renderer.render(np.concatenate([np.zeros_like(colours[:1]), colours]), ["input", *names], width=width)


def plot_losses(renderer: Renderer, errors: np.ndarray) -> "Figure":
    """The loss at the masked positions of some masks, and its mean at each position over all masks and examples.

    `errors` (n, M, T), NaN at positions that are not masked."""
    masked = ~np.isnan(errors)
    mean = np.where(masked.any((0, 1)), np.nansum(errors, (0, 1)) / np.maximum(masked.sum((0, 1)), 1), np.nan)
    rows = np.concatenate([errors[0, :SHOWN], mean[None]])
    low, high = np.nanpercentile(rows, (2, 98))
    scale = ColorScale(low, high, "loss")
    names = [f"mask {i + 1}" for i in range(len(rows) - 1)]
    return renderer.render(scale.colours(rows)[:, None], [*names, "mean"], scale)


def plot_components(renderer: Renderer, before: np.ndarray, after: np.ndarray, width: float = WIDTH) -> "Figure":
    """First three principal components of features as RGB; `before`, `after` (n, T, D) of the untrained and trained encoder."""
    colours = [np.pad(principal_components(x), ((0, 0), (0, 0), (0, 1)), constant_values=1.0) for x in (before, after)]
    rows = np.stack([np.zeros_like(colours[0]), *colours])
    return renderer.render(rows if renderer.several else rows[:, :1], ["input", "untrained", "trained"], width=width)


def plot_attention(renderer: Renderer, weights: np.ndarray, blocks: Sequence[int], grid: tuple[int, ...]) -> "Figure":
    """The mean over heads of the attention weights (blocks, H, T, T) of some blocks.

    With a grid of several axes, from its middle position to all others; else the full map, a row for each position."""
    mean, names = weights.mean(1), [f"block {index + 1}" for index in blocks]
    if len(grid) > 1:
        query = int(np.ravel_multi_index([size // 2 for size in grid], grid))
        rows = ColorScale(0, 1, "").colours(_clip_outliers(mean[:, query]))
        rows[..., 3] = 0.8
        query_row = np.zeros((1, len(rows[0]), 4))
        query_row[0, query] = rows[:, query] = QUERY
        return renderer.render(np.concatenate([query_row, rows])[:, None], ["query", *names])
    image, T = mosaic(ColorScale(0, 1, "").colours(_clip_outliers(mean))[None]), mean.shape[1]
    figure, (axes,) = new_figure(WIDTH, WIDTH / len(blocks) + 0.5)
    hide_axes(axes).imshow(image, extent=(0, len(blocks) * 1.06, 1.06, 0), aspect="equal")
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(blocks)) * 1.06 + 0.5, names)
    axes.set_yticks([0, 1], ["1", str(T)])
    axes.set_ylabel("query position")
    axes.set_xlabel("key position")
    axes.tick_params(length=0)
    return figure


def plot_layer_weights(weights: np.ndarray, width: float = WIDTH) -> "Figure":
    """A bar for each block's weight (blocks,), in percent; the dashed line is a uniform weight."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = new_figure(width, 2.6)
    axes.bar(np.arange(1, len(weights) + 1), 100 * weights, color="#3a7ca5")
    axes.axhline(100 / len(weights), color="#8a8a8a", lw=1, ls="--")
    axes.set(xlabel="block", ylabel="weight (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def plot_variance_shares(shares: np.ndarray, width: float = WIDTH) -> "Figure":
    """A stacked bar for each block, of its shares (blocks, 3) of variance: position, input and within."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = new_figure(width, 2.8)
    blocks, bottom = np.arange(1, len(shares) + 1), np.zeros(len(shares))
    for (name, colour), share in zip(SHARES.values(), 100 * shares.T, strict=True):
        axes.bar(blocks, share, bottom=bottom, color=colour, label=name)
        bottom = bottom + share
    axes.set(xlabel="block", ylabel="share of the variance (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False)
    return figure


def principal_components(features: np.ndarray) -> np.ndarray:
    """Features (…, D) to their first three principal components (…, 3), each scaled to 0..1."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    components = flat @ directions[:3].T
    low, high = np.percentile(components, (2, 98), axis=0)
    return np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*features.shape[:-1], 3)


def _clip_outliers(weights: np.ndarray) -> np.ndarray:
    """Each block's weights (blocks, …) divided by their 99th percentile: a few are far larger than the others."""
    top = np.percentile(weights, 99, axis=tuple(range(1, weights.ndim)), keepdims=True)
    return weights / np.maximum(top, 1e-12)
