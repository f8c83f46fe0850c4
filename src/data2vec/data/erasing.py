"""Random erasing (arXiv:1708.04896): a box of a picture gives way to noise."""

from collections.abc import Sequence
from math import exp, log, sqrt

import numpy as np
import torch
from torch import Tensor

AREA = (0.02, 1 / 3)
"""Smallest and largest share of the picture that a box takes."""
RATIO = (0.3, 1 / 0.3)
"""Widest and narrowest box, as height / width."""


def erase(picture: Tensor, chance: float, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator) -> Tensor:
    """`picture` (3, H, W) uint8, with this `chance` with a box of noise in it.

    Each value of the noise is what would be N(0, 1) after normalisation by `mean` and `std` (of 0..1), as far as bytes go."""
    if not chance or rng.random() >= chance:
        return picture
    top, left, height, width = box(picture.shape[1], picture.shape[2], rng)
    noise = rng.standard_normal((3, height, width), dtype=np.float32)
    noise = (noise * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * 255
    erased = picture.clone()
    erased[:, top : top + height, left : left + width] = torch.from_numpy(noise.round().clip(0, 255).astype(np.uint8))
    return erased


def box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width): area uniform, ratio log-uniform; ten tries to be smaller than the picture, then empty."""
    for _ in range(10):
        area = height * width * rng.uniform(*AREA)
        ratio = exp(rng.uniform(log(RATIO[0]), log(RATIO[1])))
        h, w = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0
