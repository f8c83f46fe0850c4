"""Image augmentation for fine-tuning: RandAugment (arXiv:1909.13719) and random erasing (arXiv:1708.04896), on bytes.

Operations and strengths are those of the released fine-tuning, where RandAugment is called rand-m9-mstd0.5-inc1: fifteen
operations that all get stronger with the magnitude."""

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data2vec.settings import Settings

OPERATIONS = (
    "autocontrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
ERASED_AREA = (0.02, 1 / 3)
"""Smallest and largest fraction of the image that is erased."""
ERASED_RATIO = (0.3, 1 / 0.3)
"""Smallest and largest height / width of the erased box."""


class RandAugment(Settings):
    """RandAugment. Fine-tuning on ImageNet uses 2 operations, without color jitter."""

    ops: Annotated[int, Field(ge=0, le=1000)] = 0
    """Operations drawn for each image, with replacement; each is then applied with probability 0.5. 0 turns RandAugment off."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Mean strength of the operations, on a scale from 0 to 10."""
    magnitude_std: Annotated[float, Field(ge=0)] = 0.5
    """Standard deviation of the strength, which is drawn for each operation and clipped to 0..10 (fairseq: mstd)."""


def rand_augment(image: Tensor, settings: RandAugment, mean: Sequence[float], rng: np.random.Generator) -> Tensor:
    """`image` (3, H, W) uint8 after operations drawn with `rng`; areas that they leave empty get the color `mean` (0..1)."""
    operations = draw_operations(settings, rng)
    if not operations:
        return image
    from PIL import Image

    transformed = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    fill = tuple(min(255, round(255 * channel)) for channel in mean)
    for name, level in operations:
        transformed = apply_operation(transformed, name, level, fill)
    return torch.from_numpy(np.array(transformed)).permute(2, 0, 1)


def draw_operations(settings: RandAugment, rng: np.random.Generator) -> list[tuple[str, float]]:
    """The operations to apply, each with its level: magnitude / 10, negative with probability 0.5."""
    operations = []
    for index in rng.integers(len(OPERATIONS), size=settings.ops):
        applied, negative = rng.random(2) < 0.5
        level = min(max(rng.normal(settings.magnitude, settings.magnitude_std), 0.0), 10.0) / 10
        if applied:
            operations.append((OPERATIONS[index], -level if negative else level))
    return operations


def apply_operation(image: Any, name: str, level: float, fill: tuple[int, ...]) -> Any:
    """An RGB Pillow image after the operation `name` at `level`, -1 to 1; operations without a direction ignore the sign."""
    from PIL import Image, ImageEnhance, ImageOps

    strength = abs(level)
    match name:
        case "autocontrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "invert":
            return ImageOps.invert(image)
        case "posterize":
            dropped = 4 + int(4 * strength)  # of 8 bits; Pillow's posterize refuses to drop all of them
            return image.point([value >> dropped << dropped for value in range(256)] * 3)
        case "solarize":
            return ImageOps.solarize(image, 256 - int(256 * strength))
        case "solarize_add":
            more = int(110 * strength)
            return image.point([min(255, value + more) if value < 128 else value for value in range(256)] * 3)
        case "color" | "contrast" | "brightness" | "sharpness":
            return getattr(ImageEnhance, name.capitalize())(image).enhance(max(0.1, 1 + 0.9 * level))
        case "rotate":
            return image.rotate(30 * level, Image.Resampling.BICUBIC, fillcolor=fill)
    # From the result's x and y to the source's: a·x + b·y + c and d·x + e·y + f.
    matrix = {
        "shear_x": (1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": (1, 0, 0.45 * level * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * level * image.height),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def random_erasing(
    image: Tensor, probability: float, mean: Sequence[float], std: Sequence[float], rng: np.random.Generator
) -> Tensor:
    """`image` (3, H, W) uint8, with this probability with a box of noise in it.

    The noise is N(0, 1) after normalization by `mean` and `std` (of 0..1), as far as bytes can hold it."""
    if not probability or rng.random() >= probability:
        return image
    top, left, height, width = random_erasing_box(image.shape[1], image.shape[2], rng)
    noise = rng.standard_normal((3, height, width), dtype=np.float32)
    noise = (noise * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1))) * 255
    erased = image.clone()
    erased[:, top : top + height, left : left + width] = torch.from_numpy(noise.round().clip(0, 255).astype(np.uint8))
    return erased


def random_erasing_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the box to erase: area uniform, height / width log-uniform. After ten boxes that do not fit
    into the image: an empty one."""
    for _ in range(10):
        area = height * width * rng.uniform(*ERASED_AREA)
        ratio = exp(rng.uniform(log(ERASED_RATIO[0]), log(ERASED_RATIO[1])))
        h, w = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, 0, 0
