"""The convolutional front-end of speech: raw waveform to 50 vectors a second."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        self.convs = nn.ModuleList(
            nn.Conv1d(i, o, k, s, bias=bias) for i, (o, k, s) in zip(channels, layers, strict=False)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)
        if norm == "layer":
            self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels[1:])
        else:
            self.norms = nn.ModuleList([nn.GroupNorm(channels[1], channels[1])])

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, samples) to (B, T, C); T is `self.length(samples)`."""
        x = waveform[..., None]  # (B, T, C)
        for i, conv in enumerate(self.convs):
            x = self._convolve(conv, x)
            if i < len(self.norms):
                x = self.norms[i](x) if self.norm == "layer" else self.norms[i](x.transpose(1, 2)).transpose(1, 2)
            x = F.gelu(x)
        return x

    @staticmethod
    def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
        weight, bias, (kernel,), (stride,) = conv.weight, conv.bias, conv.kernel_size, conv.stride
        if x.shape[-1] == 1:  # one channel in: windows times a matrix
            return F.linear(x.squeeze(-1).unfold(1, kernel, stride), weight.squeeze(1), bias)
        image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T), a view that is channels-last in memory
        y = F.conv2d(image, weight.unsqueeze(2).contiguous(memory_format=torch.channels_last), bias, (1, stride))
        return y.squeeze(2).transpose(1, 2)

    def length(self, samples: int | Tensor) -> int | Tensor:
        """How many vectors come of so many samples (of each row); 0 when there are too few for one."""
        for _, kernel, stride in self.layers:
            samples = (samples - kernel) // stride + 1
        return samples.clamp(min=0) if isinstance(samples, Tensor) else max(samples, 0)
