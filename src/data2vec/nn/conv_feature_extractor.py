"""The convolutional front-end of speech: raw waveform to 50 vectors a second."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn.functional import norm_gelu

Layers = Sequence[tuple[int, int, int]]
"""(channels, kernel, stride) of each convolution."""

WAV2VEC = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
"""The seven layers of wav2vec 2.0 and data2vec: stride 320 samples, receptive field 400."""


class ConvFrontEnd(nn.Module):
    """Convolutions without padding, each followed by a norm and GELU (wav2vec 2.0; data2vec, section 3.1).

    `norm`: "layer" normalises over the channels after every convolution; "group" over time, per channel, after the
    first one only. Channels stay last in memory throughout, so that no layer pays for a transposition."""

    def __init__(self, layers: Layers = WAV2VEC, norm: str = "layer", bias: bool = False):
        super().__init__()
        self.layers, self.norm = tuple(layers), norm
        channels = [1, *(c for c, _, _ in layers)]
        self.convs = nn.ModuleList(nn.Conv1d(i, o, k, s, bias=bias) for i, (o, k, s) in zip(channels, layers, strict=False))
        for weight in (p for name, p in self.convs.named_parameters() if name.endswith("weight")):
            nn.init.kaiming_normal_(weight)
        if norm == "layer":
            self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels[1:])
        else:
            self.norms = nn.ModuleList([nn.GroupNorm(channels[1], channels[1])])

    def forward(self, waveform: Tensor, samples: Tensor | None = None) -> Tensor:
        """(B, samples) to (B, T, C); T is `self.length(samples)`. `samples` (B,): how many of each row are there, where a
        norm over time is to be over these alone."""
        x = waveform[..., None]  # (B, T, C)
        conv: Any
        for i, (conv, (_, _, stride)) in enumerate(zip(self.convs, self.layers, strict=True)):
            x = convolve(x, conv.weight, stride)
            if conv.bias is not None:
                x = x + conv.bias.to(x.dtype)
            if self.norm == "layer":
                x = norm_gelu(x, self.norms[i])
            elif i == 0 and samples is not None:
                x = F.gelu(_norm_over(x, output_length(self.layers[:1], samples), self.norms[0]))
            else:
                x = F.gelu(self.norms[i](x.transpose(1, 2)).transpose(1, 2) if i == 0 else x)
        return x

    def length(self, samples: Any) -> Any:
        """How many vectors come of so many samples: see `output_length`."""
        return output_length(self.layers, samples)


def output_length(layers: Layers, samples: Any) -> Any:
    """How many vectors come of so many samples (an int, or a tensor of them); 0 when there are too few for one."""
    for _, kernel, stride in layers:
        samples = (samples - kernel) // stride + 1
    return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)


def _norm_over(x: Tensor, lengths: Tensor, norm: Any) -> Tensor:
    """`norm` over time of each channel of `x` (B, T, C), over as many steps of each row as `lengths` (B,) says."""
    there = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
    count = lengths.clamp(min=1)[:, None, None]
    x = x - torch.where(there, x, 0).sum(1, keepdim=True) / count
    spread = torch.where(there, x, 0).square().sum(1, keepdim=True) / count
    return x * torch.rsqrt(spread + norm.eps) * norm.weight + norm.bias


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A convolution over time with channels last: `x` (B, T, C), `weight` (O, C, kernel), to (B, T', O).

    Raises ValueError when T is shorter than the kernel."""
    if torch.compiler.is_exporting():  # for other machines, in terms they know
        return F.conv1d(x.transpose(1, 2), weight, stride=stride).transpose(1, 2).contiguous()
    if x.shape[1] < weight.shape[2]:
        raise ValueError(f"an input of {x.shape[1]} steps is shorter than the kernel of {weight.shape[2]}")
    if x.shape[2] == 1:
        return F.linear(x.squeeze(2).unfold(1, weight.shape[2], stride), weight.squeeze(1))
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    return _Convolution.apply(x.contiguous(), weight, stride)


class _Convolution(torch.autograd.Function):
    """Matrix products on the input as it lies in memory, without unfolding it.

    Seen as rows of `stride` steps, (T/stride, stride·C), a kernel that spans several rows is a sum of products, each
    of the whole input shifted by one row. The libraries' strided convolutions take up to ten times as long backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        length = (x.shape[1] - weight.shape[2]) // stride + 1
        y = x.new_empty(len(x), length, weight.shape[0])
        for part in _parts(weight.shape[2], stride):
            matrix = _matrix(weight, part)
            for b, rows in enumerate(_windows(x, part, stride, length)):
                y[b].addmm_(rows, matrix.T, beta=int(part[0] > 0))
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        length, (O, C, kernel) = gradient.shape[1], weight.shape
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        if dx is not None:  # the first part of the kernel writes whole rows; what it leaves is nobody's input
            dx[:, length * ctx.stride if kernel >= ctx.stride else 0 :] = 0
        dw = []
        for part in _parts(kernel, ctx.stride):
            matrix = _matrix(weight, part)
            dw.append(torch.zeros_like(matrix))
            for b, rows in enumerate(_windows(x, part, ctx.stride, length)):
                dw[-1].addmm_(gradient[b].T, rows)
            for b, rows in enumerate(_windows(dx, part, ctx.stride, length) if dx is not None else ()):
                rows.addmm_(gradient[b], matrix, beta=int(part[0] > 0 or kernel < ctx.stride))
        return dx, torch.cat([part.view(O, -1, C) for part in dw], 1).transpose(1, 2), None


def _parts(kernel: int, stride: int) -> list[tuple[int, int]]:
    """The parts (first, last) of a kernel that each fit into one row of `stride` steps."""
    return [(first, min(first + stride, kernel)) for first in range(0, kernel, stride)]


def _windows(x: Tensor, part: tuple[int, int], stride: int, length: int) -> Iterator[Tensor]:
    """For each of `x` (B, T, C) the inputs of a part of the kernel, (length, steps·C), as a view."""
    (_, T, C), (first, last) = x.shape, part
    for b in range(len(x)):
        offset = x.storage_offset() + (b * T + first) * C
        yield x.as_strided((length, (last - first) * C), (stride * C, 1), offset)


def _matrix(weight: Tensor, part: tuple[int, int]) -> Tensor:
    """The steps first..last of `weight` (O, C, kernel) as a matrix (O, steps·C)."""
    return weight[:, :, part[0] : part[1]].transpose(1, 2).flatten(1)
