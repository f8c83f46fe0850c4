"""A model as one module that takes raw input: normalization, padding, encoder and head.

Shapes: B inputs, S samples or T tokens of the longest, P positions, D width, V labels.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE, normalize_waveform
from data2vec.data.recordings.scaling import divisors
from data2vec.data.tokenizer import PAD, SPECIAL
from data2vec.errors import UserError
from data2vec.modalities.signal import Signals
from data2vec.modalities.sound import Sound, SoundSettings
from data2vec.modalities.speech import Speech
from data2vec.modalities.text import Text
from data2vec.modalities.video import Video
from data2vec.modalities.vision import Vision
from data2vec.model import Model
from data2vec.nn.encoder import padding_invariant
from data2vec.nn.heads import reads_class_token

RawInputs = dict[str, Tensor]
"""The inputs of a graph by name, in the order of its arguments."""


class Graph(nn.Module, ABC):
    """Raw input to `hidden` (B, P, D), zero beyond an input's own positions; `positions` (B,), the number of these; and for a
    model with a head `logits`, (B, V) or (B, P, V). The result for an input does not depend on the rest of its batch."""

    inputs: Mapping[str, str]
    """A description of each input, by name."""

    def __init__(self, model: Model):
        super().__init__()
        self.settings: Any = model.modality.settings
        self.encoder = copy.deepcopy(model.encoder).float().cpu().eval()
        self.head = None if model.head is None else copy.deepcopy(model.head).float().cpu().eval()

    @abstractmethod
    def size_range(self) -> tuple[int, int]:
        """The smallest size of an input and the largest to try: samples, tokens, or the (fixed) height and width in pixels."""

    @abstractmethod
    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        """Random inputs of these sizes, padded to the longest."""

    @abstractmethod
    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        """One of these inputs as a batch of its own, without padding, prepared as in this package."""

    @abstractmethod
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """The names of the axes of variable size, for each input."""

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of the graph for a batch."""
        x, padding = self.encoder.local_encoder(batch)
        extra, hidden = self.encoder.encode_with_extra(x, padding)
        if padding is None:
            positions = torch.full(hidden.shape[:1], hidden.shape[1], device=hidden.device)
        else:
            hidden, positions = hidden.masked_fill(padding[..., None], 0.0), (~padding).sum(1)
        outputs = {"hidden": hidden, "positions": positions}
        if self.head is not None:
            outputs["logits"] = self.head(extra[:, -1:] if reads_class_token(self.head) else hidden, padding)
        return outputs


class SpeechGraph(Graph):
    """Waveforms, each normalized over its own samples."""

    inputs: Mapping[str, str] = {
        "waveform": f"float32 (B, S), {SAMPLE_RATE} samples per second, not normalized, zero-padded, at least 2 positions long",
        "lengths": "int64 (B,), number of samples",
    }

    def __init__(self, model: Model):
        super().__init__(model)
        self.encoder = padding_invariant(self.encoder)

    def forward(self, waveform: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        padding = torch.arange(waveform.shape[1], device=waveform.device) >= lengths[:, None]
        count = lengths[:, None].clamp(min=1)
        mean = waveform.masked_fill(padding, 0.0).sum(1, keepdim=True) / count
        x = (waveform - mean).masked_fill(padding, 0.0)
        x = x / (x.square().sum(1, keepdim=True) / count + 1e-5).sqrt()
        return self.outputs(Batch(x, padding=padding))

    def size_range(self) -> tuple[int, int]:
        return self._samples(1), self._samples(250)

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        # The exporter specialises axes of length 1, so there are at least two positions, of which one may be padding.
        waveform = torch.zeros(len(sizes), max(*sizes, self._samples(2)))
        for row, size in zip(waveform, sizes, strict=True):
            row[:size] = 0.01 + 0.1 * torch.randn(size, generator=generator)
        return {"waveform": waveform, "lengths": torch.tensor(sizes)}

    def _samples(self, positions: int) -> int:
        """The number of samples of this many positions."""
        for _, kernel, stride in reversed(self.settings.conv_layers):
            positions = (positions - 1) * stride + kernel
        return positions

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        return Batch(torch.from_numpy(normalize_waveform(raw["waveform"][row, : raw["lengths"][row]].numpy()))[None])


class TextGraph(Graph):
    """Tokens of the model's tokenizer."""

    inputs: Mapping[str, str] = {
        "ids": "int64 (B, T), token ids with <s> before and </s> after each text, padded at the end with any id",
        "lengths": "int64 (B,), number of tokens",
    }

    def __init__(self, model: Model):
        super().__init__(model)
        self.encoder = padding_invariant(self.encoder)

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        padding = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
        return self.outputs(Batch(ids.masked_fill(padding, PAD), padding=padding))

    def size_range(self) -> tuple[int, int]:
        return 1, self.settings.max_length

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"ids": {0: "batch", 1: "tokens"}, "lengths": {0: "batch"}}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        shape = len(sizes), max(sizes)
        ids = torch.randint(len(SPECIAL), self.settings.vocab_size, shape, generator=generator)
        return {"ids": ids, "lengths": torch.tensor(sizes)}

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        return Batch(raw["ids"][row, : raw["lengths"][row]][None])


class VisionGraph(Graph):
    """Images as bytes."""

    inputs: Mapping[str, str] = {"image": "uint8 (B, 3, H, W), RGB, at the size of the model"}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.outputs(Batch(image))

    def size_range(self) -> tuple[int, int]:
        return self.settings.image, self.settings.image

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"image": {0: "batch"}}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        shape = len(sizes), 3, sizes[0], sizes[0]
        return {"image": torch.randint(256, shape, dtype=torch.uint8, generator=generator)}

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        return Batch(raw["image"][row][None])


class VideoGraph(Graph):
    """Clips, cropped and normalized."""

    def __init__(self, model: Model):
        super().__init__(model)
        s = self.settings
        scale = "(pixel / 255 - mean) / std" if s.values == "pixels" else "cut at its percentiles, mean 0 and deviation 1"
        self.inputs = {"clip": f"float32 (B, {s.frames}, {s.channels}, {s.image}, {s.image}), normalized: {scale}"}

    def forward(self, clip: Tensor) -> dict[str, Tensor]:
        return self.outputs(Batch(clip))

    def size_range(self) -> tuple[int, int]:
        return self.settings.frames, self.settings.frames

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"clip": {0: "batch"}}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        s = self.settings
        return {"clip": torch.randn(len(sizes), s.frames, s.channels, s.image, s.image, generator=generator)}

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        return Batch(raw["clip"][row][None])


class SignalGraph(Graph):
    """Windows of recordings, filtered and at the rate of the model; scaled here, unless the scale is that of each recording."""

    centre: Tensor
    divisor: Tensor

    def __init__(self, model: Model):
        super().__init__(model)
        self.encoder = padding_invariant(self.encoder)
        s = self.settings
        self.scales = s.scale.by in ("training", "none")
        centre, divisor = np.zeros(len(s.names)), np.full(len(s.names), s.scale.unit_size)
        if s.scale.by == "training":
            centre, divisor = np.array(s.scale.mean), divisors(np.array(s.scale.std), s.scale)
        self.register_buffer("centre", torch.from_numpy(centre).float())
        self.register_buffer("divisor", torch.from_numpy(divisor).float())
        scaled = "" if self.scales else f"; scaled by you to the statistics of the {s.scale.by}, ±{s.scale.clip:g} at most"
        self.inputs = {
            "signal": f"float32 (B, {s.window}, {len(s.names)}), {', '.join(s.names)} at {s.hertz:g} Hz; NaN is missing{scaled}"
        }

    def forward(self, signal: Tensor) -> dict[str, Tensor]:
        missing = signal.isnan()
        x = self.scaled(signal.masked_fill(missing, 0.0)).masked_fill(missing, 0.0)
        return self.outputs(Batch(x, padding=missing))

    def scaled(self, signal: Tensor) -> Tensor:
        """As the model takes it."""
        if not self.scales:
            return signal
        return ((signal - self.centre) / self.divisor).clamp(-self.settings.scale.clip, self.settings.scale.clip)

    def size_range(self) -> tuple[int, int]:
        return self.settings.patch, self.settings.window

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"signal": {0: "batch"}}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        shape = len(sizes), self.settings.window, len(self.settings.names)
        signal = self.centre + self.divisor * torch.randn(shape, generator=generator)
        for row, size in zip(signal, sizes, strict=True):
            row[size // self.settings.patch * self.settings.patch :] = torch.nan
        return {"signal": signal}

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        signal = raw["signal"][row]
        return Batch(self.scaled(signal[: int((~signal.isnan()).all(1).sum())])[None])


class SoundGraph(Graph):
    """Log-mel spectrograms, which are normalized inside."""

    inputs: Mapping[str, str] = {
        "log_mel": "float32 (B, F, N), log-mel values as in data2vec.modalities.fbank, not normalized; F a multiple of a patch",
        "lengths": "int64 (B,), number of frames, multiples of a patch",
    }
    settings: SoundSettings

    def forward(self, log_mel: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        padding = torch.arange(log_mel.shape[1], device=log_mel.device) >= lengths[:, None]
        return self.outputs(Batch(log_mel.masked_fill(padding[..., None], 0.0), padding=padding))

    def size_range(self) -> tuple[int, int]:
        return 1, max(2, self.settings.frames // self.settings.patch[0])

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"log_mel": {0: "batch", 1: "frames"}, "lengths": {0: "batch"}}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        time = self.settings.patch[0]
        frames = torch.zeros(len(sizes), max(2, *sizes) * time, self.settings.fbank.bins)
        for row, size in zip(frames, sizes, strict=True):
            row[: size * time] = torch.randn(size * time, self.settings.fbank.bins, generator=generator) + self.settings.fill
        return {"log_mel": frames, "lengths": time * torch.tensor(sizes)}

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        return Batch(raw["log_mel"][row, : raw["lengths"][row]][None])


class CustomGraph(Graph):
    """The input of a custom modality as its `collate` makes it, of any length if its examples have, without padding."""

    inputs: Mapping[str, str] = {"input": "(B, …), as collate() makes it, without padding"}

    def __init__(self, model: Model):
        super().__init__(model)
        self.modality = model.modality
        examples = [self.modality.example_input(positions) for positions in self.size_range()]
        self.has_lengths = examples[0].shape != examples[1].shape

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return self.outputs(Batch(input))

    def size_range(self) -> tuple[int, int]:
        return 2, 16

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {"input": {0: "batch"} | ({1: "length"} if self.has_lengths else {})}

    def random_inputs(self, sizes: Sequence[int], generator: torch.Generator) -> RawInputs:
        return {"input": torch.stack([self.modality.example_input(max(sizes)) for _ in sizes])}

    def single_batch(self, raw: RawInputs, row: int) -> Batch:
        return Batch(raw["input"][row][None])


def build_graph(model: Model) -> Graph:
    """The graph of a model, with a copy of its weights. Raises UserError for a head on a weighted sum of blocks, and for a
    modality that has no example input."""
    if model.head is not None and model.head.settings.weighted_layers is not None:
        raise UserError("head.weighted_layers: a head on a sum of blocks cannot be exported")
    graphs: dict[type, type[Graph]] = {
        Speech: SpeechGraph,
        Text: TextGraph,
        Vision: VisionGraph,
        Signals: SignalGraph,
        Sound: SoundGraph,
        Video: VideoGraph,
    }
    if (graph := graphs.get(type(model.modality))) is not None:
        return graph(model)
    return CustomGraph(model)
