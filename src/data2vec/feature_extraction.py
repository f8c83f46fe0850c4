"""Inputs to features, computed in batches of like length, in which no input leaves a trace in another.

Shapes: B inputs, T positions of the longest, L layers asked for, D width.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.nn import heads
from data2vec.nn.encoder import Encoder

Layers = Literal["last", "all", "mean"] | int | Sequence[float]
"""What the encoder puts out, after its final norm where it has one (last); the output of every block (all), or the mean over
them; that of one block, counted from 1, or from the end when negative; or a sum over all blocks with these weights."""
Mix = list[list[float]] | None
"""(L, blocks) weights of the blocks' outputs; None is what the encoder puts out."""
BATCH = {"cpu": 1024, "cuda": 8192}
"""Positions that are computed at a time, padding among them: more would not stay in the processor's caches, or overflow a
small device."""
PADDING = 1 / 16
"""The share of those that may be padding. One more batch costs about as much: all weights come from memory again."""


@dataclass(frozen=True)
class FeatureBatch:
    """What an encoder makes of some inputs."""

    hidden: Tensor
    """(L, B, T, D), zero beyond an input's own length; pooled, (L, B, D)."""
    lengths: Tensor
    """(B,) positions of each input."""
    seconds: Tensor | None
    """(T,) where each position starts in time; None where there is no time, as in images and text."""


def mix(layers: Layers, depth: int) -> Mix:
    """The weights that `layers` means in an encoder of `depth` blocks. Raises UserError for a layer that is not there."""
    given: Any = layers
    if layers == "last":
        return None
    if layers == "all":
        return torch.eye(depth).tolist()
    if layers == "mean":
        return [[1 / depth] * depth]
    try:
        if hasattr(given, "__len__"):
            weights = [float(weight) for weight in given]
            if len(weights) == depth and any(weights):
                return [weights]
        elif 1 <= abs(number := operator.index(given)) <= depth:
            return torch.eye(depth)[[number - (number > 0)]].tolist()
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"layers: {layers!r} is not there; this model has blocks 1 to {depth}: a number, {depth} weights that are not all "
        "zero, 'last', 'all' or 'mean'"
    )


def device(name: str) -> torch.device:
    """auto (a GPU where there is one), cpu, cuda or cuda:N. Raises UserError when it is not there."""
    found = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else None
    try:
        found = found or torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is no device: auto, cpu, cuda or cuda:N") from None
    if found.type not in BATCH or (found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"device: {name!r} is not there: this machine has cpu and {torch.cuda.device_count()} of cuda")
    return found


def most_on(device: torch.device, given: int | None = None) -> int:
    """How many positions to compute at a time: so many, or what is fast. Raises UserError for none."""
    if given is not None and given < 1:
        raise UserError(f"batch: {given} is not a number of positions to compute at a time; it must be 1 or more")
    return given or BATCH[device.type if device.type in BATCH else "cuda"]


def positions(modality: Modality, item: Any) -> int:
    """How many positions an input will have."""
    return prod(modality.grid(modality.collate([item])))


def batches(modality: Modality, items: Sequence[Any], most: int) -> Iterator[tuple[list[int], Batch]]:
    """The places of inputs that are computed together, and their batch: of like length, at most `most` positions with
    padding, of which little is padding; or a single input."""
    lengths = [positions(modality, item) for item in items]
    group: list[int] = []
    padding = 0
    for place in sorted(range(len(items)), key=lambda place: -lengths[place]):
        missing = lengths[group[0]] - lengths[place] if group else 0
        if group and not (
            (len(group) + 1) * lengths[group[0]] <= most
            and padding + missing <= PADDING * most
            and (modality.mixes_lengths or _shape(items[place]) == _shape(items[group[0]]))
        ):
            yield group, modality.collate([items[each] for each in group])
            group, padding, missing = [], 0, 0
        group.append(place)
        padding += missing
    if group:
        yield group, modality.collate([items[each] for each in group])


def _shape(item: Any) -> Any:
    return getattr(item, "shape", None)  # an own modality's may have none


def run(encoder: Encoder, batch: Batch, layers: Mix) -> tuple[Tensor, Tensor | None]:
    """The features (L, B, T, D) of a batch, and its padding (B, T) or None. Blocks above those asked for are left out."""
    if layers is None:
        last, padding = encoder(batch)
        return last[None], padding
    top = max(index for weights in layers for index, weight in enumerate(weights) if weight)
    sums: list[Tensor | None] = [None] * len(layers)

    def visit(index: int, ffn: Tensor, block: Tensor) -> bool:
        for number, weights in enumerate(layers):
            if weight := weights[index]:
                before, part = sums[number], block if weight == 1 else weight * block
                sums[number] = part if before is None else before + part
        return index == top

    _, padding = encoder(batch, visit)
    return torch.stack([each for each in sums if each is not None]), padding


@torch.inference_mode()
def vectors(
    encoder: Encoder, modality: Modality, items: Sequence[Any], layers: Mix, pool: bool, most: int | None = None
) -> list[tuple[Tensor, int]]:
    """The features of each input, (L, T, D) of its own length or pooled (L, D), and its length, in the order given.

    The encoder is one whose padding stays where it is (`data2vec.nn.encoder.undisturbed`)."""
    device = next(encoder.parameters()).device
    most = most_on(device, most)
    found: list[Any] = [None] * len(items)
    for places, batch in batches(modality, items, most):
        x, padding = run(encoder, batch.to(device), layers)
        lengths = [x.shape[2]] * len(places) if padding is None else (~padding).sum(1).tolist()
        pooled = heads.mean(x, padding) if pool else None
        for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
            found[place] = (x[:, row, :length] if pooled is None else pooled[:, row], length)
    return found
