"""Is the run healthy? Spread and rank of what flows through a step, and when to call it collapsed.

The loss cannot tell: when the teacher gives the same target everywhere, predicting it is easy. The local features are
watched too, since a dead front-end can hide behind healthy-looking targets.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from data2vec.settings import Settings

ROWS = 256
"""The effective rank is taken over at most so many positions, spread evenly: cheap, and it compares between steps."""


class HealthSettings(Settings):
    """Thresholds of the released code; 0 turns a check off."""

    min_target_std: Annotated[float, Field(ge=0)] = 0.1
    """Collapsed when the targets' standard deviation falls below this (fairseq: min_target_var)."""
    min_prediction_std: Annotated[float, Field(ge=0)] = 0.01
    """Collapsed when the predictions' standard deviation falls below this (fairseq: min_pred_var)."""
    grace_steps: Annotated[int, Field(ge=0)] = 5000
    """Nothing is called collapsed before this step."""


@torch.no_grad()
def representation_stats(
    features: Tensor, context: Tensor, targets: Tensor, target: Tensor, prediction: Tensor
) -> dict[str, Tensor]:
    """Standard deviation and effective rank of local features and student's output (B, T, D), and of `target` and `prediction`
    at the masked positions (N, D); and the share of the variance of all `targets` (B, T, D) that lies between inputs."""
    stages = {"features": features.flatten(0, 1), "student": context.flatten(0, 1), "target": target, "prediction": prediction}
    stats = {"target_content": between_input_variance(targets)}
    for name, x in stages.items():
        stats[f"{name}_std"] = mean_std(x.float())
        stats[f"{name}_rank"] = effective_rank(x.float())
    return stats


def between_input_variance(x: Tensor) -> Tensor:
    """Share of the variance of (B, T, D) that lies between inputs at the same position: 0 when it depends on position alone.

    1 for a single input, for which it is undefined."""
    if len(x) == 1:
        return x.new_ones(())
    return (x.var(0).mean() / x.flatten(0, 1).var(0).mean().clamp(min=1e-12)).clamp(max=1)


def mean_std(x: Tensor) -> Tensor:
    """Mean over the dimensions of sqrt(variance over the positions + 1e-6), of (N, D) (fairseq: target_var)."""
    return (x.var(0) + 1e-6).sqrt().mean()


def effective_rank(x: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values of the centred (N, D) (Roy and Vetterli, 2007).

    1 when all vectors lie on a line; at most min(N, D, ROWS)."""
    x = x[:: max(1, -(-len(x) // ROWS))]
    x = (x - x.mean(0)).double()
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    squares = torch.linalg.eigvalsh(products.nan_to_num(0, 0, 0))  # which would raise where the loss will tell it better
    singular = squares.clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum()).float()


def collapsed(line: Mapping[str, Any], step: int, settings: HealthSettings) -> str | None:
    """What is to be seen at a step that ends the run, or None while it may go on."""
    if not finite(line):
        scale = f" (the loss scale is {line['loss_scale']:g})" if "loss_scale" in line else ""
        return f"the loss, or the norm of the gradients, is no number any more{scale}"
    if step < settings.grace_steps or "target_std" not in line:
        return None
    if line["target_std"] < settings.min_target_std:
        return (
            f"the targets hardly differ between positions (standard deviation {line['target_std']:.4f}, at least "
            f"{settings.min_target_std:g} expected)"
        )
    if line["prediction_std"] < settings.min_prediction_std:
        return (
            f"the student predicts nearly the same everywhere (standard deviation {line['prediction_std']:.4f}, at least "
            f"{settings.min_prediction_std:g} expected)"
        )
    return None


def finite(line: Mapping[str, Any]) -> bool:
    """Whether loss and gradients of a step are numbers, as far as they are told; what is none is null in a file of metrics."""
    values = [line.get(name, 0.0) for name in ("loss", "grad_norm")]
    return all(value is not None and math.isfinite(value) for value in values)
