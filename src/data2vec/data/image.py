"""Images: pictures of every usual format to augmented squares of bytes."""

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
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.data.augment import RandAugment, rand_augment
from data2vec.data.erasing import erase
from data2vec.data.sources.rows import label
from data2vec.errors import BadExample
from data2vec.modalities.base import DataSettings

Range = Annotated[tuple[float, float], Field(strict=False)]
Colour = Annotated[tuple[float, float, float], Field(strict=False)]
MEAN: Colour = (0.485, 0.456, 0.406)
STD: Colour = (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1, over ImageNet."""
GREY = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R 601)."""


class VisionData(DataSettings):
    """The `data:` section for images. Defaults: data2vec 1 Base on ImageNet."""

    crop_scale: Range = (0.08, 1.0)
    """Smallest and largest share of the picture's area that a random crop takes."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Narrowest and widest crop, as width / height."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Brightness, contrast and saturation are each multiplied by 1 ± up to this much, in random order."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance to mirror left and right."""
    rand_augment: RandAugment = RandAugment()
    """RandAugment, for fine-tuning."""
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Chance to fill a random box with noise, last of all; fine-tuning on ImageNet has 0.25."""
    batch_size: Annotated[int, Field(gt=0)] = 2048
    """The global batch in images."""
    micro_batch_size: Annotated[int, Field(gt=0)] = 128
    """At most so many images on a device at a time."""

    @property
    def batch(self) -> float:
        return self.batch_size

    @property
    def micro_batch(self) -> float:
        return self.micro_batch_size


class VisionExamples:
    """Pictures of a data set, each (3, image, image) bytes; `mean` and `std` are what they will be normalised by."""

    def __init__(self, rows: Any, settings: VisionData, image: int, mean: Colour = MEAN, std: Colour = STD):
        self.rows, self.settings, self.image, self.mean, self.std = rows, settings, image, mean, std
        self.costs = np.ones(len(rows))

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(3, image, image) uint8: augmented by `rng`; without, the centre of the resized picture."""
        picture = decode(self.rows[int(index)]["image"])
        if rng is None:
            return centre(picture, self.image)
        view = augment(picture, self.settings, self.image, rng)
        view = rand_augment(view, self.settings.rand_augment, self.mean, rng)
        return erase(view, self.settings.erase, self.mean, self.std, rng)

    def label(self, index: int, column: str) -> Any:
        return label(self.rows, int(index), column)

    def __len__(self) -> int:
        return len(self.rows)


def decode(image: dict[str, Any]) -> Tensor:
    """(3, H, W) uint8 RGB, upright, of {"bytes", "path"}. Alpha is dropped, 16 bits become 8, integers and floats that are
    no colours are stretched from their least to their greatest. Raises BadExample, also for a picture too large to be safe."""
    from PIL import Image

    called = image["path"] or "an unnamed picture"
    try:
        content = image["bytes"]
        if content is None:
            with open(image["path"], "rb") as file:
                content = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                pixels = _fast(content, opened) if opened.format == "JPEG" else None
                pixels = _rgb(opened) if pixels is None else pixels
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadExample(f"{called}: more than {Image.MAX_IMAGE_PIXELS} pixels, refused as a possible bomb") from None
    except (OSError, ValueError, SyntaxError, EOFError, TypeError) as error:
        reason = "no picture that can be read" if "BytesIO" in str(error) else getattr(error, "strerror", None) or error
        raise BadExample(f"{called}: {reason}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _fast(content: bytes, opened: Any) -> np.ndarray | None:
    """An ordinary JPEG through simplejpeg, where that is installed: the same pixels, sooner."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    if opened.mode not in ("RGB", "L") or opened.getexif().get(_ORIENTATION, 1) != 1:
        return None
    return decode_jpeg(content, colorspace="RGB")


_ORIENTATION = 0x0112


def _rgb(opened: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image in any mode."""
    from PIL import ImageOps

    picture = ImageOps.exif_transpose(opened)
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
    elif picture.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        spread = max(float(np.ptp(values)), 1e-12)
        grey = ((values - values.min()) * (255 / spread)).astype(np.uint8)
    else:
        # A palette with transparency goes by way of RGBA, as Pillow asks.
        picture = picture.convert("RGBA") if "transparency" in picture.info else picture
        return np.array(picture.convert("RGB"))
    return np.repeat(grey[:, :, None], 3, axis=2)


def augment(picture: Tensor, settings: VisionData, side: int, rng: np.random.Generator) -> Tensor:
    """Random crop, flip and colour jitter of (3, H, W) bytes to (3, side, side).

    The reference jitters first and crops last. Cropping is linear and jitter works pixel by pixel, so here the crop comes
    first, which is several times less work; only contrast looks at the whole picture, and it still does, at every few
    pixels of it."""
    top, left, height, width = crop_box(picture.shape[1], picture.shape[2], settings, rng)
    crop = resize(picture[:, top : top + height, left : left + width], (side, side))
    if rng.random() < settings.flip:
        crop = crop.flip(2)
    if not settings.color_jitter:
        return crop
    factors = 1 + settings.color_jitter * rng.uniform(-1, 1, 3)
    stride = max(1, min(picture.shape[1:]) // 64)
    return jitter(crop, factors.tolist(), rng.permutation(3).tolist(), picture[:, ::stride, ::stride])


def jitter(picture: Tensor, factors: Sequence[float], order: Sequence[int], whole: Tensor) -> Tensor:
    """Multiply brightness (0), contrast (1) and saturation (2) of (3, H, W) bytes by `factors`, in this order; contrast is
    about the mean grey of `whole` (3, h, w), as changed so far."""
    # In place: fresh memory for every result takes longer than the arithmetic.
    x, about = picture.float().flatten(1), whole.float().flatten(1)
    for kind in order:
        factor = factors[kind]
        for y in (x, about):
            if kind == 0:
                y.mul_(factor)
            elif kind == 1:
                # `about` comes second, so its mean is still that of before.
                y.mul_(factor).add_(float((GREY @ about).mean().round()) * (1 - factor))
            else:
                grey = GREY @ y
                y.mul_(factor).add_(grey, alpha=1 - factor)
            y.clamp_(0, 255)
    return x.round_().to(torch.uint8).view(picture.shape)


def crop_box(height: int, width: int, settings: VisionData, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: area uniform, ratio log-uniform; ten tries, then the centre."""
    narrow, wide = settings.crop_ratio
    for _ in range(10):
        area = height * width * rng.uniform(*settings.crop_scale)
        ratio = exp(rng.uniform(log(narrow), log(wide)))
        w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = max(1, min(width, round(height * wide)))
    h = max(1, min(height, round(width / narrow)))
    return (height - h) // 2, (width - w) // 2, h, w


def centre(picture: Tensor, side: int) -> Tensor:
    """For evaluation: the shorter side to side · 256/224, then the centre (3, side, side)."""
    _, height, width = picture.shape
    scale = round(side * 256 / 224) / min(height, width)
    picture = resize(picture, (max(side, int(height * scale + 1e-6)), max(side, int(width * scale + 1e-6))))
    top, left = round((picture.shape[1] - side) / 2), round((picture.shape[2] - side) / 2)
    return picture[:, top : top + side, left : left + side]


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing on bytes; within 1/255 of Pillow."""
    return F.interpolate(picture[None], size, mode="bicubic", antialias=True)[0]


def collate(items: Sequence[Tensor]) -> Batch:
    """`input` (B, 3, H, W) uint8."""
    return Batch(default_collate([item.contiguous() for item in items]))  # in a worker: straight into shared memory
