"""Image files: decoding to RGB bytes, cropping, resizing and color jitter."""

import io
import warnings
from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from data2vec.data.dataset import Signal
from data2vec.errors import CorruptExample

Range = Annotated[tuple[float, float], Field(strict=False)]
RGB = Annotated[tuple[float, float, float], Field(strict=False)]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1."""
LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grayscale value (ITU-R 601)."""
_EXIF_ORIENTATION = 0x0112


def decode_image(image: Signal) -> Tensor:
    """{"bytes", "path"} as (3, H, W) uint8 RGB, rotated as its EXIF data says. Alpha is dropped, 16 bits are reduced to 8, and
    32-bit integers and floats are scaled from their minimum and maximum to 0 and 255.

    Raises CorruptExample, also for an image with more pixels than Pillow considers safe."""
    from PIL import Image

    name = image["path"] or "an unnamed image"
    try:
        content = image["bytes"]
        if content is None:
            with open(image["path"], "rb") as file:
                content = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                pixels = _decode_plain_jpeg(content, opened) if opened.format == "JPEG" else None
                pixels = _to_rgb(opened) if pixels is None else pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise CorruptExample(
            f"{name}: more than {Image.MAX_IMAGE_PIXELS} pixels, refused as a possible decompression bomb"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError) as error:
        reason = "not an image that can be decoded" if "BytesIO" in str(error) else getattr(error, "strerror", None) or error
        raise CorruptExample(f"{name}: {reason}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_plain_jpeg(content: bytes, opened: Any) -> np.ndarray | None:
    """An RGB or grayscale JPEG without rotation by simplejpeg, if installed: the same pixels as Pillow's, faster."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    if opened.mode not in ("RGB", "L") or opened.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        return None
    return decode_jpeg(content, colorspace="RGB")


def _to_rgb(opened: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image in any mode."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        spread = max(float(np.ptp(values)), 1e-12)
        gray = ((values - values.min()) * (255 / spread)).astype(np.uint8)
    else:
        # Pillow asks to convert a palette with transparency by way of RGBA.
        image = image.convert("RGBA") if "transparency" in image.info else image
        return np.array(image.convert("RGB"))
    return np.repeat(gray[:, :, None], 3, axis=2)


def color_jitter(image: Tensor, factors: Sequence[float], order: Sequence[int], reference: Tensor) -> Tensor:
    """Multiply brightness (0), contrast (1) and saturation (2) of (3, H, W) bytes by `factors`, in the given order.

    Contrast is relative to the mean gray of `reference` (3, h, w), to which the preceding operations are applied too."""
    # In place, because allocating every result takes longer than the arithmetic.
    x, about = image.float().flatten(1), reference.float().flatten(1)
    for kind in order:
        factor = factors[kind]
        for y in (x, about):
            if kind == 0:
                y.mul_(factor)
            elif kind == 1:
                # `about` is updated last, so its mean here is the one before this operation.
                y.mul_(factor).add_(float((LUMA @ about).mean().round()) * (1 - factor))
            else:
                gray = LUMA @ y
                y.mul_(factor).add_(gray, alpha=1 - factor)
            y.clamp_(0, 255)
    return x.round_().to(torch.uint8).view(image.shape)


def random_crop_box(height: int, width: int, scale: Range, ratio: Range, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: its share of the area uniform in `scale`, width / height log-uniform in
    `ratio`. After ten crops that do not fit: the center."""
    min_ratio, max_ratio = ratio
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = exp(rng.uniform(log(min_ratio), log(max_ratio)))
        w, h = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = max(1, min(width, round(height * max_ratio)))
    h = max(1, min(height, round(width / min_ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def center_crop(image: Tensor, side: int) -> Tensor:
    """For evaluation: resize the shorter side to side · 256/224, then crop the center (3, side, side)."""
    _, height, width = image.shape
    scale = round(side * 256 / 224) / min(height, width)
    image = resize(image, (max(side, int(height * scale + 1e-6)), max(side, int(width * scale + 1e-6))))
    top, left = round((image.shape[1] - side) / 2), round((image.shape[2] - side) / 2)
    return image[:, top : top + side, left : left + side]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing on bytes; within 1/255 of Pillow."""
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]
