"""A Transformer as the decoder of data2vec 2.0, as in masked autoencoders (He et al., 2022, arXiv 2111.06377)."""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data2vec.nn.cpu_kernels import Dropout
from data2vec.nn.position_encoders import sincos_positions
from data2vec.nn.transformer import Transformer, TransformerSettings
from data2vec.settings import Settings

Count = Annotated[int, Field(gt=0, le=2**16)]


class TransformerDecoderSettings(Settings):
    """The `objective.decoder:` section of a Transformer decoder. Defaults: layers and width of the convolutional one."""

    kind: Literal["transformer"] = "transformer"
    """A Transformer over visible and masked positions."""
    layers: Count = 4
    """Number of pre-norm blocks."""
    width: Count = 384
    """Width of the blocks, a multiple of 4; their feed-forward parts are four times as wide."""
    heads: Count = 6
    """Attention heads; must divide `width`."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the student's vectors."""

    @model_validator(mode="after")
    def _width_divides(self) -> Self:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4 and of heads {self.heads}")
        return self


class TransformerDecoder(nn.Module):
    """Predicts masked positions from the student's vectors at visible positions and a learned vector at masked ones.

    All get fixed sine-cosine positions and pass through pre-norm blocks. Padding is not left out. R rows (B·M), P visible of T
    positions, D width; `predictions`: K, vectors that are predicted at a position."""

    def __init__(self, settings: TransformerDecoderSettings, width: int, predictions: int = 1):
        super().__init__()
        s = settings
        self.settings = s
        self.dropout = Dropout(s.dropout)
        self.project = nn.Linear(width, s.width)
        self.mask_vector = nn.Parameter(torch.randn(s.width) * 0.02)
        self.layers = Transformer(
            TransformerSettings(
                width=s.width,
                layers=s.layers,
                heads=s.heads,
                ffn_width=4 * s.width,
                norm="pre",
                input_norm=False,
                final_norm=True,
                dropout=0.0,
                attention_dropout=0.0,
            )
        )
        self.head = nn.Linear(s.width, predictions * width)
        self._positions: tuple[Tensor, tuple[int, ...]] = torch.empty(0), ()

    def forward(self, x: Tensor, visible: Tensor, masked: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Predictions (N, K·D) at the positions `masked` (N,): the head on the vectors of `decode`."""
        predictions: Tensor = self.head(self.decode(x, visible, masked, grid))
        return predictions

    def decode(self, x: Tensor, visible: Tensor, masked: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Vectors (N, W) before the head, at the positions `masked` (N,), indices into all R·T positions.

        `x` (R, P, D): the student's vectors at the positions `visible` (R, P), indices within a row. `grid`: the shape of a
        row's positions."""
        R, T = len(x), visible.shape[1] + len(masked) // len(x)
        inputs = self.project(self.dropout(x)).flatten(0, 1)  # (R·P, W)
        row_start = torch.arange(R, device=x.device)[:, None] * T
        everywhere = self.mask_vector.to(inputs.dtype).expand(R * T, -1)
        y = everywhere.index_copy(0, (visible + row_start).flatten(), inputs).view(R, T, -1)
        z: Tensor = self.layers(y + self.positions(grid, y))
        return z.flatten(0, 1).index_select(0, masked)

    def positions(self, grid: tuple[int, ...], like: Tensor) -> Tensor:
        """Fixed positions (T, W) of `grid`, of the dtype and on the device of `like`; kept until the grid changes."""
        table, last = self._positions
        if last != grid or table.device != like.device:
            table = sincos_positions(grid, self.settings.width).to(like.device)
            self._positions = table, grid
        return table.to(like.dtype)
