"""Speech: a raw 16 kHz waveform to 50 vectors a second."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data import audio as loading
from data2vec.modalities.base import Examples, LocalEncoder, Modality
from data2vec.nn.conv_feature_extractor import WAV2VEC, ConvFrontEnd, output_length
from data2vec.nn.position_encoders import Alibi, ConvPositionEncoder, PaddingMode
from data2vec.settings import Settings

ConvLayer = Annotated[tuple[int, int, int], Field(strict=False)]


class SpeechSettings(Settings):
    """The `modality:` section for speech."""

    name: Literal["speech"] = "speech"
    conv_layers: Annotated[tuple[ConvLayer, ...], Field(strict=False)] = WAV2VEC
    """(channels, kernel, stride) of each convolution of the front-end (fairseq: conv_feature_layers)."""
    conv_norm: Literal["layer", "group"] = "layer"
    """After every convolution over the channels; or after the first over time (fairseq: extractor_mode)."""
    conv_bias: bool = False
    """Whether the convolutions of the front-end have a bias."""
    conv_grad_scale: Annotated[float, Field(ge=0)] = 1.0
    """Gradients into the convolutions are multiplied by this; 0 freezes them (fairseq: feature_grad_mult)."""
    position_depth: Annotated[int, Field(gt=0)] = 5
    """Layers of the convolutional position encoder (fairseq: pos_conv_depth)."""
    position_kernel: Annotated[int, Field(gt=0)] = 19
    """Kernel of each of them (fairseq: conv_pos // pos_conv_depth)."""
    position_groups: Annotated[int, Field(gt=0)] = 16
    """Groups of each of them (fairseq: conv_pos_groups)."""
    position_padding: PaddingMode = "zero_input"
    """What the position convolutions see at padded positions. zero_input: zeros in the first of them; none: the embedded
    padding, as in the released version 2; zero_every_layer: zeros in each of them, and norms over time leave padding out, so
    that the features of a clip do not depend on the clips it is batched with."""
    alibi: bool = False
    """A penalty on attention that grows with distance, with a learned scale a head (data2vec 2.0)."""
    mask_vector: bool = True
    """A learned vector for hidden positions; data2vec 2.0 leaves them out and needs none."""


class WaveformEncoder(LocalEncoder):
    """Convolutions, a layer norm and a projection; the mask vector replaces whole frames."""

    def __init__(self, settings: SpeechSettings, width: int):
        super().__init__()
        channels = settings.conv_layers[-1][0]
        self.grad_scale = settings.conv_grad_scale
        self.padding_invariant = settings.position_padding == "zero_every_layer"
        self.conv = ConvFrontEnd(settings.conv_layers, settings.conv_norm, settings.conv_bias)
        self.conv.requires_grad_(settings.conv_grad_scale > 0)
        self.norm = nn.LayerNorm(channels)
        self.project = nn.Linear(channels, width)
        if settings.mask_vector:
            self.mask_vector = nn.Parameter(torch.empty(width).uniform_())

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        samples = (~batch.padding).sum(1) if batch.padding is not None else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.grad_scale > 0):
            x = self.conv(batch.input, samples if self.padding_invariant else None)
        if x.requires_grad and self.grad_scale != 1:
            x.register_hook(lambda gradient: gradient * self.grad_scale)
        padding = None
        if samples is not None:
            padding = torch.arange(x.shape[1], device=x.device) >= self.conv.length(samples)[:, None]
        return self.project(self.norm(x)), padding


class Speech(Modality):
    """Raw waveforms; convolutional features and positions (paper, section 3.1 and 4)."""

    Settings = SpeechSettings
    Data = loading.SpeechData
    kind = "audio"
    supports_padding = True

    def __init__(self, settings: SpeechSettings, data: loading.SpeechData):
        super().__init__(settings, data)
        self.seconds_per_position = math.prod(stride for _, _, stride in settings.conv_layers) / loading.RATE

    def build_local_encoder(self, width: int) -> WaveformEncoder:
        return WaveformEncoder(self.settings, width)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> ConvPositionEncoder:
        s = self.settings
        alibi = Alibi(heads, extra_tokens) if s.alibi else None
        return ConvPositionEncoder(
            width, s.position_depth, s.position_kernel, s.position_groups, alibi, padding=s.position_padding
        )

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return (output_length(self.settings.conv_layers, batch.input.shape[1]),)

    def examples(self, rows: Any) -> Examples:
        return loading.SpeechExamples(rows, self.data)

    def labelled(self, rows: Any) -> Examples:
        return loading.SpeechExamples(rows, self.data, whole=True)

    def collate(self, items: Sequence[Any]) -> Batch:
        return loading.collate(items)
