"""Speech: 16 kHz waveforms, embedded by convolutions into 50 positions per second."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE, decode_audio, normalize_waveform, read_durations
from data2vec.data.dataset import DataSettings, ExampleDataset, Rows, column_value
from data2vec.errors import UserError, get_logger
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.modalities.chunking import CHUNK_SECONDS, OVERLAP_SECONDS, Chunk, split_into_chunks
from data2vec.modalities.log_mel import CEPSTRA, MEL_BANDS, frame_signal, log_mel, mfcc
from data2vec.nn.conv_feature_extractor import WAV2VEC, ConvFrontEnd, output_length, receptive_field
from data2vec.nn.position_encoders import Alibi, ConvPositionEncoder, PaddingMode

log = get_logger(__name__)

MIN_SECONDS = 0.025
"""The receptive field of the convolutional feature extractor: a shorter clip has no position."""

Seconds = Annotated[float, Field(gt=0)]
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


class SpeechData(DataSettings):
    """The `data:` section for speech. Defaults: data2vec 1 Base on LibriSpeech."""

    min_seconds: Seconds = 2.0
    """Shorter clips are left out (fairseq: min_sample_size)."""
    max_seconds: Seconds = 20.0
    """Longer clips are cropped at random (fairseq: max_sample_size)."""
    batch_seconds: Seconds = 3800.0
    """The global batch in seconds of audio (fairseq: max_tokens × GPUs × update_freq)."""
    micro_batch_seconds: Seconds = 237.5
    """The per-device micro-batch in seconds of audio; auto: the largest that fits, measured before the run."""

    @model_validator(mode="after")
    def _consistent(self) -> "SpeechData":
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds: {self.min_seconds:g} is more than max_seconds: {self.max_seconds:g}")
        if self.max_seconds > self.micro_batch_seconds:
            raise ValueError(
                f"max_seconds: {self.max_seconds:g} does not fit into micro_batch_seconds: {self.micro_batch_seconds:g}"
            )
        return self

    @property
    def batch(self) -> float:
        return self.batch_seconds

    @property
    def micro_batch(self) -> float:
        return self.micro_batch_seconds


class WaveformEncoder(LocalEncoder):
    """Convolutions, a layer norm and a projection; the mask vector replaces projected frames."""

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


class SpeechExamples(ExampleDataset):
    """Normalized clips. With `full`, for evaluation, no clip is left out for its length and costs are not capped.

    `num_short` counts the clips that were left out. Raises UserError when none remains."""

    def __init__(self, rows: Rows, settings: SpeechData, full: bool = False):
        self.rows = rows
        min_seconds = MIN_SECONDS if full else settings.min_seconds
        seconds, self.corrupt = read_durations(rows)
        usable = seconds >= min_seconds
        self.keys = np.flatnonzero(usable)
        self.num_short = int((seconds < min_seconds).sum())  # corrupt clips have NaN seconds, so they are not counted
        self.costs = seconds[usable] if full else np.minimum(seconds[usable], settings.max_seconds)
        self.num_cropped = 0 if full else int((seconds > settings.max_seconds).sum())
        if isinstance(rows, list):  # one window of a stream: the next one may have longer clips
            return
        if self.num_short:
            log.warning("%d of %d clips are shorter than %g s and are left out", self.num_short, len(rows), min_seconds)
        if not len(self.keys):
            if self.num_short:
                raise UserError(
                    f"all {len(rows)} clips are shorter than data.min_seconds: {min_seconds:g} (the longest has "
                    f"{np.nanmax(seconds):.2f} s): lower data.min_seconds or use longer clips"
                )
            raise UserError(f"none of the {len(rows)} clips can be read (such as {self.corrupt[0]}): use other data")

    @property
    def total(self) -> int:
        return len(self.rows)

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(S,) samples at 16 kHz of the normalized clip, cropped to `limit` seconds at a random place (`rng`), or at the start
        without `rng`."""
        waveform = normalize_waveform(decode_audio(self.rows[int(self.keys[index])]["audio"]))
        if limit is not None:
            length = math.floor(limit * SAMPLE_RATE + 1e-3)
            spare = max(0, len(waveform) - length)
            start = int(rng.integers(spare + 1)) if rng is not None else 0
            waveform = waveform[start : start + length]
            if len(waveform) < length:  # rounding in the resampler, or an inexact header
                waveform = np.pad(waveform, (0, length - len(waveform)))
        return torch.from_numpy(np.ascontiguousarray(waveform))

    def label(self, index: int, column: str) -> Any:
        return column_value(self.rows, int(self.keys[index]), column)


class Speech(Modality):
    """Raw waveforms with a convolutional local encoder and position encoder (paper, sections 3.1 and 4)."""

    Settings = SpeechSettings
    Data = SpeechData
    kind = "audio"
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
