"""The convolutional decoder of data2vec 2.0: predicts the targets at masked positions from visible ones."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.errors import UserError
from data2vec.nn.cpu_kernels import norm_gelu
from data2vec.nn.dropout import Dropout
from data2vec.nn.transformer import initialise
from data2vec.settings import Settings

Count = Annotated[int, Field(gt=0)]


class DecoderSettings(Settings):
    """The `objective.decoder:` section. Defaults: the Base model for speech."""

    layers: Count = 4
    """Convolutions (fairseq: decoder_layers)."""
    kernel: Annotated[tuple[Count, ...], Field(strict=False, min_length=1, max_length=2)] = (7,)
    """Their size along each axis of the grid of positions: one number for a sequence, two for an image."""
    groups: Count = 16
    """Their groups; must divide the widths."""
    width: Count = 384
    """Their channels (fairseq: decoder_dim)."""
    residual: bool = True
    """Add the input of a convolution to its output, where both are of one width."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """On the student's vectors (fairseq: input_dropout)."""
    noise_std: Annotated[float, Field(ge=0)] = 0.01
    """At hidden positions stands Gaussian noise, not a learned vector (fairseq: mask_noise_std)."""
    head_layers: Count = 1
    """Linear layers after the convolutions; the first of several doubles the width (fairseq: projection_layers)."""
    head_init: Literal["torch", "bert"] = "torch"
    """Initial weights of these: PyTorch's own, or N(0, 0.02)."""


class ConvDecoder(nn.Module):
    """Convolutions over visible vectors, with noise at masked positions, to predictions.

    Each layer: convolution, layer norm over the channels without parameters, GELU. It has no position
    encoding. R rows (B·M), P visible of T positions, D width. Raises UserError when `groups` do not divide the widths."""

    def __init__(self, settings: DecoderSettings, width: int):
        super().__init__()
        s = settings
        if width % s.groups or s.width % s.groups:
            raise UserError(f"objective.decoder.groups: {s.groups} does not divide the widths {width} and {s.width}")
        self.settings = s
        kernel = (s.kernel[0] if len(s.kernel) == 2 else 1, s.kernel[-1])  # a sequence is an image of one row
        widths = [width, *[s.width] * s.layers]
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], s.width, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=s.groups)
            for i in range(s.layers)
        )
        self.dropout = Dropout(s.dropout)
        inner = [s.width, *[2 * s.width] * (s.head_layers - 1)]
        linear = [nn.Linear(a, b) for a, b in zip(inner, [*inner[1:], width], strict=True)]
        self.head = nn.Sequential(*(part for layer in linear for part in (layer, nn.GELU())))[:-1]
        if s.head_init != "torch":
            initialise(self.head, s.head_init)

    def forward(self, x: Tensor, kept: Tensor, masked: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Predictions (N, D) at the hidden positions `masked` (N,), counted through all R·T.

        `x` (R, P, D): the student's vectors at the positions `kept` (R, P), counted within each row; `grid`: their shape.
        Raises UserError when the kernel has not as many axes."""
        R, _, D = x.shape
        T = kept.shape[1] + len(masked) // R
        if len(grid) != len(self.settings.kernel):
            raise UserError(f"objective.decoder.kernel: needs {len(grid)} number(s), one for each axis of the positions")
        first = torch.arange(R, device=x.device)[:, None] * T
        y = self.noise(R * T, D, x)
        y = y.index_copy_(0, (kept + first).flatten(), self.dropout(x).flatten(0, 1))
        rows, columns = (1, T) if len(grid) == 1 else grid
        y = y.view(R, rows, columns, D)
        for conv in self.convs:
            # In memory this is channels last, which is what the layer norm and the convolution's kernels want.
            z = conv(y.permute(0, 3, 1, 2))[..., :rows, :columns].permute(0, 2, 3, 1)  # an even kernel gives one too many
            z = norm_gelu(z)
            y = y + z if self.settings.residual and y.shape == z.shape else z
        predictions: Tensor = self.head(y.flatten(0, 2).index_select(0, masked))
        return predictions

    def noise(self, count: int, width: int, like: Tensor) -> Tensor:
        """What stands at hidden positions, (count, width)."""
        return torch.randn(count, width, dtype=like.dtype, device=like.device).mul_(self.settings.noise_std)
