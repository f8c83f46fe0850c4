"""Where things are: four ways to tell a Transformer, and two biases on its attention.

Shapes: B batch, M masked views of each row, T positions, P of them kept in a view, D width, H heads, E extra tokens.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn.attention import Bias
from data2vec.nn.functional import norm_gelu

Padding = Literal["zero", "seen", "each"]
"""What becomes of padding before it can reach what is not: it is set to zero; or stays whatever came of it, as in the
released version 2; or is set to zero before each convolution again, so that a row's result does not depend on the others'."""


class PositionEncoder(nn.Module, ABC):
    """Added to the vectors, or to the attention logits, or both."""

    @abstractmethod
    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Put positions into `x` (B, T, D), the full sequence; `padding` (B, T) is True where nothing is."""

    def visible(self, x: Tensor, padding: Tensor | None, hidden: Tensor, kept: Tensor) -> Tensor:
        """The positions `kept` (B·M, P) of `x` (B, T, D) with positions put in, (B·M, P, D).

        `hidden` (B·M, T) is True at the others: nothing of them may reach the result. This here is for positions that look
        at each vector alone."""
        return take(self(x, padding), kept)

    def bias(self, length: int, kept: Tensor | None = None) -> Bias:
        """What is added to the attention logits of a sequence of T = `length`: (H, E+T, E+T); or one for each block; or None.

        Of the positions `kept` (B·M, P) only: (B·M, H, E+P, E+P)."""
        return None


class ConvPositionEncoder(PositionEncoder):
    """Relative positions from a stack of grouped convolutions over the sequence (wav2vec 2.0; depth 5 in data2vec).

    Each of `depth` layers: convolution, layer norm over D without parameters, GELU. The result is added to the input.
    `alibi` joins a bias on attention to it (data2vec 2.0). `padding`: see `Padding`."""

    def __init__(
        self,
        width: int,
        depth: int = 5,
        kernel: int = 19,
        groups: int = 16,
        alibi: "Alibi | None" = None,
        padding: Padding = "zero",
    ):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups) for _ in range(depth))
        self.alibi = alibi
        self.padding = padding

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self._cleared(x, padding)
        return x + self.convolve(x, padding if self.padding == "each" else None)

    def visible(self, x: Tensor, padding: Tensor | None, hidden: Tensor, kept: Tensor) -> Tensor:
        """Hidden positions are zero to the convolutions; this is the one place where views are of full length."""
        x, count = self._cleared(x, padding), len(kept) // len(x)
        views = x.repeat_interleave(count, dim=0).masked_fill_(hidden[..., None], 0.0)
        absent = padding.repeat_interleave(count, dim=0) if padding is not None and self.padding == "each" else None
        return take(x, kept) + take(self.convolve(views, absent), kept)

    def bias(self, length: int, kept: Tensor | None = None) -> Tensor | None:
        if self.alibi is None:
            return None
        return self.alibi(torch.arange(length, device=self.alibi.scale.device) if kept is None else kept)

    def _cleared(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x.masked_fill(padding[..., None], 0.0) if padding is not None and self.padding != "seen" else x

    def convolve(self, y: Tensor, padding: Tensor | None = None) -> Tensor:
        """What the convolutions make of `y` (B, T, D), each seeing zeros at `padding` (B, T)."""
        length = y.shape[1]
        conv: Any
        for conv in self.convs:
            # As an image of one row it is channels last in memory, which is what convolution and layer norm are fast on.
            image = y.transpose(1, 2).unsqueeze(2)
            z = F.conv2d(image, conv.weight.unsqueeze(2), conv.bias, padding=(0, conv.padding[0]), groups=conv.groups)
            y = z.squeeze(2)[..., :length].transpose(1, 2)  # an even kernel gives one position too many
            y = norm_gelu(y)
            y = y if padding is None else y.masked_fill(padding[..., None], 0.0)
        return y


class LearnedPositionEncoder(PositionEncoder):
    """A learned vector per position and a layer norm, as in BERT. Only what is not padding is counted.

    Row 0 and row `offset`-1 of the table are spare, so that it equals RoBERTa's, whose first position is pad + 1 = 2.
    `padding`: see `Padding`; here there are no convolutions."""

    def __init__(self, width: int, length: int = 512, offset: int = 2, norm: bool = True, padding: Padding = "zero"):
        super().__init__()
        self.length, self.offset, self.padding = length, offset, padding
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
        return x if self.padding == "seen" else x.masked_fill(padding[..., None], 0.0)


class SinCosPositionEncoder(PositionEncoder):
    """Fixed sines and cosines of column and row, added to the patches (MAE)."""

    table: Tensor

    def __init__(self, grid: tuple[int, int], width: int):
        super().__init__()
        self.register_buffer("table", sincos_2d(grid, width), persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x + self.table


class RelativePositionEncoder(PositionEncoder):
    """A learned bias on attention for every offset between two patches, shared by all blocks (BEiT).

    With more than one table, each block has its own, as fine-tuned models do. Three further rows serve the extra token:
    from it to a patch, from a patch to it, and to itself."""

    index: Tensor

    def __init__(self, grid: tuple[int, int], heads: int, extra_tokens: int = 1, tables: int = 1):
        super().__init__()
        if extra_tokens not in (0, 1):
            raise ValueError(f"a relative position bias knows 0 or 1 extra tokens, not {extra_tokens}")
        rows, columns = grid
        offsets = (2 * rows - 1) * (2 * columns - 1)
        each = (offsets + 3 * extra_tokens, heads)
        self.tables = tables
        self.table = nn.Parameter(torch.zeros(each if tables == 1 else (tables, *each)))
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        row, column = row.flatten(), column.flatten()
        index = (row[:, None] - row + rows - 1) * (2 * columns - 1) + column[:, None] - column + columns - 1
        if extra_tokens:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        return x

    def bias(self, length: int, kept: Tensor | None = None) -> Bias:
        index = self.index
        if kept is not None:
            extra = len(index) - length
            kept = torch.cat([torch.arange(extra, device=kept.device).expand(len(kept), -1), kept + extra], dim=1)
            index = index[kept[:, :, None], kept[:, None, :]]
        each = [self._look_up(table, index) for table in (self.table[None] if self.table.ndim == 2 else self.table)]
        return each if len(each) > 1 else each[0]

    @staticmethod
    def _look_up(table: Tensor, index: Tensor) -> Tensor:
        return table[index.flatten()].view(*index.shape, -1).movedim(-1, -3).contiguous()


class Alibi(nn.Module):
    """A linear penalty on distance, the same in both directions, with one learned scale a head (data2vec 2.0).

    Extra tokens are near to everything."""

    slopes: Tensor

    def __init__(self, heads: int, extra_tokens: int = 0):
        super().__init__()
        self.extra_tokens = extra_tokens
        self.scale = nn.Parameter(torch.ones(heads))
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def forward(self, at: Tensor) -> Tensor:
        """The bias (…, H, E+P, E+P) between positions `at` (…, P)."""
        distance = (at[..., :, None] - at[..., None, :]).abs()
        distance = F.pad(distance, (self.extra_tokens, 0, self.extra_tokens, 0))
        strength = self.slopes * self.scale.clamp(min=0)
        return -strength[:, None, None] * distance[..., None, :, :]


def take(x: Tensor, kept: Tensor) -> Tensor:
    """The positions `kept` (R, P), counted within a row, of `x` (B, T, D), where each row of `x` has R/B rows of `kept`:
    (R, P, D), straight from `x` without repeating it."""
    first = torch.arange(len(kept), device=kept.device)[:, None] // (len(kept) // len(x)) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (kept + first).flatten()).view(*kept.shape, x.shape[2])


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
