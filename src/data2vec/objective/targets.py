"""Training targets: the mean of the teacher's top K layers, normalised (paper, section 3.3, "Targets").

B batch, T positions, D width, K averaged layers. Always in float32, whatever the precision of the model.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from data2vec.nn.transformer import BlockOutput, BlockState
from data2vec.settings import Settings

NormName = Literal["instance", "layer", "batch", "group", "instance-over-batch", "group-over-batch"]
NORMS: dict[NormName, Callable[[Tensor], Tensor]] = {
    "instance": lambda y: F.instance_norm(y.transpose(1, 2)).transpose(1, 2),  # each channel, over the sequence
    "layer": lambda y: F.layer_norm(y, y.shape[-1:]),  # each position, over the channels
    "batch": lambda y: F.batch_norm(y.transpose(1, 2), None, None, training=True).transpose(1, 2),
    "group": lambda y: F.layer_norm(y, y.shape[-2:]),  # each sequence, over positions and channels
    # What the released speech code computes, because it swaps the batch and time axes (docs/differences.md):
    "instance-over-batch": lambda y: NORMS["instance"](y.transpose(0, 1)).transpose(0, 1),
    "group-over-batch": lambda y: NORMS["group"](y.transpose(0, 1)).transpose(0, 1),
}
"""Normalisations of (B, T, D) without parameters, epsilon 1e-5. To add one, add it here and its name to `NormName`."""

_DIMS: dict[NormName, tuple[int, ...]] = {
    "instance": (1,),
    "layer": (2,),
    "batch": (0, 1),
    "group": (1, 2),
    "instance-over-batch": (0,),
    "group-over-batch": (0, 2),
}
"""The axes of (B, T, D) over which each of them normalises."""

Norms = Annotated[tuple[NormName, ...], Field(strict=False)]


class TargetSettings(Settings):
    """How the outputs of the teacher's blocks become targets."""

    source: BlockState = "ffn"
    """Which state of each block: the output of its feed-forward part or of its self-attention, before the residual addition;
    the feed-forward output with its residual, before the last norm of a post-norm block; or the block's output (vision)."""
    top_k: Annotated[int, Field(gt=0)] = 8
    """K: how many blocks are averaged, counted from the last (fairseq: average_top_k_layers)."""
    per_layer_norms: Norms = ("instance",)
    """Normalisations of each layer before averaging, in this order. Instance norm keeps speech from collapsing."""
    final_norms: Norms = ()
    """Normalisations of the average, in this order; with a head for each layer, of each layer."""
    norms_skip_padding: bool = False
    """Normalise over the positions that are not padding. Without it, padding counts like any other position, as in the released
    code; batches of the shipped speech, image and text recipes have none."""
    heads: Literal["average", "layer"] = "average"
    """What is predicted at a position: the average of the layers; or each layer, from its own outputs of the last linear layer,
    with the mean of their losses (paper, section 3.3: about as good, at a higher cost)."""

    @property
    def predictions(self) -> int:
        """The number of vectors that are predicted at a position."""
        return self.top_k if self.heads == "layer" else 1


def average_top_k(
    outputs: Iterable[BlockOutput], num_layers: int, settings: TargetSettings, padding: Tensor | None = None
) -> Tensor:
    """The targets (B, T, D) from the outputs of the teacher's `num_layers` blocks, with the state `settings.source`.

    `padding` (B, T) or None is left out of the norms if `settings.norms_skip_padding`.
    With a head for each layer, the targets (B, T, K·D) of the layers side by side. `outputs` may be a generator: layers are
    added up as they come, so that only one is in memory."""
    states = (output.state.float() for output in outputs if output.layer >= num_layers - settings.top_k)
    skipped = padding if settings.norms_skip_padding else None
    layers = (normalise(state, settings.per_layer_norms, skipped) for state in states)
    if settings.heads == "layer":
        return torch.cat([normalise(layer, settings.final_norms, skipped) for layer in layers], dim=-1)
    return normalise(functools.reduce(torch.add, layers) / settings.top_k, settings.final_norms, skipped)


def normalise(y: Tensor, norms: tuple[NormName, ...], padding: Tensor | None = None) -> Tensor:
    """`y` (B, T, D) after these normalisations, in this order, over the positions that are not `padding` (B, T)."""
    for norm in norms:
        y = NORMS[norm](y) if padding is None else _normalise_valid(y, _DIMS[norm], padding)
    return y


def _normalise_valid(y: Tensor, dims: tuple[int, ...], padding: Tensor) -> Tensor:
    valid = (~padding)[..., None].to(y.dtype).expand_as(y)
    count = valid.sum(dims, keepdim=True).clamp(min=1)
    centred = y - (y * valid).sum(dims, keepdim=True) / count
    variance = (centred.square() * valid).sum(dims, keepdim=True) / count
    return centred * (variance + 1e-5).rsqrt()
