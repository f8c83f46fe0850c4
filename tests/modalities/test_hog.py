"""Histograms of oriented gradients against a loop over pixels."""

import math

import numpy as np
import pytest
import torch

from data2vec.modalities.hog import cells_per_side, hog, hog_width


def expected_hog(image: np.ndarray, patch: int, cell: int) -> np.ndarray:
    """(T, F) of an image (3, H, W), pixel by pixel."""
    _, H, W = image.shape
    cells = np.zeros((H // patch, W // patch, 3, patch // cell, patch // cell, 9))
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    for c in range(3):
        for y in range(H):
            for x in range(W):
                across = padded[c, y + 1, x + 2] - padded[c, y + 1, x]
                down = padded[c, y + 2, x + 1] - padded[c, y, x + 1]
                angle = math.atan2(down, across) % math.pi
                where = y // patch, x // patch, c, y % patch // cell, x % patch // cell
                cells[where][int(angle / math.pi * 9) % 9] += math.hypot(across, down)
    cells /= np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)
    return cells.reshape(H // patch * (W // patch), -1)


@pytest.mark.parametrize(("patch", "cell"), [(4, 4), (8, 8), (16, 8), (14, 14)])
def test_hog_counts_the_gradients_of_every_cell(patch: int, cell: int) -> None:
    image = np.random.default_rng(0).standard_normal((3, 2 * patch, 2 * patch))
    computed = hog(torch.from_numpy(image)[None], patch)[0]
    assert computed.shape == (4, hog_width(patch)) and cells_per_side(patch) == patch // cell
    np.testing.assert_allclose(computed, expected_hog(image.astype(np.float32), patch, cell), atol=1e-4)


def test_hog_of_a_ramp_is_one_orientation() -> None:
    image = torch.arange(16.0).expand(1, 3, 16, 16)  # brighter to the right
    counts = hog(image, 8).view(4, 3, 9)
    assert torch.equal(counts, torch.tensor([1.0, *[0.0] * 8]).expand(4, 3, 9))


def test_hog_of_an_image_of_one_colour_is_zero() -> None:
    assert hog(torch.ones(1, 3, 16, 16), 8).abs().max() == 0
