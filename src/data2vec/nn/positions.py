"""Where things are: four ways to tell a Transformer, and two biases on its attention.

Shapes: B batch, T positions, D width, H heads, E extra tokens.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Positions(nn.Module, ABC):
    """Added to the vectors, or to the attention logits, or both."""

    @abstractmethod
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Put positions into `x` (B, T, D), the full sequence; `padding` (B, T) is True where nothing is."""

    def bias(self, length: int) -> Tensor | None:
        """What is added to the attention logits of a sequence of T = `length`: (H, E+T, E+T), or None."""
        return None


class ConvPositions(Positions):
    """Relative positions from a stack of grouped convolutions over the sequence (wav2vec 2.0; depth 5 in data2vec).

    Each of `depth` layers: convolution, layer norm over D without parameters, GELU. The result is added to the input."""

    def __init__(self, width: int, depth: int = 5, kernel: int = 19, groups: int = 16):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups) for _ in range(depth))

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        length, y = x.shape[1], x
        for conv in self.convs:
            y = conv(y.transpose(1, 2))[..., :length].transpose(1, 2)  # an even kernel gives one position too many
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
        return x + y


class LearnedPositions(Positions):
    """A learned vector per position and a layer norm, as in BERT. Only what is not padding is counted.

    Row 0 and row `offset`-1 of the table are spare, so that it equals RoBERTa's, whose first position is pad + 1 = 2."""

    def __init__(self, width: int, length: int = 512, offset: int = 2, norm: bool = True):
        super().__init__()
        self.length, self.offset = length, offset
        self.table = nn.Embedding(length + offset, width, padding_idx=offset - 1)
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.zeros_(self.table.weight[offset - 1])
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Raises ValueError when the sequence is longer than the table."""
        if x.shape[1] > self.length:
            raise ValueError(f"a sequence of {x.shape[1]} positions is longer than the {self.length} this model knows")
        if padding is None:
            return self.norm(x + self.table.weight[self.offset : self.offset + x.shape[1]])
        count = (~padding).cumsum(1)
        x = self.norm(x + self.table((count + self.offset - 1).masked_fill(padding, self.offset - 1)))
        return x.masked_fill(padding[..., None], 0.0)


class SinCosPositions(Positions):
    """Fixed sines and cosines of column and row, added to the patches (MAE)."""

    table: Tensor

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__()
        self.register_buffer("table", sincos_2d(grid, width), persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x + self.table


class RelativePositions(Positions):
    """A learned bias on attention for every offset between two patches, shared by all blocks (BEiT).

    Three further rows serve the extra token: from it to a patch, from a patch to it, and to itself."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int, extra_tokens: int = 1):
        super().__init__()
        if extra_tokens not in (0, 1):
            raise ValueError(f"a relative position bias knows 0 or 1 extra tokens, not {extra_tokens}")
        rows, columns = grid
        offsets = (2 * rows - 1) * (2 * columns - 1)
        self.table = nn.Parameter(torch.zeros(offsets + 3 * extra_tokens, heads))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        row, column = row.flatten(), column.flatten()
        index = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
        if extra_tokens:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x

    def bias(self, length: int) -> Tensor:
        return self.table[self.index.flatten()].view(*self.index.shape, -1).permute(2, 0, 1).contiguous()


class Alibi(nn.Module):
    """A linear penalty on distance, the same in both directions, with one learned scale a head (data2vec 2.0)."""

    slopes: Tensor

    def __init__(self, heads: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(heads))
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The bias (…, H, R, C) for positions `rows` (…, R) attending to positions `columns` (…, C)."""
        distance = (rows[..., :, None] - columns[..., None, :]).abs()
        strength = self.slopes * self.scale.clamp(min=0)
        return -strength[:, None, None] * distance[..., None, :, :]


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8i/n) for a power of two; otherwise those of the power below, then every second one of the double."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == heads else slopes + alibi_slopes(2 * power)[0::2][: heads - power]


def sincos_2d(grid: tuple[int, int], width: int) -> Tensor:
    """(T, D): the first half encodes the column, the second the row, each as all sines, then all cosines."""
    rows, columns = grid
    omega = 10000 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(position: Tensor) -> Tensor:
        angle = position.double()[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([encode(column.flatten()), encode(row.flatten())], dim=1).float()
