"""Statistics of the representations of a step, which show a collapse that the loss does not.

When the teacher gives the same target everywhere, predicting it is easy and the loss is low. The local features are
included, since a dead local encoder can hide behind targets that look healthy. `data2vec.health` judges these statistics.
"""

import torch
from torch import Tensor

RANK_POSITIONS = 256
"""The effective rank is computed over at most this many positions, evenly spaced: cheap, and comparable between steps."""


@torch.no_grad()
def representation_stats(
    features: Tensor, context: Tensor, targets: Tensor, target: Tensor, prediction: Tensor
) -> dict[str, Tensor]:
    """Standard deviation and effective rank of local features and student's output (B, T, D), and of `target` and `prediction`
    at the masked positions (N, D); and the share of the variance of all `targets` (B, T, D) that lies between inputs."""
    stages = {
        "local_encoder": features.flatten(0, 1),
        "student": context.flatten(0, 1),
        "target": target,
        "prediction": prediction,
    }
    stats = {"target_between_input_variance": between_input_variance(targets)}
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

    1 when all vectors lie on a line; at most min(N, D, RANK_POSITIONS)."""
    x = x[:: max(1, -(-len(x) // RANK_POSITIONS))]
    x = (x - x.mean(0)).double()
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    squares = torch.linalg.eigvalsh(products.nan_to_num(0, 0, 0))  # raises for NaN, which the loss shows anyway
    singular = squares.clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-12)
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum()).float()
