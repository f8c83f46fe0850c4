"""Examples of a batch mixed with each other, and their labels with them.

Everything is drawn from a generator that is given, so the same seed mixes a batch in the same way, on any device.

Shapes: B batch, V labels."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data2vec.settings import Settings

Alpha = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class PictureMixing(Settings):
    """Mixup and CutMix, one of them for a whole batch. Defaults: data2vec 1 on ImageNet."""

    mixup: Alpha = 0.8
    """Mixup: a picture keeps a share from Beta(α, α), its partner gives the rest. 0: no mixup."""
    cutmix: Alpha = 1.0
    """CutMix: a box of the partner covers a picture, which keeps a share from Beta(α, α). 0: no CutMix."""
    chance: Share = 1.0
    """Chance that a batch is mixed."""
    switch: Share = 0.5
    """Chance that it is CutMix, where both are on."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of every label that is dealt out evenly among all labels, mixed or not."""


class WaveMixing(Settings):
    """Mixup of waveforms, one share for a whole batch. Defaults: as released for AudioSet; the paper has a chance of 0.7."""

    least: Share = 0.5
    """A clip keeps a share drawn between this and 1, another clip gives the rest (fairseq: source_mixup)."""
    chance: Share = 1.0
    """Chance that a clip is mixed."""


def mix_pictures(x: Tensor, y: Tensor, settings: PictureMixing, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures `x` (B, 3, H, W), bytes or floats, and the shares `y` (B, V) of their labels, each with its partner: the first
    with the last, the second with the last but one, …"""
    kept = 1.0
    if rng.random() < settings.chance and (settings.mixup or settings.cutmix):
        cut = bool(settings.cutmix) and (not settings.mixup or rng.random() < settings.switch)
        alpha = settings.cutmix if cut else settings.mixup
        kept = float(rng.beta(alpha, alpha))
        if cut:
            x, kept = _cut(x, kept, rng)
        else:
            mixed = torch.lerp(x.flip(0).float(), x.float(), kept)
            x = mixed.to(x.dtype) if x.is_floating_point() else mixed.round_().to(x.dtype)
    y = kept * y + (1 - kept) * y.flip(0)
    return x, y * (1 - settings.smoothing) + settings.smoothing / y.shape[1]


def _cut(x: Tensor, kept: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """`x` with a box of the partner, about a random centre and cut off at the borders; and the share that is really kept."""
    height, width = x.shape[-2:]
    row, column = int(rng.integers(height)), int(rng.integers(width))
    high, wide = int(height * (1 - kept) ** 0.5) // 2, int(width * (1 - kept) ** 0.5) // 2
    top, bottom = max(0, row - high), min(height, row + high)
    left, right = max(0, column - wide), min(width, column + wide)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[..., top:bottom, left:right].flip(0)
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def mix_waves(x: Tensor, y: Tensor, settings: WaveMixing, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Waveforms `x` (B, N) of mean 0, and their labels `y` (B, V), each with those of a random partner; as loud as before."""
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    share = np.where(rng.random((len(x), 1)) < settings.chance, rng.uniform(settings.least, 1), 1.0)
    kept = torch.from_numpy(share).to(x.device, x.dtype)
    mixed = (kept * x + (1 - kept) * x[partner]) / (kept**2 + (1 - kept) ** 2).sqrt()
    return mixed, kept * y + (1 - kept) * y[partner]
