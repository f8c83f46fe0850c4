"""RandAugment (arXiv:1909.13719) on bytes, with the operations and strengths of the released fine-tuning.

There it goes by the name rand-m9-mstd0.5-inc1: fifteen operations that all grow stronger with the magnitude."""

from collections.abc import Sequence
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


class RandAugment(Settings):
    """Random operations on a picture. Fine-tuning on ImageNet takes 2, and no colour jitter beside them."""

    ops: Annotated[int, Field(ge=0)] = 0
    """Operations drawn for each picture, any of them perhaps twice; each is then done or left with the same chance. 0: none."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """How strong they are on average, of 10."""
    spread: Annotated[float, Field(ge=0)] = 0.5
    """Standard deviation of the magnitude, which is drawn for each operation and kept within 0 and 10."""


def rand_augment(picture: Tensor, settings: RandAugment, mean: Sequence[float], rng: np.random.Generator) -> Tensor:
    """`picture` (3, H, W) uint8 after the operations drawn from `rng`; what they leave empty has the colour `mean` (0..1)."""
    plan = draw(settings, rng)
    if not plan:
        return picture
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    fill = tuple(min(255, round(255 * channel)) for channel in mean)
    for name, level in plan:
        image = operate(image, name, level, fill)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def draw(settings: RandAugment, rng: np.random.Generator) -> list[tuple[str, float]]:
    """The operations to be done, each with its level: the magnitude as a share of the greatest, negative half of the time."""
    plan = []
    for index in rng.integers(len(OPERATIONS), size=settings.ops):
        done, negative = rng.random(2) < 0.5
        level = min(max(rng.normal(settings.magnitude, settings.spread), 0.0), 10.0) / 10
        if done:
            plan.append((OPERATIONS[index], -level if negative else level))
    return plan


def operate(image: Any, name: str, level: float, fill: tuple[int, ...]) -> Any:
    """An RGB image of Pillow after the operation `name` at `level`, -1 to 1; where it has no direction, the sign is ignored."""
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
            lost = 4 + int(4 * strength)  # of 8 bits; Pillow's own refuses to lose them all
            return image.point([value >> lost << lost for value in range(256)] * 3)
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
