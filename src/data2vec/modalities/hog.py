"""Histograms of oriented gradients of image patches (Dalal and Triggs, 2005; as targets: MaskFeat, Wei et al., 2021)."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 9
"""Orientations, from 0 to π: a gradient and its opposite are the same."""
CELL = 8
"""Side of a cell in pixels, in patches that are a multiple of it."""


def cells_per_side(patch: int) -> int:
    """The cells along one side of a patch: cells of at least 8 pixels, or one."""
    return max(n for n in range(1, max(1, patch // CELL) + 1) if patch % n == 0)


def hog_width(patch: int) -> int:
    """The number of features of a patch: cells, RGB channels and orientations."""
    return 3 * BINS * cells_per_side(patch) ** 2


def hog(image: Tensor, patch: int) -> Tensor:
    """(B, T, F): for each cell of a patch and each channel, the gradient magnitudes of its pixels summed by orientation and
    ℓ2-normalised; of `image` (B, 3, H, W). Channel by channel, row by row of cells.

    Gradients are central differences; at the border the image is mirrored, so that they vanish across it."""
    image = F.pad(image.float(), (1, 1, 1, 1), mode="reflect")
    across = image[:, :, 1:-1, 2:] - image[:, :, 1:-1, :-2]
    down = image[:, :, 2:, 1:-1] - image[:, :, :-2, 1:-1]
    magnitude = torch.hypot(across, down)
    orientation = torch.atan2(down, across) / math.pi * BINS
    bins = orientation.floor().long() % BINS
    B, C, H, W = magnitude.shape
    votes = magnitude.new_zeros(B, C, BINS, H, W).scatter_(2, bins[:, :, None], magnitude[:, :, None])
    n = cells_per_side(patch)
    cells = F.avg_pool2d(votes.flatten(0, 1), patch // n).view(B, C, BINS, H // patch, n, W // patch, n)
    normed = F.normalize(cells, dim=2)
    return normed.permute(0, 3, 5, 1, 4, 6, 2).flatten(3).flatten(1, 2)
