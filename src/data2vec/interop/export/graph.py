"""A model as one graph that takes raw input: normalisation, padding, encoder and head, and nothing from outside.

Shapes: B inputs, S samples or T tokens of the longest, P positions, D width, V labels.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE, normalize_waveform
from data2vec.data.tokenizer import PAD, SPECIAL
from data2vec.errors import UserError
from data2vec.modalities.speech import Speech
from data2vec.modalities.text import Text
from data2vec.modalities.vision import Vision
from data2vec.model import Model
from data2vec.nn.encoder import padding_invariant

Raw = dict[str, Tensor]
"""The inputs of a graph by name, in its order."""


class Graph(nn.Module, ABC):
    """Raw input to `hidden` (B, P, D), which is zero beyond an input's own positions; `positions` (B,), how many these are;
    and, where the model has a head, `logits`, (B, V) or (B, P, V). What an input is batched with changes nothing."""

    inputs: ClassVar[dict[str, str]]
    """What goes in, in words."""

    def __init__(self, model: Model):
        super().__init__()
        self.settings: Any = model.modality.settings
        self.encoder = copy.deepcopy(model.encoder).float().cpu().eval()
        self.head = None if model.head is None else copy.deepcopy(model.head).float().cpu().eval()

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """The least size of an input, and the greatest to be tried: samples, tokens, or pixels a side, which are fixed."""

    @abstractmethod
    def draw(self, sizes: Sequence[int], generator: torch.Generator) -> Raw:
        """Random inputs of these sizes, padded to the longest."""

    @abstractmethod
    def alone(self, raw: Raw, row: int) -> Batch:
        """One of these inputs as the library makes a batch of it alone, without padding."""

    @abstractmethod
    def axes(self) -> dict[str, dict[int, str]]:
        """The names of those axes of the inputs that have no fixed size."""

    def outputs(self, hidden: Tensor, padding: Tensor | None) -> dict[str, Tensor]:
        """Of what the encoder makes, what the graph gives."""
        if padding is None:
            positions = torch.full(hidden.shape[:1], hidden.shape[1], device=hidden.device)
        else:
            hidden, positions = hidden.masked_fill(padding[..., None], 0.0), (~padding).sum(1)
        head = {} if self.head is None else {"logits": self.head(hidden, padding)}
        return {"hidden": hidden, "positions": positions} | head


class SpeechGraph(Graph):
    """Waveforms as they were recorded, each normalised over its own samples."""

    inputs: ClassVar = {
        "waveform": f"float32 (B, S), {SAMPLE_RATE} samples per second, not normalized, zero-padded, at least 2 positions long",
        "lengths": "int64 (B,), samples of each",
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
        return self.outputs(*self.encoder(Batch(x, padding=padding)))

    def sizes(self) -> tuple[int, int]:
        return self._samples(1), self._samples(250)

    def axes(self) -> dict[str, dict[int, str]]:
        return {"waveform": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}

    def draw(self, sizes: Sequence[int], generator: torch.Generator) -> Raw:
        # To the exporter an axis of length 1 is another graph; so there are two positions at least, one maybe of padding.
        waveform = torch.zeros(len(sizes), max(*sizes, self._samples(2)))
        for row, size in zip(waveform, sizes, strict=True):
            row[:size] = 0.01 + 0.1 * torch.randn(size, generator=generator)
        return {"waveform": waveform, "lengths": torch.tensor(sizes)}

    def _samples(self, positions: int) -> int:
        """What so many positions take."""
        for _, kernel, stride in reversed(self.settings.conv_layers):
            positions = (positions - 1) * stride + kernel
        return positions

    def alone(self, raw: Raw, row: int) -> Batch:
        return Batch(torch.from_numpy(normalize_waveform(raw["waveform"][row, : raw["lengths"][row]].numpy()))[None])


class TextGraph(Graph):
    """Tokens of the model's own tokenizer."""

    inputs: ClassVar = {
        "ids": "int64 (B, T), tokens with <s> before and </s> after each text, padded with anything at the end",
        "lengths": "int64 (B,), tokens of each",
    }

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        padding = torch.arange(ids.shape[1], device=ids.device) >= lengths[:, None]
        return self.outputs(*self.encoder(Batch(ids.masked_fill(padding, PAD), padding=padding)))

    def sizes(self) -> tuple[int, int]:
        return 1, self.settings.max_length

    def axes(self) -> dict[str, dict[int, str]]:
        return {"ids": {0: "batch", 1: "tokens"}, "lengths": {0: "batch"}}

    def draw(self, sizes: Sequence[int], generator: torch.Generator) -> Raw:
        shape = len(sizes), max(sizes)
        ids = torch.randint(len(SPECIAL), self.settings.vocab_size, shape, generator=generator)
        return {"ids": ids, "lengths": torch.tensor(sizes)}

    def alone(self, raw: Raw, row: int) -> Batch:
        return Batch(raw["ids"][row, : raw["lengths"][row]][None])


class VisionGraph(Graph):
    """Pictures as bytes."""

    inputs: ClassVar = {"image": "uint8 (B, 3, H, W), red, green, blue, at the model's own size"}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.outputs(*self.encoder(Batch(image)))

    def sizes(self) -> tuple[int, int]:
        return self.settings.image, self.settings.image

    def axes(self) -> dict[str, dict[int, str]]:
        return {"image": {0: "batch"}}

    def draw(self, sizes: Sequence[int], generator: torch.Generator) -> Raw:
        shape = len(sizes), 3, sizes[0], sizes[0]
        return {"image": torch.randint(256, shape, dtype=torch.uint8, generator=generator)}

    def alone(self, raw: Raw, row: int) -> Batch:
        return Batch(raw["image"][row][None])


def build(model: Model) -> Graph:
    """The graph of a model, with a copy of its weights. Raises UserError for a modality whose raw input is not known, and for a
    head on a sum of blocks."""
    if model.head is not None and model.head.settings.weighted_layers is not None:
        raise UserError("head.weighted_layers: a head on a sum of blocks cannot be exported")
    for modality, graph in ((Speech, SpeechGraph), (Text, TextGraph), (Vision, VisionGraph)):
        if type(model.modality) is modality:
            return graph(model)
    raise UserError(f"export knows the input of speech, vision and text, not of {type(model.modality).__qualname__}")
