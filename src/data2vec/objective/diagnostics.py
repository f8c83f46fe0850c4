"""Statistics of the representations of a step, which show a collapse that the loss does not, and what is learned.

When the teacher gives the same target everywhere, or the same at each position, predicting it is easy and the loss is low.
The local features are included, since a dead local encoder can hide behind targets that look healthy. `data2vec.health`
judges these statistics.

B batch, M masked views of a sample, T positions, D width, N masked positions of the whole batch.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from data2vec.batch import MaskedBatch

RANK_POSITIONS = 256
"""The effective rank is computed over at most this many positions, evenly spaced: cheap, and comparable between steps."""


@torch.no_grad()
def representation_stats(
    batch: MaskedBatch,
    features: Tensor,
    context: Tensor,
    prediction: Tensor | None = None,
    target: Tensor | None = None,
    targets: Tensor | None = None,
    padding: Tensor | None = None,
) -> dict[str, Tensor]:
    """Standard deviation and effective rank of each stage of a step, and what the prediction explains of the target.

    `features` (B, T, D), the local features; `context` (…, D), the student's output; `prediction` and `target` (N, D), in the
    order of `batch.predicted_indices`; `targets` (B, T, D), at all positions, with `padding` (B, T). Objectives without targets
    in a vector space leave those out, and what is computed from them is missing."""
    stages = {"local_encoder": features.flatten(0, -2), "student": context.flatten(0, -2)}
    stats: dict[str, Tensor] = {}
    if targets is not None:
        shares = variance_shares(targets, padding)
        stats |= {f"target_{name}_variance": share for name, share in shares._asdict().items()}
    if target is not None:
        stages["target"] = target
    if prediction is not None:
        stages["prediction"] = prediction
    if prediction is not None and target is not None:
        stats |= {"r2": r2(prediction, target), "content_r2": content_r2(prediction, target, batch)}
    for name, x in stages.items():
        stats[f"{name}_std"] = mean_std(x.float())
        stats[f"{name}_rank"] = effective_rank(x.float())
    return stats


class LossTerm(NamedTuple):
    """A term of a loss that is the sum of several."""

    mean: Tensor
    """Its mean over what it is the error of, such as positions or views, without its weight."""
    part: Tensor
    """What it adds to the summed loss."""


def sum_terms(terms: Mapping[str, LossTerm]) -> Tensor:
    """The loss, 0-d."""
    first, *others = (term.part for term in terms.values())
    return sum(others, first)


def term_stats(terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
    """`…_loss`, the mean of each term, and `…_share`, its share of the loss; nothing where there is a single term."""
    if len(terms) < 2:
        return {}
    total = sum_terms(terms).detach().float().clamp(min=1e-12)
    stats: dict[str, Tensor] = {}
    for name, term in terms.items():
        stats |= {f"{name}_loss": term.mean.detach().float(), f"{name}_share": term.part.detach().float() / total}
    return stats


class VarianceShares(NamedTuple):
    """What the variance of (B, T, D) consists of, as shares that sum to 1."""

    position: Tensor
    """Differences between the means at each position, which are the same for all inputs."""
    input: Tensor
    """Differences between the means of each input, which are the same at all positions."""
    within: Tensor
    """The rest: what is specific to one position of one input."""


def variance_shares(x: Tensor, padding: Tensor | None = None) -> VarianceShares:
    """Two-way analysis of variance of `x` (B, T, D) over inputs and positions, summed over D; `padding` (B, T) is left out.

    The components of x = mean + position + input + rest are estimated from the mean squares, so that noise does not count as a
    difference between means of few inputs. With padding the position means are subtracted first, and the degrees of freedom
    are those of the average counts. A single input has no positions in common with others: all is `within`."""
    x = x.float()
    B, T = x.shape[:2]
    if B == 1:
        return VarianceShares(x.new_zeros(()), x.new_zeros(()), x.new_ones(()))
    weight = x.new_ones(B, T, 1) if padding is None else (~padding)[..., None].float()
    n = weight.sum()
    rows, columns = weight.sum(1, keepdim=True), weight.sum(0, keepdim=True)  # positions of an input, inputs of a position
    x = (x - (x * weight).sum((0, 1)) / n) * weight
    by_position = x.sum(0, keepdim=True) / columns.clamp(min=1)  # (1, T, D)
    x = (x - by_position) * weight
    by_input = x.sum(1, keepdim=True) / rows.clamp(min=1)  # (B, 1, D)
    x = (x - by_input) * weight
    num_inputs, num_positions = (rows > 0).sum(), (columns > 0).sum()
    within = x.square().sum() / (n - num_inputs - num_positions + 1).clamp(min=1)
    position = (columns * by_position.square()).sum() / (num_positions - 1).clamp(min=1) - within
    between = (rows * by_input.square()).sum() / (num_inputs - 1).clamp(min=1) - within
    parts = torch.stack([position * num_positions / n, between * num_inputs / n, within]).clamp(min=0)
    position_share, input_share, _ = (parts / parts.sum().clamp(min=1e-12)).unbind()
    return VarianceShares(position_share, input_share, 1 - position_share - input_share)


def r2(prediction: Tensor, target: Tensor) -> Tensor:
    """R² of `prediction` for `target`, both (N, D): 1 for a perfect one, 0 for the mean of the targets, negative if worse."""
    target = target.float()
    return 1 - (prediction.float() - target).square().sum() / (target - target.mean(0)).square().sum().clamp(min=1e-12)


def content_r2(prediction: Tensor, target: Tensor, batch: MaskedBatch) -> Tensor:
    """R² of `prediction` for `target`, both (N, D), when the mean at each position is subtracted from both.

    0 when the prediction depends on the position alone, however good it is. Positions at which one input only is predicted
    are left out; NaN when there is no other."""
    rows, T = batch.mask.shape
    B, masked = len(batch), batch.predicted_indices
    positions, inputs = masked % T, masked // (T * (rows // B))
    count = target.new_zeros(B, T, dtype=torch.float32)
    count.view(-1).index_add_(0, inputs * T + positions, count.new_ones(len(masked)))
    shared = ((count > 0).sum(0) > 1).float()  # (T,)
    per_position = count.sum(0).clamp(min=1)

    def centred(x: Tensor) -> Tensor:
        sums = count.new_zeros(T, x.shape[1]).index_add_(0, positions, x.float())
        return x.float() - (sums / per_position[:, None]).index_select(0, positions)

    weight = shared.index_select(0, positions)[:, None]
    y = centred(target)
    error, total = ((centred(prediction) - y).square() * weight).sum(), (y.square() * weight).sum()
    return torch.where(shared.any(), 1 - error / total.clamp(min=1e-12), torch.nan)


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
