"""Pictures of what a model is shown and what it makes of it, each a figure; the demo and the page of a run share them.

n examples, M masks, T positions, D width, H heads.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data2vec.report import style as figure
from data2vec.report.renderers import Canvas, Scale, mosaic

SHOWN = 3
"""Masks, or blocks, side by side."""
HIDDEN = (0.62, 0.62, 0.62, 1.0)
"""Over what the student does not see."""
QUERY = (0.82, 0.29, 0.36, 1.0)
"""Over the position whose attention is shown."""


def masks(canvas: Canvas, hidden: np.ndarray, width: float = figure.WIDTH) -> Any:
    """The first example as the teacher and as the student sees it, under some of its masks; `hidden` (n, M, T) bool."""
    shown = hidden[0, :SHOWN, None, :, None] * np.array(HIDDEN)
    names = [f"mask {i + 1}" for i in range(len(shown))]
    return canvas.paint(np.concatenate([np.zeros_like(shown[:1]), shown]), ["input", *names], width=width)


def losses(canvas: Canvas, errors: np.ndarray) -> Any:
    """The loss at the positions that each of some masks hides, and the mean at each position over all masks and examples.

    `errors` (n, M, T), NaN where a position was not hidden."""
    hidden = ~np.isnan(errors)
    mean = np.where(hidden.any((0, 1)), np.nansum(errors, (0, 1)) / np.maximum(hidden.sum((0, 1)), 1), np.nan)
    rows = np.concatenate([errors[0, :SHOWN], mean[None]])
    low, high = np.nanpercentile(rows, (2, 98))
    scale = Scale(low, high, "loss")
    names = [f"mask {i + 1}" for i in range(len(rows) - 1)]
    return canvas.paint(scale.colours(rows)[:, None], [*names, "mean"], scale)


def components(canvas: Canvas, before: np.ndarray, after: np.ndarray, width: float = figure.WIDTH) -> Any:
    """First three principal components of the features of all examples as red, green and blue; features (n, T, D) of the
    untrained and of the trained encoder."""
    found = [np.pad(principal(x), ((0, 0), (0, 0), (0, 1)), constant_values=1.0) for x in (before, after)]
    rows = np.stack([np.zeros_like(found[0]), *found])
    return canvas.paint(rows if canvas.several else rows[:, :1], ["input", "untrained", "trained"], width=width)


def attention(canvas: Canvas, weights: np.ndarray, blocks: Sequence[int], grid: tuple[int, ...]) -> Any:
    """Mean over the heads of the attention of some blocks, `weights` (blocks, H, T, T).

    In a grid of two axes that of the position in the middle to all others; else all of it, a row for each position."""
    mean, names = weights.mean(1), [f"block {index + 1}" for index in blocks]
    if len(grid) == 2:
        query = grid[0] // 2 * grid[1] + grid[1] // 2
        rows = Scale(0, 1, "").colours(_stretched(mean[:, query]))
        rows[..., 3] = 0.8
        asks = np.zeros((1, len(rows[0]), 4))
        asks[0, query] = rows[:, query] = QUERY
        return canvas.paint(np.concatenate([asks, rows])[:, None], ["query", *names])
    panels = Scale(0, 1, "").colours(_stretched(mean))[None]
    whole, T = mosaic(panels), mean.shape[1]
    drawn, axes = figure.new(1, 1, figure.WIDTH, figure.WIDTH / len(blocks) + 0.5)
    figure.bare(axes).imshow(whole, extent=(0, len(blocks) * 1.06, 1.06, 0), aspect="equal")
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(len(blocks)) * 1.06 + 0.5, names)
    axes.set_yticks([0, 1], ["1", str(T)])
    axes.set_ylabel("position that asks")
    axes.set_xlabel("position that answers")
    axes.tick_params(length=0)
    return drawn


def bars(shares: np.ndarray, width: float = figure.WIDTH) -> Any:
    """A bar for each block (blocks,), in percent."""
    drawn, axes = figure.new(1, 1, width, 2.6)
    axes.bar(np.arange(1, len(shares) + 1), 100 * shares, color="#3a7ca5")
    axes.axhline(100 / len(shares), color="#8a8a8a", lw=1, ls="--")
    axes.set(xlabel="block", ylabel="percent of the sum")
    axes.xaxis.get_major_locator().set_params(integer=True)
    return drawn


def principal(features: np.ndarray) -> np.ndarray:
    """Features (…, D) to their first three principal components (…, 3), each stretched to 0..1."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    found = flat @ directions[:3].T
    low, high = np.percentile(found, (2, 98), axis=0)
    return np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*features.shape[:-1], 3)


def _stretched(weights: np.ndarray) -> np.ndarray:
    """Each block's weights (blocks, …) divided by their 99th percentile, since a few are far greater than the others."""
    top = np.percentile(weights, 99, axis=tuple(range(1, weights.ndim)), keepdims=True)
    return weights / np.maximum(top, 1e-12)
