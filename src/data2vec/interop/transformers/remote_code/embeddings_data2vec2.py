"""What goes into the Transformer of data2vec 2.0 for Hugging Face transformers: local features, and positions.

A part of modeling_data2vec2.py beside this file; shapes and names are explained there."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_data2vec2 import Data2Vec2Config


class ConvFrontEnd(nn.Module):
    """Convolutions without padding, each followed by a norm and GELU: (B, samples) to (B, T, C)."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        layers = zip([1, *config.conv_dim], config.conv_dim, config.conv_kernel, config.conv_stride, strict=False)
        self.convs = nn.ModuleList(nn.Conv1d(*layer, bias=config.conv_bias) for layer in layers)
        first = config.conv_dim[0]
        self.norms = nn.ModuleList(
            map(nn.LayerNorm, config.conv_dim) if config.conv_norm == "layer" else [nn.GroupNorm(first, first)]
        )

    def forward(self, waveform: Tensor, there: Tensor | None) -> Tensor:
        x = waveform[..., None]
        conv: Any
        for i, conv in enumerate(self.convs):
            x = convolve(conv, x)
            norm = self.norms[i] if i < len(self.norms) else None
            if isinstance(norm, nn.GroupNorm):
                x = norm_over_time(
                    norm, x, None if there is None else (there.sum(1) - conv.kernel_size[0]) // conv.stride[0] + 1
                )
            elif norm is not None:
                x = norm(x)
            x = F.gelu(x)
        return x


def norm_over_time(norm: nn.GroupNorm, x: Tensor, lengths: Tensor | None) -> Tensor:
    """Each channel of `x` (B, T, C) normalised over as many steps of each row as `lengths` (B,) says."""
    if lengths is None:
        return norm(x.transpose(1, 2)).transpose(1, 2)
    absent = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    count = lengths.clamp(min=1)[:, None, None]
    x = x - without(x, absent).sum(1, keepdim=True) / count
    spread = without(x, absent).square().sum(1, keepdim=True) / count
    return x * torch.rsqrt(spread + norm.eps) * norm.weight + norm.bias


def convolve(conv: Any, x: Tensor) -> Tensor:
    """A convolution of `x` (B, T, C) over time: as an image of one row, whose kernels are fast where channels lie last."""
    image, weight = x.transpose(1, 2).unsqueeze(2), conv.weight.unsqueeze(2)
    y = F.conv2d(image, weight, conv.bias, (1, *conv.stride), (0, *conv.padding), groups=conv.groups)
    return y.squeeze(2).transpose(1, 2)


class WaveformEncoder(nn.Module):
    """Convolutions, a layer norm and a projection."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.layers = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.conv = ConvFrontEnd(config)
        self.norm = nn.LayerNorm(config.conv_dim[-1])
        self.project = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size)) if config.mask_vector else None

    def forward(self, waveform: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.project(self.norm(self.conv(waveform, attention_mask)))

    def absent(self, waveform: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None:
            return None
        frames = torch.arange(self.length(waveform.shape[1]), device=waveform.device)
        return frames >= self.length(attention_mask.sum(1))[:, None]

    def length(self, samples: Any) -> Any:
        """How many vectors come of so many samples."""
        for kernel, stride in self.layers:
            samples = (samples - kernel) // stride + 1
        return samples


class PatchEmbedding(nn.Module):
    """Square patches times a matrix."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.image, self.patch = config.image_size, config.patch_size
        self.project = nn.Linear(3 * self.patch**2, config.hidden_size)
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size)) if config.mask_vector else None

    def forward(self, images: Tensor, attention_mask: Tensor | None) -> Tensor:
        if images.shape[1:] != (3, self.image, self.image):
            raise ValueError(f"pixel_values should be (B, 3, {self.image}, {self.image}), not {tuple(images.shape)}")
        return self.project(F.unfold(images, self.patch, stride=self.patch).transpose(1, 2))

    def absent(self, images: Tensor, attention_mask: Tensor | None) -> None:
        return None


class TokenEmbedding(nn.Module):
    """A vector per token."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.scale, self.pad = config.hidden_size**0.5 if config.scale_embedding else 1.0, config.pad_token_id
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=self.pad)

    def forward(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.scale * self.tokens(tokens)

    def absent(self, tokens: Tensor, attention_mask: Tensor | None) -> Tensor:
        return tokens.eq(self.pad) if attention_mask is None else attention_mask.eq(0)


class ConvPositionEncoder(nn.Module):
    """A stack of grouped convolutions, each followed by a layer norm without parameters and GELU; ALiBi where there is."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        D, kernel, groups = config.hidden_size, config.position_kernel, config.position_groups
        conv = [nn.Conv1d(D, D, kernel, padding=kernel // 2, groups=groups) for _ in range(config.position_depth)]
        self.convs = nn.ModuleList(conv)
        self.alibi = Alibi(config) if config.alibi else None

    def forward(self, x: Tensor, absent: Tensor | None) -> Tensor:
        y = x = without(x, absent)
        for conv in self.convs:
            y = convolve(conv, y)[:, : x.shape[1]]  # an even kernel gives one position too many
            y = without(F.gelu(F.layer_norm(y, y.shape[-1:])), absent)
        return x + y

    def bias(self, length: int) -> Tensor | None:
        return None if self.alibi is None else self.alibi(length)


class Alibi(nn.Module):
    """A linear penalty on distance, the same in both directions, (H, E+T, E+T); extra tokens are near to everything."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.slopes, self.extra = _slopes(config.num_attention_heads), config.extra_tokens
        self.scale = nn.Parameter(torch.ones(config.num_attention_heads))

    def forward(self, length: int) -> Tensor:
        at = torch.arange(length, device=self.scale.device)
        distance = F.pad((at[:, None] - at).abs(), (self.extra, 0, self.extra, 0))
        strength = torch.tensor(self.slopes, device=at.device) * self.scale.clamp(min=0)
        return -strength[:, None, None] * distance


def _slopes(heads: int) -> list[float]:
    """2^(-8i/n) for a power of two; otherwise those of the power below, then every second one of the double."""
    power = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes if power == heads else slopes + _slopes(2 * power)[0::2][: heads - power]


class SinCosPositionEncoder(nn.Module):
    """Fixed sines and cosines, added to the patches: first those of the column, then those of the row."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.side = config.image_size // config.patch_size

    def forward(self, x: Tensor, absent: Tensor | None) -> Tensor:
        quarter = x.shape[-1] // 4
        omega = 10000 ** (-torch.arange(quarter, dtype=torch.float32, device=x.device) / quarter)
        angle = torch.arange(self.side, device=x.device)[:, None] * omega
        code = torch.cat([angle.sin(), angle.cos()], dim=1).to(x.dtype)  # (side, D/2)
        return x + torch.cat([code.repeat(self.side, 1), code.repeat_interleave(self.side, 0)], dim=1)

    def bias(self, length: int) -> None:
        return None


class RelativePositionEncoder(nn.Module):
    """A learned bias on attention for every offset between two patches; three further rows serve an extra token."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.side, self.extra = config.image_size // config.patch_size, config.extra_tokens
        rows = ((2 * self.side - 1) ** 2 + 3 * self.extra, config.num_attention_heads)
        self.table = nn.Parameter(torch.zeros(rows if config.position_tables == 1 else (config.position_tables, *rows)))

    def forward(self, x: Tensor, absent: Tensor | None) -> Tensor:
        return x

    def bias(self, length: int) -> list[Tensor]:
        """(H, E+T, E+T) for all blocks, or for each of them."""
        at, count = torch.arange(length, device=self.table.device), 2 * self.side - 1
        row, column = at // self.side, at % self.side
        index = (row[:, None] - row + self.side - 1) * count + column[:, None] - column + self.side - 1
        if self.extra:
            index = F.pad(index, (1, 0, 1, 0))
            index[0, :], index[:, 0], index[0, 0] = count**2, count**2 + 1, count**2 + 2
        return [table[index].movedim(-1, 0).contiguous() for table in self.table.view(-1, *self.table.shape[-2:])]


class LearnedPositionEncoder(nn.Module):
    """A learned vector per position, of which padding has none, and a layer norm."""

    def __init__(self, config: Data2Vec2Config):
        super().__init__()
        self.table = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=1)
        self.norm = nn.LayerNorm(config.hidden_size) if config.embedding_norm else nn.Identity()

    def forward(self, x: Tensor, absent: Tensor) -> Tensor:
        if x.shape[1] > (longest := self.table.num_embeddings - 2):
            raise ValueError(f"a sequence of {x.shape[1]} positions is longer than the {longest} this model knows")
        count = (~absent).cumsum(1).masked_fill(absent, 0)
        return without(self.norm(x + self.table(count + 1)), absent)

    def bias(self, length: int) -> None:
        return None


def without(x: Tensor, absent: Tensor | None) -> Tensor:
    """`x` (B, T, D) with zeros where nothing is."""
    return x if absent is None else x.masked_fill(absent[..., None], 0.0)
