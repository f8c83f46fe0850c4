"""Image files: decoding to RGB bytes, cropping, resizing and color jitter."""

import io
from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from data2vec.data.corrupt import decoding
from data2vec.data.dataset import Signal, array_of
from data2vec.errors import CorruptExample
from data2vec.untrusted import open_regular

Range = Annotated[tuple[float, float], Field(strict=False)]
RGB = Annotated[tuple[float, float, float], Field(strict=False)]
IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1."""
LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the grayscale value (ITU-R 601)."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX")
"""The formats of Pillow that are decoded, whatever a file is named; others call programs, as PostScript calls Ghostscript."""
SMALL_PIXELS = 2**25
"""Pixels that any file may have: decoded they need half a GB."""
MAX_EXPANSION = 1000
"""Pixels for each byte of a file that may have more."""
CHANNELS = (1, 3, 4)
"""Channels of an image in memory: gray; red, green and blue; and alpha."""
MAX_ASPECT = 8
"""How long an image is allowed to be, relative to its width, before its ends are cut for a crop of its center."""
_EXIF_ORIENTATION = 0x0112


def decode_image(image: Signal) -> Tensor:
    """A signal as (3, H, W) uint8 RGB, rotated as its EXIF data says. Alpha is dropped, 16 bits are reduced to 8, and 32-bit
    integers and floats are scaled from their minimum and maximum to 0 and 255; pixels that are NaN become 0.

    Raises CorruptExample, also for an image with more pixels than Pillow considers safe."""
    from PIL import Image, UnidentifiedImageError

    with decoding(image, "an unnamed image"):
        if image.get("array") is not None:
            return torch.from_numpy(pixels_from_array(image["array"])).permute(2, 0, 1)
        content = image_content(image)
        try:
            with open_image(content) as opened:
                require_safe_size(opened, content)
                pixels = _decode_plain_jpeg(content, opened) if opened.format == "JPEG" else None
                pixels = _to_rgb(opened) if pixels is None else pixels
                if opened.format == "PNG":
                    _check_sums(content)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise CorruptExample(
                f"more than {Image.MAX_IMAGE_PIXELS} pixels, refused as a possible decompression bomb"
            ) from None
        except UnidentifiedImageError:
            raise CorruptExample("not an image that can be decoded") from None
        return torch.from_numpy(pixels).permute(2, 0, 1)


def require_safe_size(opened: Any, content: bytes) -> None:
    """Raises CorruptExample for a Pillow image with far more pixels than a file of these bytes may have."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and opened.width * opened.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    if opened.width * opened.height > SMALL_PIXELS + MAX_EXPANSION * len(content):
        raise CorruptExample(
            f"{opened.width} x {opened.height} pixels in a file of {len(content)} bytes, refused as a possible "
            "decompression bomb"
        )


def _check_sums(content: bytes) -> None:
    """Raises CorruptExample for a PNG with a wrong checksum, of which Pillow may decode other pixels."""
    try:
        with open_image(content) as opened:
            opened.verify()
    except SyntaxError as error:
        raise CorruptExample(str(error)) from None


def image_content(image: Signal) -> bytes:
    """The bytes of a signal that is a file."""
    if image.get("bytes") is not None:
        return image["bytes"]
    with open_regular(image["path"]) as file:
        return file.read()


def open_image(content: bytes) -> Any:
    """The Pillow image of a file, not decoded yet. Raises UnidentifiedImageError if it has none of the FORMATS."""
    from PIL import Image

    return Image.open(io.BytesIO(content), formats=FORMATS)


def pixels_from_array(array: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image in any mode, or of an array or tensor (H, W), (H, W, C) or (C, H, W), with C 1, 3 or 4,
    of integers from 0 to 255 or of floats from 0 to 1. Alpha is dropped.

    Raises CorruptExample with what is wanted, for other shapes and values."""
    from PIL import Image

    if isinstance(array, Image.Image):
        return _to_rgb(array)
    pixels = array_of(array)
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    elif pixels.ndim == 3 and shape[2] not in CHANNELS and shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] not in CHANNELS or not pixels.size:
        raise CorruptExample(f"an image of shape {shape}; it must be (H, W, 3) or (3, H, W), or (H, W) if it is gray")
    if len(shape) == 3 and shape[0] in CHANNELS and shape[2] in CHANNELS:
        raise CorruptExample(f"an image of shape {shape}, whose channels may be first or last; give a Pillow image")
    low, high = (0, 1) if pixels.dtype.kind in "fb" else (0, 255)
    if pixels.dtype.kind not in "fbiu" or not (pixels.min() >= low and pixels.max() <= high):
        values = f" from {pixels.min():g} to {pixels.max():g}" if pixels.dtype.kind in "fiu" else ""
        raise CorruptExample(f"an image of {pixels.dtype}{values}; give integers from 0 to 255, or floats from 0 to 1")
    scaled = pixels if high == 255 else np.round(pixels.astype(np.float32) * 255)
    return np.repeat(scaled, 3, axis=2).astype(np.uint8) if pixels.shape[2] == 1 else np.array(scaled[:, :, :3], np.uint8)


def _decode_plain_jpeg(content: bytes, opened: Any) -> np.ndarray | None:
    """An RGB or grayscale JPEG without rotation by simplejpeg, if installed: the same pixels as Pillow's, faster. None for what
    it refuses, such as stray bytes between the parts of a file, which Pillow skips."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    if opened.mode not in ("RGB", "L") or _orientation(opened) != 1:
        return None
    try:
        return decode_jpeg(content, colorspace="RGB")
    except ValueError:
        return None


def _orientation(image: Any) -> int:
    """How a Pillow image is rotated, by its EXIF data; 1, upright, if that is missing or damaged."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # Pillow raises anything on damaged EXIF data, without which the image is readable
        return 1


def _to_rgb(opened: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a Pillow image in any mode."""
    from PIL import ImageOps

    image = opened if _orientation(opened) == 1 else ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image) >> 8).astype(np.uint8)
    elif image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise CorruptExample("every pixel is NaN or inf")
        low, spread = finite.min(), max(float(np.ptp(finite)), 1e-12)
        gray = np.nan_to_num(((values - low) * (255 / spread)).clip(0, 255)).astype(np.uint8)
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
    image = _without_far_ends(image)
    _, height, width = image.shape
    scale = round(side * 256 / 224) / min(height, width)
    image = resize(image, (max(side, int(height * scale + 1e-6)), max(side, int(width * scale + 1e-6))))
    top, left = round((image.shape[1] - side) / 2), round((image.shape[2] - side) / 2)
    return image[:, top : top + side, left : left + side]


def _without_far_ends(image: Tensor) -> Tensor:
    """The middle of an image (3, H, W) that is more than MAX_ASPECT times as long as wide, with all that `center_crop` keeps:
    enlarged as a whole, a line of 8000 pixels would have two million."""
    _, height, width = image.shape
    longest = MAX_ASPECT * min(height, width) + 8  # for the bicubic filter
    # The same number of pixels from both ends, so that the center stays where it is.
    top, left = (max(0, size - longest) // 2 for size in (height, width))
    return image[:, top : height - top, left : width - left]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing on bytes; within 1/255 of Pillow."""
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]
