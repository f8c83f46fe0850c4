"""Mixup and CutMix: the examples of a batch mixed with each other, and their labels with them.

All randomness comes from the generator in the arguments, so a seed mixes a batch in the same way on any device.

Shapes: B batch, V labels."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data2vec.settings import Settings

Alpha = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class ImageMixing(Settings):
    """Mixup or CutMix, one of them per batch. Defaults: data2vec 1 on ImageNet."""

    mixup: Alpha = 0.8
    """α of mixup: an image gets weight λ ~ Beta(α, α), its partner 1 - λ. 0 turns mixup off (timm: mixup)."""
    cutmix: Alpha = 1.0
    """α of CutMix: a box of the partner replaces 1 - λ of an image, λ ~ Beta(α, α). 0 turns CutMix off (timm: cutmix)."""
    prob: Probability = 1.0
    """Probability that a batch is mixed (timm: mixup_prob)."""
    switch_prob: Probability = 0.5
    """Probability of CutMix instead of mixup, where both are on (timm: mixup_switch_prob)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Weight of the uniform distribution in every label, mixed or not (timm: smoothing)."""


class WaveformMixing(Settings):
    """Mixup of waveforms. Defaults: those released for AudioSet; the paper has `prob` 0.7."""

    min_weight: Probability = 0.5
    """A clip gets a weight λ drawn uniformly from this value to 1, another clip 1 - λ (fairseq: source_mixup)."""
    prob: Probability = 1.0
    """Probability that a clip is mixed (fairseq: mixup_prob)."""


def mix_images(x: Tensor, y: Tensor, settings: ImageMixing, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix images `x` (B, 3, H, W), bytes or floats, and their label distributions `y` (B, V), each with its partner: the first
    with the last, the second with the second to last, …"""
    weight = 1.0
    if rng.random() < settings.prob and (settings.mixup or settings.cutmix):
        use_cutmix = bool(settings.cutmix) and (not settings.mixup or rng.random() < settings.switch_prob)
        alpha = settings.cutmix if use_cutmix else settings.mixup
        weight = float(rng.beta(alpha, alpha))
        if use_cutmix:
            x, weight = _cutmix(x, weight, rng)
        else:
            mixed = torch.lerp(x.flip(0).float(), x.float(), weight)
            x = mixed.to(x.dtype) if x.is_floating_point() else mixed.round_().to(x.dtype)
    y = weight * y + (1 - weight) * y.flip(0)
    return x, y * (1 - settings.label_smoothing) + settings.label_smoothing / y.shape[1]


def _cutmix(x: Tensor, weight: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """`x` with a box of the partner around a random center, clipped at the borders; and the fraction of the image that is left
    after clipping."""
    height, width = x.shape[-2:]
    row, column = int(rng.integers(height)), int(rng.integers(width))
    high, wide = int(height * (1 - weight) ** 0.5) // 2, int(width * (1 - weight) ** 0.5) // 2
    top, bottom = max(0, row - high), min(height, row + high)
    left, right = max(0, column - wide), min(width, column + wide)
    mixed = x.clone()
    mixed[..., top:bottom, left:right] = x[..., top:bottom, left:right].flip(0)
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def mix_waveforms(x: Tensor, y: Tensor, settings: WaveformMixing, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix zero-mean waveforms `x` (B, N) and their labels `y` (B, V) with those of a random partner, keeping the variance."""
    partner = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    weights = np.where(rng.random((len(x), 1)) < settings.prob, rng.uniform(settings.min_weight, 1), 1.0)
    weight = torch.from_numpy(weights).to(x.device, x.dtype)
    mixed = (weight * x + (1 - weight) * x[partner]) / (weight**2 + (1 - weight) ** 2).sqrt()
    return mixed, weight * y + (1 - weight) * y[partner]
