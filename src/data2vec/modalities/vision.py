"""Images: a picture to a grid of patches."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data import image as loading
from data2vec.errors import UserError
from data2vec.modalities.base import Examples, LocalEncoder, Modality
from data2vec.nn.position_encoders import PositionEncoder, RelativePositionEncoder, SinCosPositionEncoder
from data2vec.nn.transformer import initialise
from data2vec.settings import Settings


class VisionSettings(Settings):
    """The `modality:` section for images."""

    name: Literal["vision"] = "vision"
    patch: Annotated[int, Field(gt=0)] = 16
    """Side of a square patch in pixels."""
    image: Annotated[int, Field(gt=0)] = 224
    """Side of the square input in pixels; a multiple of the patch."""
    positions: Literal["relative", "sincos"] = "relative"
    """A learned bias on attention, shared by all blocks (BEiT); or fixed sines and cosines (MAE)."""
    position_tables: Annotated[int, Field(gt=0)] = 1
    """Tables of that bias: one for all blocks; or, after fine-tuning, as many as there are blocks."""
    patch_init: Literal["beit", "xavier"] = "beit"
    """Initial weights of the patches' matrix: N(0, 0.02) cut at one standard deviation; or Xavier-uniform (MAE)."""
    mask_vector: bool = True
    """A learned vector for hidden patches; data2vec 2.0 leaves them out and needs none."""
    mean: loading.Colour = loading.MEAN
    """Subtracted from red, green and blue in 0..1 (those of ImageNet)."""
    std: loading.Colour = loading.STD
    """Then divided by."""


class PatchEmbedding(LocalEncoder):
    """Square patches times a matrix; the mask vector replaces whole patches. Bytes are normalised, floats taken as they are."""

    mean: Tensor
    std: Tensor

    def __init__(self, settings: VisionSettings, width: int):
        super().__init__()
        self.patch = settings.patch
        self.project = nn.Linear(3 * settings.patch**2, width)
        self.register_buffer("mean", torch.tensor(settings.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(3, 1, 1) * 255, persistent=False)
        initialise(self, "beit")
        if settings.patch_init == "xavier":
            nn.init.xavier_uniform_(self.project.weight)
        if settings.mask_vector:
            self.mask_vector = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02, a=-0.02, b=0.02))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        image = batch.input  # (B, 3, rows, columns)
        if image.dtype == torch.uint8:
            image = (image - self.mean) / self.std
        B, C, H, W = image.shape
        p = self.patch
        patches = image.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5).reshape(B, (H // p) * (W // p), C * p * p)
        return self.project(patches), None


class Vision(Modality):
    """Images as patches (paper, section 3.1 and 4)."""

    Settings = VisionSettings
    Data = loading.VisionData
    kind = "image"

    def __init__(self, settings: VisionSettings, data: loading.VisionData):
        super().__init__(settings, data)
        if settings.image % settings.patch:
            raise UserError(f"modality.image: {settings.image} is not a multiple of modality.patch, {settings.patch}")
        side = settings.image // settings.patch
        self.side = (side, side)

    def build_local_encoder(self, width: int) -> PatchEmbedding:
        return PatchEmbedding(self.settings, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        if self.settings.positions == "sincos":
            return SinCosPositionEncoder(self.side, width)
        return RelativePositionEncoder(self.side, heads, extra_tokens, self.settings.position_tables)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return self.side

    def examples(self, rows: Any) -> Examples:
        return loading.VisionExamples(rows, self.data, self.settings.image, self.settings.mean, self.settings.std)

    def collate(self, items: Sequence[Any]) -> Batch:
        return loading.collate(items)
