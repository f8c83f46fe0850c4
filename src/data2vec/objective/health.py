"""Is the run healthy? Spread and rank of what flows through a step, and when to call it collapsed.

The loss cannot tell: when the teacher gives the same target everywhere, predicting it is easy. The local features are
watched too, since a dead front-end can hide behind healthy-looking targets.
"""

from collections.abc import Mapping
from typing import Annotated

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
def measure(features: Tensor, context: Tensor, target: Tensor, prediction: Tensor) -> dict[str, Tensor]:
    """Standard deviation and effective rank of local features, student's output (B, T, D), targets, predictions (N, D)."""
    stages = {"features": features.flatten(0, 1), "student": context.flatten(0, 1), "target": target, "prediction": prediction}
    stats = {}
    for name, x in stages.items():
        stats[f"{name}_std"] = spread(x.float())
        stats[f"{name}_rank"] = effective_rank(x.float())
    return stats


def spread(x: Tensor) -> Tensor:
    """Mean over the dimensions of sqrt(variance over the positions + 1e-6), of (N, D): the released code's target_var."""
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


def collapsed(stats: Mapping[str, float], step: int, settings: HealthSettings) -> str | None:
    """The plain reason to stop, or None while the run may go on."""
    if step < settings.grace_steps:
        return None
    if stats["target_std"] < settings.min_target_std:
        return (
            f"collapsed at step {step}: the targets hardly differ between positions (standard deviation "
            f"{stats['target_std']:.4f}, at least {settings.min_target_std} expected). Likely causes: learning rate too "
            "high or warm-up too short (train.lr, train.schedule), a teacher that follows too fast (objective.teacher.decay), "
            "or targets without instance normalisation (objective.target.layer_norms)"
        )
    if stats["prediction_std"] < settings.min_prediction_std:
        return (
            f"collapsed at step {step}: the student predicts nearly the same everywhere (standard deviation "
            f"{stats['prediction_std']:.4f}, at least {settings.min_prediction_std} expected). Likely causes: learning rate "
            "too high (train.lr), or so low that nothing is learnt by now"
        )
    return None
