"""Speech: 16 kHz waveforms, embedded by convolutions into 50 positions per second."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE, decode_audio, normalize_waveform
from data2vec.data.dataset import Rows
from data2vec.data.mixing import WaveformMixing
from data2vec.modalities.audio_clips import ClipData, ClipExamples, crop_waveform
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.modalities.chunking import CHUNK_SECONDS, OVERLAP_SECONDS, Chunk, split_into_chunks
from data2vec.modalities.log_mel import CEPSTRA, MEL_BANDS, frame_signal, log_mel, mfcc
from data2vec.nn.conv_feature_extractor import WAV2VEC, ConvFrontEnd, output_length, receptive_field
from data2vec.nn.layer_norm import LayerNorm
from data2vec.nn.position_encoders import Alibi, ConvPositionEncoder, PaddingMode

MIN_SECONDS = 0.025
"""The receptive field of the convolutional feature extractor: a shorter clip has no position."""

Size = Annotated[int, Field(gt=0, le=2**14)]
ConvLayer = Annotated[tuple[Size, Size, Size], Field(strict=False)]


class SpeechSettings(ModalitySettings):
    """The `modality:` section for speech."""

    name: Literal["speech"] = "speech"
    conv_layers: Annotated[tuple[ConvLayer, ...], Field(strict=False, max_length=64)] = WAV2VEC
    """(channels, kernel, stride) of each convolution of the feature extractor (fairseq: conv_feature_layers)."""
    conv_norm: Literal["layer", "group"] = "layer"
    """Layer norm after every convolution; or group norm over time after the first one (fairseq: extractor_mode)."""
    conv_bias: bool = False
    """Whether the convolutions of the feature extractor have a bias (fairseq: conv_bias)."""
    conv_grad_scale: Annotated[float, Field(ge=0)] = 1.0
    """Factor on the gradients of the convolutions; 0 freezes them (fairseq: feature_grad_mult)."""
    position_depth: Annotated[int, Field(gt=0, le=2**10)] = 5
    """Layers of the convolutional position encoder (fairseq: pos_conv_depth)."""
    position_kernel: Annotated[int, Field(gt=0, le=2**10)] = 19
    """Kernel size of each of its layers (fairseq: conv_pos // pos_conv_depth)."""
    position_groups: Annotated[int, Field(gt=0, le=2**10)] = 16
    """Convolution groups of each of its layers (fairseq: conv_pos_groups)."""
    position_padding: PaddingMode = "zero_input"
    """What the position convolutions see at padded positions. zero_input: zeros in the first of them; none: the embedded
    padding, as in the released version 2; zero_every_layer: zeros in each of them, and norms over time leave padding out, so
    that the features of a clip do not depend on the clips it is batched with."""
    alibi: bool = False
    """ALiBi: an attention bias that decreases with distance, with a learned scale per head (data2vec 2.0)."""
    mask_vector: bool = True
    """A learned vector for masked positions; data2vec 2.0 does not encode them and needs none."""


class SpeechData(ClipData):
    """The `data:` section for speech. Defaults: data2vec 1 Base on LibriSpeech."""


class WaveformEncoder(LocalEncoder):
    """Convolutions, a layer norm and a projection; the mask vector replaces projected frames."""

    def __init__(self, settings: SpeechSettings, width: int):
        super().__init__()
        channels = settings.conv_layers[-1][0]
        self.grad_scale = settings.conv_grad_scale
        self.padding_invariant = settings.position_padding == "zero_every_layer"
        self.conv = ConvFrontEnd(settings.conv_layers, settings.conv_norm, settings.conv_bias)
        self.conv.requires_grad_(settings.conv_grad_scale > 0)
        self.norm = LayerNorm(channels)
        self.project = nn.Linear(channels, width)
        if settings.mask_vector:
            self.mask_vector = nn.Parameter(torch.empty(width).uniform_())

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        x, padding = self.extract(batch)
        return self.project(self.norm(x)), padding

    def extract(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The output of the convolutions (B, T, C), before norm and projection, and the padding (B, T) or None."""
        samples = (~batch.padding).sum(1) if batch.padding is not None else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.grad_scale > 0):
            x = self.conv(batch.input, samples if self.padding_invariant else None)
        if x.requires_grad and self.grad_scale != 1:
            x.register_hook(lambda gradient: gradient * self.grad_scale)
        padding = None
        if samples is not None:
            padding = torch.arange(x.shape[1], device=x.device) >= self.conv.length(samples)[:, None]
        return x, padding


class SpeechExamples(ClipExamples):
    """Normalized clips. With `full`, for evaluation, no clip is left out for its length and costs are not capped."""

    def __init__(self, rows: Rows, settings: SpeechData, full: bool = False):
        super().__init__(rows, settings, MIN_SECONDS, full)

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(S,) samples at 16 kHz of the normalized clip, cropped to `limit` seconds at a random place (`rng`), or at the start
        without `rng`."""
        waveform = normalize_waveform(decode_audio(self.rows[int(self.keys[index])]["audio"]))
        if limit is not None:
            waveform = crop_waveform(waveform, limit, SAMPLE_RATE, rng)
        return torch.from_numpy(np.ascontiguousarray(waveform))


class Speech(Modality):
    """Raw waveforms with a convolutional local encoder and position encoder (paper, sections 3.1 and 4)."""

    Settings = SpeechSettings
    Data = SpeechData
    kind = "audio"
    Mixing = WaveformMixing
    supports_padding = True

    settings: SpeechSettings
    data: SpeechData

    def __init__(self, settings: SpeechSettings, data: SpeechData):
        super().__init__(settings, data)
        self.seconds_per_position = receptive_field(settings.conv_layers)[1] / SAMPLE_RATE

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

    def input_features(self) -> Mapping[str, InputFeatures]:
        field, stride = receptive_field(self.settings.conv_layers)

        def raw(batch: Batch) -> Tensor:
            return frame_signal(batch.input, self.grid(batch)[0], (field - stride) // 2, stride, stride)

        return {
            "raw": InputFeatures(stride, raw),
            "log_mel": InputFeatures(MEL_BANDS, lambda b: log_mel(b.input, self.grid(b)[0], field / 2, stride)),
            "mfcc": InputFeatures(3 * CEPSTRA, lambda b: mfcc(b.input, self.grid(b)[0], field / 2, stride)),
        }

    def examples(self, rows: Rows) -> SpeechExamples:
        return SpeechExamples(rows, self.data)

    def labelled(self, rows: Rows) -> SpeechExamples:
        return SpeechExamples(rows, self.data, full=True)

    def collate(self, items: Sequence[Tensor]) -> Batch:
        return Batch.stack(items)

    def chunks(
        self, batch: Batch, chunk_seconds: float = CHUNK_SECONDS, overlap_seconds: float = OVERLAP_SECONDS
    ) -> Sequence[Chunk] | None:
        """None if the batch is no longer than a chunk."""
        chunks = split_into_chunks(batch.input.shape[1], chunk_seconds, overlap_seconds, self.settings.conv_layers)
        return chunks if len(chunks) > 1 else None
