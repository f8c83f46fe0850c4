"""The light decoder of data2vec 2.0: convolutions that predict the masked positions from the visible ones."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.errors import UserError
from data2vec.nn.cpu_kernels import Dropout, norm_gelu
from data2vec.nn.transformer import init_weights
from data2vec.settings import Settings

Count = Annotated[int, Field(gt=0, le=2**16)]


class ConvDecoderSettings(Settings):
    """The `objective.decoder:` section. Defaults: the Base model for speech."""

    kind: Literal["conv"] = "conv"
    """Convolutions over visible and masked positions."""
    layers: Count = 4
    """Number of convolutions (fairseq: decoder_layers)."""
    kernel: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=3)] = (7,)
    """Kernel size along each axis of the grid of positions: one number for a sequence, two for an image, three for a video."""
    groups: Count = 16
    """Groups of each convolution; must divide `width` and the encoder's width."""
    width: Count = 384
    """Output channels of each convolution (fairseq: decoder_dim)."""
    residual: bool = True
    """Add the input of a convolution to its output where their widths are equal."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the student's vectors (fairseq: input_dropout)."""
    noise_std: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of the Gaussian noise that is the input at masked positions (fairseq: mask_noise_std)."""
    head_layers: Count = 1
    """Linear layers after the convolutions; the first of several doubles the width (fairseq: projection_layers)."""
    head_init: Literal["torch", "bert"] = "torch"
    """Initial weights of these linear layers: PyTorch's default, or N(0, 0.02)."""


class ConvDecoder(nn.Module):
    """Predicts masked positions from the student's vectors at visible positions and noise at masked ones.

    Each layer: convolution, layer norm over the channels without parameters, GELU. There is no position encoding of its own.
    R rows (B·M), P visible of T positions, D width; `predictions`: K, vectors that are predicted at a
    position. Raises UserError when `groups` does not divide the widths."""

    def __init__(self, settings: ConvDecoderSettings, width: int, predictions: int = 1):
        super().__init__()
        s = settings
        if width % s.groups or s.width % s.groups:
            raise UserError(f"objective.decoder.groups: {s.groups} does not divide the widths {width} and {s.width}")
        self.settings = s
        kernel = (1, *s.kernel) if len(s.kernel) == 1 else s.kernel  # a sequence is an image of one row
        widths = [width, *[s.width] * s.layers]
        conv: Any = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
        self.convs = nn.ModuleList(
            conv(widths[i], s.width, kernel, padding=tuple(size // 2 for size in kernel), groups=s.groups)
            for i in range(s.layers)
        )
        self.dropout = Dropout(s.dropout)
        inner = [s.width, *[2 * s.width] * (s.head_layers - 1)]
        linear = [nn.Linear(a, b) for a, b in zip(inner, [*inner[1:], predictions * width], strict=True)]
        self.head = nn.Sequential(*(part for layer in linear for part in (layer, nn.GELU())))[:-1]
        if s.head_init != "torch":
            init_weights(self.head, s.head_init)

    def forward(self, x: Tensor, visible: Tensor, masked: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Predictions (N, K·D) at the positions `masked` (N,): the head on the vectors of `decode`."""
        predictions: Tensor = self.head(self.decode(x, visible, masked, grid))
        return predictions

    def decode(self, x: Tensor, visible: Tensor, masked: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Vectors (N, W) before the head, at the positions `masked` (N,), indices into all R·T positions.

        `x` (R, P, D): the student's vectors at the positions `visible` (R, P), indices within a row. `grid`: the shape of a
        row's positions. Raises UserError when the kernel has another number of axes."""
        R, _, D = x.shape
        T = visible.shape[1] + len(masked) // R
        if len(grid) != len(self.settings.kernel):
            raise UserError(f"objective.decoder.kernel: needs {len(grid)} number(s), one for each axis of the positions")
        row_start = torch.arange(R, device=x.device)[:, None] * T
        y = self.draw_noise(R * T, D, x)
        y = y.index_copy_(0, (visible + row_start).flatten(), self.dropout(x).flatten(0, 1))
        sides = (1, T) if len(grid) == 1 else grid
        inside = (slice(None), slice(None), *map(slice, sides))  # an even kernel gives one position more
        y = y.view(R, *sides, D)
        for conv in self.convs:
            # Channels last in memory, for which the layer norm and the convolutions are fast.
            z = conv(y.movedim(-1, 1))[inside].movedim(1, -1)
            z = norm_gelu(z)
            y = y + z if self.settings.residual and y.shape == z.shape else z
        return y.flatten(0, -2).index_select(0, masked)

    def draw_noise(self, count: int, width: int, like: Tensor) -> Tensor:
        """Noise (count, width) for masked positions, of the dtype and on the device of `like`."""
        return torch.randn(count, width, dtype=like.dtype, device=like.device).mul_(self.settings.noise_std)
