"""The convolutional feature extractor of speech: raw waveform to 50 vectors per second."""

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn import cpu_kernels
from data2vec.nn.cpu_kernels import norm_gelu, use_cpu_kernels
from data2vec.nn.layer_norm import LayerNorm

Layers = Sequence[tuple[int, int, int]]
"""(channels, kernel, stride) of each convolution."""

WAV2VEC = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
"""The seven layers of wav2vec 2.0 and data2vec: stride 320 samples, receptive field 400."""

Samples = TypeVar("Samples", int, Tensor)


class ConvFrontEnd(nn.Module):
    """Convolutions without padding, each followed by a norm and GELU (wav2vec 2.0; data2vec, section 3.1).

    `norm`: "layer" normalises over the channels after every convolution; "group" over time, per channel, after the
    first one only. Channels stay last in memory throughout, so that no layer has to transpose its input."""

    def __init__(self, layers: Layers = WAV2VEC, norm: str = "layer", bias: bool = False):
        super().__init__()
        self.layers, self.norm = tuple(layers), norm
        channels = [1, *(c for c, _, _ in layers)]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, bias=bias) for i, (o, k, s) in zip(channels, layers, strict=False))
        for weight in (p for name, p in self.convs.named_parameters() if name.endswith("weight")):
            nn.init.kaiming_normal_(weight)
        if norm == "layer":
            self.norms = nn.ModuleList(LayerNorm(c) for c in channels[1:])
        else:
            self.norms = nn.ModuleList([nn.GroupNorm(channels[1], channels[1])])

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """(B, samples) to (B, T, C), where T is `self.length(samples)`.

        `samples` (B,): the length of each row without padding; a norm over time then leaves padding out."""
        x = waveform[..., None]  # (B, T, C)
        for i, (conv, (_, _, stride)) in enumerate(zip(cast(Iterable[nn.Conv1d], self.convs), self.layers, strict=True)):
            x = _conv1d(x, conv.weight, stride)
            if conv.bias is not None:
                x = x + conv.bias.to(x.dtype)
            if self.norm == "layer":
                x = norm_gelu(x, self.norms[i])
            elif i == 0 and samples is not None:
                x = F.gelu(_norm_over_time(x, output_length(self.layers[:1], samples), cast(nn.GroupNorm, self.norms[0])))
            else:
                x = F.gelu(self.norms[i](x.transpose(1, 2)).transpose(1, 2) if i == 0 else x)
        return x

    def length(self, samples: Samples) -> Samples:
        """The number of vectors that this many samples give: see `output_length`."""
        return output_length(self.layers, samples)


def output_length(layers: Layers, samples: Samples) -> Samples:
    """The number of vectors that this many samples give (an int, or a tensor of them); 0 when there are too few for one."""
    for _, kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
    return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)


def receptive_field(layers: Layers) -> tuple[int, int]:
    """The samples that a vector sees, and the samples between the first ones of two neighbours."""
    field, stride = 1, 1
    for _, kernel, step in layers:
        field, stride = field + (kernel - 1) * stride, stride * step
    return field, stride


def _norm_over_time(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`norm` of each channel of `x` (B, T, C) over the first `lengths` (B,) steps of each row."""
    valid = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
    count = lengths.clamp(min=1)[:, None, None]
    x = x - torch.where(valid, x, 0).sum(1, keepdim=True) / count
    variance = torch.where(valid, x, 0).square().sum(1, keepdim=True) / count
    return x * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


def _conv1d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A convolution over time with channels last: `x` (B, T, C), `weight` (O, C, kernel), to (B, T', O)."""
    if torch.compiler.is_compiling() or cpu_kernels.is_transformed():  # and exporters: they need a standard operator
        return F.conv1d(x.transpose(1, 2), weight, stride=stride).transpose(1, 2).contiguous()
    if use_cpu_kernels(x) or x.shape[2] == 1:
        return cpu_kernels.conv1d(x, weight, stride)
    # As an image of one row, the sequence is channels last in memory, for which convolution and layer norm are fast.
    return F.conv2d(x.transpose(1, 2).unsqueeze(2), weight.unsqueeze(2), stride=(1, stride)).squeeze(2).transpose(1, 2)
