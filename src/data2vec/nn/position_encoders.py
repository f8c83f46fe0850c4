"""Position encoders: convolutional, learned, sinusoidal and relative, and the ALiBi bias on attention.

Shapes: B batch, M masked views of a sample, T positions, P visible positions of a view, D width, H heads, E extra tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn.cpu_kernels import norm_gelu
from data2vec.nn.layer_norm import LayerNorm
from data2vec.nn.transformer import Bias

PaddingMode = Literal["zero_input", "none", "zero_every_layer"]
"""How padding is treated. zero_input: padded positions are zero in the input of the first convolution; none: they are treated
like others, as in the released version 2; zero_every_layer: they are zero in the input of every convolution, so that the output
for a row does not depend on the other rows of the batch."""


class PositionEncoder(nn.Module, ABC):
    """Adds positions to the vectors, or a bias to the attention logits, or both."""

    @abstractmethod
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Add positions to the full sequence `x` (B, T, D); `padding` (B, T) is True at padded positions."""

    def encode_visible_positions(self, x: Tensor, padding: Tensor | None, mask: Tensor, visible: Tensor) -> Tensor:
        """The positions `visible` (B·M, P) of `x` (B, T, D) with positions added, (B·M, P, D).

        `mask` (B·M, T) is True at all others, which must not influence the result. This default is for encoders that process
        each vector independently."""
        return gather_positions(self(x, padding), visible)

    def bias(self, length: int, visible: Tensor | None = None) -> Bias:
        """The bias on the attention logits of a sequence of T = `length`: (H, E+T, E+T); or one per block; or None.

        With `visible` (B·M, P), of these positions only: (B·M, H, E+P, E+P)."""
        return None


class ConvPositionEncoder(PositionEncoder):
    """Relative positions from a stack of grouped convolutions over the sequence (wav2vec 2.0; depth 5 in data2vec).

    Each of `depth` layers: convolution, layer norm over D without parameters, GELU. The result is added to the input.
    `alibi` adds a bias on attention (data2vec 2.0). `padding`: see `PaddingMode`. `norm`: a layer norm on the sum."""

    def __init__(
        self,
        width: int,
        depth: int = 5,
        kernel: int = 19,
        groups: int = 16,
        alibi: "Alibi | None" = None,
        padding: PaddingMode = "zero_input",
        norm: bool = False,
    ):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups) for _ in range(depth))
        self.norm = LayerNorm(width) if norm else nn.Identity()
        self.alibi = alibi
        self.padding = padding

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self._zero_padding(x, padding)
        y: Tensor = self.norm(x + self.convolve(x, padding if self.padding == "zero_every_layer" else None))
        return y

    def encode_visible_positions(self, x: Tensor, padding: Tensor | None, mask: Tensor, visible: Tensor) -> Tensor:
        """Masked positions are zero in the input of the convolutions, for which each view has all T positions."""
        x, M = self._zero_padding(x, padding), len(visible) // len(x)
        views = x.repeat_interleave(M, dim=0).masked_fill_(mask[..., None], 0.0)
        padded = padding.repeat_interleave(M, dim=0) if padding is not None and self.padding == "zero_every_layer" else None
        y: Tensor = self.norm(gather_positions(x, visible) + gather_positions(self.convolve(views, padded), visible))
        return y

    def bias(self, length: int, visible: Tensor | None = None) -> Tensor | None:
        return None if self.alibi is None else self.alibi.bias(length, visible)

    def _zero_padding(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x.masked_fill(padding[..., None], 0.0) if padding is not None and self.padding != "none" else x

    def convolve(self, y: Tensor, padding: Tensor | None = None) -> Tensor:
        """The output (B, T, D) of the convolutions; the input of each is zero at `padding` (B, T)."""
        length = y.shape[1]
        for conv in cast(Iterable[nn.Conv1d], self.convs):
            # As an image of one row, the sequence is channels last in memory, for which convolution and layer norm are fast.
            image = y.transpose(1, 2).unsqueeze(2)
            z = F.conv2d(image, conv.weight.unsqueeze(2), conv.bias, padding=(0, int(conv.padding[0])), groups=conv.groups)
            y = z.squeeze(2)[..., :length].transpose(1, 2)  # an even kernel gives one position more
            y = norm_gelu(y)
            y = y if padding is None else y.masked_fill(padding[..., None], 0.0)
        return y


class AlibiPositionEncoder(PositionEncoder):
    """Relative positions from an ALiBi bias on attention alone; the vectors get a layer norm only.

    `padding`: see `PaddingMode`; without convolutions, zero_input and zero_every_layer are the same."""

    def __init__(self, width: int, alibi: "Alibi", norm: bool = True, padding: PaddingMode = "zero_input"):
        super().__init__()
        self.norm = LayerNorm(width) if norm else nn.Identity()
        self.alibi, self.padding = alibi, padding

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        y: Tensor = self.norm(x)
        return y if padding is None or self.padding == "none" else y.masked_fill(padding[..., None], 0.0)

    def bias(self, length: int, visible: Tensor | None = None) -> Tensor:
        return self.alibi.bias(length, visible)


class LearnedPositionEncoder(PositionEncoder):
    """A learned vector per position and a layer norm, as in BERT. Padded positions are not counted.

    Rows 0 to `offset`-1 of the table are unused, so that it equals RoBERTa's, whose first position is pad + 1 = 2.
    `padding`: see `PaddingMode`; without convolutions, zero_input and zero_every_layer are the same."""

    def __init__(self, width: int, length: int = 512, offset: int = 2, norm: bool = True, padding: PaddingMode = "zero_input"):
        super().__init__()
        self.length, self.offset, self.padding = length, offset, padding
        self.table = nn.Embedding(length + offset, width, padding_idx=offset - 1)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.zeros_(self.table.weight[offset - 1])
        self.norm = LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Raises ValueError when the sequence is longer than the table."""
        if x.shape[1] > self.length:
            raise ValueError(f"a sequence of {x.shape[1]} positions is longer than the {self.length} of this model; shorten it")
        if padding is None:
            y: Tensor = self.norm(x + self.table.weight[self.offset : self.offset + x.shape[1]])
            return y
        count = (~padding).cumsum(1)
        x = self.norm(x + self.table((count + self.offset - 1).masked_fill(padding, self.offset - 1)))
        return x if self.padding == "none" else x.masked_fill(padding[..., None], 0.0)


class SinCosPositionEncoder(PositionEncoder):
    """Fixed sines and cosines of column and row, and of time where the grid has it, added to the patches (MAE)."""

    table: Tensor

    def __init__(self, grid: tuple[int, ...], width: int):
        super().__init__()
        self.register_buffer("table", sincos_positions(grid, width), persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x + self.table.to(x.dtype)


class RelativePositionEncoder(PositionEncoder):
    """A learned bias on attention for every offset between two patches, shared by all blocks (BEiT).

    With more than one table, each block has its own, as in fine-tuned models. Three more rows are for the extra token:
    from it to a patch, from a patch to it, and from it to itself."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int, extra_tokens: int = 1, tables: int = 1):
        super().__init__()
        if extra_tokens not in (0, 1):
            raise ValueError(f"{extra_tokens} extra tokens: a relative position bias takes 0 or 1")
        rows, columns = grid
        offsets = (2 * rows - 1) * (2 * columns - 1)
        shape = (offsets + 3 * extra_tokens, heads)
        self.tables = tables
        self.table = nn.Parameter(torch.zeros(shape if tables == 1 else (tables, *shape)))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        row, column = row.flatten(), column.flatten()
        index = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
        if extra_tokens:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x

    def bias(self, length: int, visible: Tensor | None = None) -> Bias:
        index = self.index
        if visible is not None:
            extra = len(index) - length
            rows = torch.cat([torch.arange(extra, device=visible.device).expand(len(visible), -1), visible + extra], dim=1)
            index = index[rows[:, :, None], rows[:, None, :]]
        biases = [self._look_up(table, index) for table in (self.table[None] if self.table.ndim == 2 else self.table)]
        return biases if len(biases) > 1 else biases[0]

    @staticmethod
    def _look_up(table: Tensor, index: Tensor) -> Tensor:
        return table[index.flatten()].view(*index.shape, -1).movedim(-1, -3).contiguous()


class Alibi(nn.Module):
    """ALiBi: a linear penalty on distance, the same in both directions, with one learned scale per head (data2vec 2.0).

    Extra tokens are at distance 0 from every position."""

    slopes: Tensor

    def __init__(self, heads: int, extra_tokens: int = 0):
        super().__init__()
        self.extra_tokens = extra_tokens
        self.scale = nn.Parameter(torch.ones(heads))
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """The bias (…, H, E+P, E+P) between `positions` (…, P)."""
        distance = (positions[..., :, None] - positions[..., None, :]).abs()
        distance = F.pad(distance, (self.extra_tokens, 0, self.extra_tokens, 0))
        strength = self.slopes * self.scale.clamp(min=0)
        return -strength[:, None, None] * distance[..., None, :, :]

    def bias(self, length: int, visible: Tensor | None = None) -> Tensor:
        """The bias between all positions of a sequence of `length`; or between those `visible` (B·M, P)."""
        bias: Tensor = self(torch.arange(length, device=self.scale.device) if visible is None else visible)
        return bias


def gather_positions(x: Tensor, positions: Tensor) -> Tensor:
    """The vectors of `x` (B, T, D) at `positions` (B·M, P), indices within a row; M rows of positions per row of `x`.

    Returns (B·M, P, D), gathered from `x` without repeating it M times."""
    M, T = len(positions) // len(x), x.shape[1]
    row_start = torch.arange(len(positions), device=positions.device)[:, None] // M * T
    return x.flatten(0, 1).index_select(0, (positions + row_start).flatten()).view(*positions.shape, x.shape[2])


def alibi_slopes(heads: int) -> list[float]:
    """ALiBi slopes: 2^(-8i/n) for n a power of two; otherwise those of the power below, then every second one of its double."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed positions (T, D) of a sequence; of an image, whose first half of D encodes the column, the second the row; or of a
    video, by column, row and time in equal parts. Each part has all sines, then all cosines; what is left of D is 0."""
    count = width // (2 * len(grid))
    omega = 10000 ** (-torch.arange(count, dtype=torch.float64) / count)

    def encode(position: Tensor) -> Tensor:
        angle = position.double()[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    axes = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    table = torch.cat([encode(axis.flatten()) for axis in reversed(axes)], dim=1).float()
    return F.pad(table, (0, width - table.shape[1]))
