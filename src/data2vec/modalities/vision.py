"""Vision: square images, embedded as a grid of patches."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.data.augment import RandAugment, rand_augment, random_erasing
from data2vec.data.dataset import CountedDataSettings, ExampleDataset, Rows, column_value
from data2vec.data.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    RGB,
    Range,
    center_crop,
    color_jitter,
    decode_image,
    random_crop_box,
    resize,
)
from data2vec.data.mixing import ImageMixing
from data2vec.errors import UserError
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.modalities.hog import hog, hog_width
from data2vec.nn.cpu_kernels import norm_gelu
from data2vec.nn.position_encoders import PositionEncoder, RelativePositionEncoder, SinCosPositionEncoder

MAX_SIDE = 64
"""Patches in a row of an image: a relative position bias has an index of the fourth power of it."""
Probability = Annotated[float, Field(ge=0, le=1)]


class VisionSettings(ModalitySettings):
    """The `modality:` section for images."""

    name: Literal["vision"] = "vision"
    patch: Annotated[int, Field(gt=0, le=2**7)] = 16
    """Side of a patch in pixels (fairseq: patch_size)."""
    image: Annotated[int, Field(gt=0, le=2**14)] = 224
    """Side of the input image in pixels; a multiple of `patch` (fairseq: input_size)."""
    stem: Literal["patch", "conv"] = "patch"
    """How a patch becomes a vector: one linear projection; or convolutions inside the patch, with equal kernel and stride, so
    that no vector depends on the pixels of another patch, which may be masked."""
    positions: Literal["relative", "sincos"] = "relative"
    """A learned relative attention bias, shared by all blocks (BEiT); or fixed sine-cosine positions (MAE)."""
    position_tables: Annotated[int, Field(gt=0, le=2**10)] = 1
    """Tables of the relative bias: 1 for all blocks; or, in fine-tuned models, one per block."""
    patch_init: Literal["beit", "xavier"] = "beit"
    """Initial weights of the patch projection: N(0, 0.02) truncated at one std (BEiT); or Xavier uniform (MAE)."""
    mask_vector: bool = True
    """A learned vector for masked patches; data2vec 2.0 does not encode them and needs none."""
    mean: RGB = IMAGENET_MEAN
    """Subtracted from red, green and blue in 0..1; default: ImageNet."""
    std: RGB = IMAGENET_STD
    """Red, green and blue are then divided by this; default: ImageNet."""


class VisionData(CountedDataSettings):
    """The `data:` section for images. Defaults: data2vec 1 Base on ImageNet."""

    crop_scale: Range = (0.08, 1.0)
    """Smallest and largest fraction of the image's area that a random crop covers."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Smallest and largest width / height of a random crop."""
    color_jitter: Probability = 0.4
    """Brightness, contrast and saturation are each multiplied by 1 ± up to this value, in random order."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    rand_augment: RandAugment = RandAugment()
    """RandAugment, for fine-tuning."""
    random_erasing: Probability = 0.0
    """Probability of filling a random box with noise, as the last step; 0.25 for fine-tuning on ImageNet (timm: reprob)."""
    batch_size: Annotated[int, Field(gt=0)] = 2048
    """The global batch in images."""
    micro_batch_size: Annotated[int, Field(gt=0)] = 128
    """The per-device micro-batch in images; auto: the largest that fits, measured before the run."""


class ConvStem(nn.Module):
    """Patches to vectors by convolutions, each with a layer norm over the channels without parameters and GELU.

    Kernel and stride of each are 2, and of the last the odd factor of the side of the patch. So the receptive field of a vector
    is exactly its patch: features are computed once for all masks, and visible ones hold nothing of masked patches. The widths
    double up to that of the model."""

    def __init__(self, patch: int, width: int):
        super().__init__()
        kernels: list[int] = []
        while patch % 2 == 0:
            kernels, patch = [*kernels, 2], patch // 2
        kernels += [patch] if patch > 1 or not kernels else []
        widths = [3, *(max(1, width >> i) for i in reversed(range(len(kernels))))]
        self.convs = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel, kernel) for (inner, outer), kernel in zip(pairwise(widths), kernels, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, rows, columns) to (B, T, D)."""
        y = image
        for conv in self.convs:
            y = norm_gelu(conv(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y.flatten(2).mT


class PatchEmbedding(LocalEncoder):
    """A linear projection of patches, or of the output of a `ConvStem`; the mask vector replaces projected patches. Bytes are
    normalized here, floats must be normalized already."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: VisionSettings, width: int):
        super().__init__()
        self.patch = settings.patch
        self.stem = ConvStem(settings.patch, width) if settings.stem == "conv" else None
        self.project = nn.Linear(width if self.stem is not None else 3 * settings.patch**2, width)
        self.register_buffer("mean", torch.tensor(settings.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(3, 1, 1) * 255, persistent=False)
        self.init_projection(width, settings.mask_vector, xavier=self.project if settings.patch_init == "xavier" else None)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        image = normalize_pixels(batch.input, self.mean, self.std)
        return self.project(patchify(image, self.patch) if self.stem is None else self.stem(image)), None


@lru_cache
def channel_bytes(values: RGB, device: torch.device) -> Tensor:
    """(3, 1, 1): red, green and blue in 0..1 as bytes; kept on the device, so that no step waits for a copy."""
    return torch.tensor(values, device=device).view(3, 1, 1) * 255


def normalize_pixels(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes (B, 3, H, W) less `mean`, over `std`, (3, 1, 1) of bytes; floats are normalized already."""
    return (image - mean) / std if image.dtype == torch.uint8 else image


def patchify(image: Tensor, patch: int) -> Tensor:
    """An image (B, 3, H, W) as its patches (B, T, 3·patch²), row by row."""
    B, C, H, W = image.shape
    p = patch
    return image.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), C * p * p)


class VisionExamples(ExampleDataset):
    """Images of (3, side, side) bytes; `mean` and `std` are those that the model normalizes by."""

    def __init__(self, rows: Rows, settings: VisionData, side: int, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD):
        self.rows, self.settings, self.side, self.mean, self.std = rows, settings, side, mean, std
        self.costs = np.ones(len(rows))

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(3, side, side) uint8, augmented with `rng`; without `rng` the center of the resized image."""
        image = decode_image(self.rows[int(index)]["image"])
        if rng is None:
            return center_crop(image, self.side)
        image = augment_image(image, self.settings, self.side, rng)
        image = rand_augment(image, self.settings.rand_augment, self.mean, rng)
        return random_erasing(image, self.settings.random_erasing, self.mean, self.std, rng)

    def label(self, index: int, column: str) -> Any:
        return column_value(self.rows, int(index), column)


def augment_image(image: Tensor, settings: VisionData, side: int, rng: np.random.Generator) -> Tensor:
    """Random resized crop, flip and color jitter: (3, H, W) bytes to (3, side, side).

    The reference implementation jitters before it crops. Cropping is linear and jitter is per pixel, so cropping first gives
    nearly the same image for a fraction of the work; only contrast needs the full image, and every few pixels are enough."""
    height, width = image.shape[1:]
    top, left, h, w = random_crop_box(height, width, settings.crop_scale, settings.crop_ratio, rng)
    crop = resize(image[:, top : top + h, left : left + w], (side, side))
    if rng.random() < settings.flip:
        crop = crop.flip(2)
    if not settings.color_jitter:
        return crop
    factors = 1 + settings.color_jitter * rng.uniform(-1, 1, 3)
    stride = max(1, min(height, width) // 64)
    return color_jitter(crop, factors.tolist(), rng.permutation(3).tolist(), image[:, ::stride, ::stride])


class Vision(Modality):
    """Images as patches (paper, sections 3.1 and 4)."""

    Settings = VisionSettings
    Data = VisionData
    kind = "image"
    Mixing = ImageMixing

    settings: VisionSettings
    data: VisionData

    def __init__(self, settings: VisionSettings, data: VisionData):
        super().__init__(settings, data)
        if settings.image % settings.patch:
            raise UserError(
                f"modality.image: {settings.image} is not a multiple of modality.patch: {settings.patch}; change one of them"
            )
        side = settings.image // settings.patch
        if side > MAX_SIDE:
            raise UserError(
                f"modality.image: {settings.image} has {side} x {side} patches of {settings.patch} pixels; at most {MAX_SIDE} "
                f"x {MAX_SIDE} are allowed; set a smaller image or a larger modality.patch"
            )
        self.side = (side, side)

    def build_local_encoder(self, width: int) -> PatchEmbedding:
        return PatchEmbedding(self.settings, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        if self.settings.positions == "sincos":
            return SinCosPositionEncoder(self.side, width)
        return RelativePositionEncoder(self.side, heads, extra_tokens, self.settings.position_tables)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return self.side

    def input_features(self) -> Mapping[str, InputFeatures]:
        patch, mean, std = self.settings.patch, self.settings.mean, self.settings.std

        def normalized(batch: Batch) -> Tensor:
            device = batch.input.device
            return normalize_pixels(batch.input, channel_bytes(mean, device), channel_bytes(std, device))

        return {
            "raw": InputFeatures(3 * patch**2, lambda batch: patchify(normalized(batch), patch)),
            "hog": InputFeatures(hog_width(patch), lambda batch: hog(normalized(batch), patch)),
        }

    def examples(self, rows: Rows) -> VisionExamples:
        return VisionExamples(rows, self.data, self.settings.image, self.settings.mean, self.settings.std)

    def collate(self, items: Sequence[Tensor]) -> Batch:
        return Batch(default_collate([item.contiguous() for item in items]))  # in a worker: directly into shared memory
