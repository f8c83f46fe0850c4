"""The base class of modalities: everything the method needs to know about one kind of signal, and nothing more.

A modality supplies how raw input becomes a sequence of vectors (`build_local_encoder`), where positions come from
(`build_position_encoder`), the grid on which masks are drawn (`grid`), and how examples are loaded and batched
(`examples`, `collate`). The method (`data2vec.objective`) never asks which modality it is working on.

Shapes: B batch, T positions, D width, H heads, E extra tokens (such as CLS).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data.dataset import DataSettings, ExampleDataset, Rows
from data2vec.data.mixing import ImageMixing, WaveformMixing
from data2vec.data.sources.formats import SignalKind
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.sources.selection import RowSelection, select_rows
from data2vec.data.sources.splits import ALL, TRAIN, VALID
from data2vec.errors import UserError
from data2vec.modalities.chunking import Chunk
from data2vec.nn.position_encoders import PositionEncoder
from data2vec.nn.transformer import init_weights
from data2vec.settings import JsonDict, JsonMapping, Settings


class ModalitySettings(Settings):
    """The `modality:` section that all modalities share."""

    name: str
    """speech, vision, text, signal, sound, video, joint, or "module:Class" for a custom modality."""


class LocalEncoder(nn.Module, ABC):
    """Raw input to a sequence of vectors, and what replaces the vectors of masked positions."""

    mask_vector: nn.Parameter | None
    """(D,) a learned vector for masked positions; unused by data2vec 2.0, and by subclasses that override `apply_mask`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("mask_vector", None)

    def init_projection(self, width: int, mask_vector: bool, xavier: nn.Linear | None = None) -> None:
        """Initialise linear layers as BEiT does, but `xavier` by Glorot's uniform rule; with `mask_vector`, make one (D,)."""
        init_weights(self, "beit")
        if xavier is not None:
            nn.init.xavier_uniform_(xavier.weight)
        if mask_vector:
            self.mask_vector = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02, a=-0.02, b=0.02))

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Embed `batch.input`. Returns vectors (B, T, D) without positions, and the padding (B, T) or None."""

    def apply_mask(self, x: Tensor, mask: Tensor, student_input: Tensor) -> Tensor:
        """`x` (B, T, D) with the learned mask vector where `mask` (B, T) is True.

        `student_input`: the student's raw input, for a local encoder that embeds it again. Raises UserError without a mask
        vector."""
        if self.mask_vector is None:
            raise UserError(
                "modality.mask_vector: false, but this objective needs a mask vector: set it to true, or use data2vec2"
            )
        return torch.where(mask[..., None], self.mask_vector.to(x.dtype), x)


class InputFeatures(NamedTuple):
    """Features of the raw input by position, for objectives that predict these."""

    width: int
    """F, features of a position."""
    compute: Callable[[Batch], Tensor]
    """The features (B, T, F) of a batch, on its device."""


class Modality(ABC):
    """One kind of signal. It has no parameters, and is copied to the loader's workers."""

    Settings: ClassVar[type[ModalitySettings]]
    """The class of the `modality:` section."""
    Data: ClassVar[type[DataSettings]]
    """The class of the `data:` section."""
    kind: ClassVar[SignalKind]
    """What to look for in a dataset; a modality that overrides `rows` does not need it."""
    seconds_per_position: float | None = None
    """The time between positions, for signals in time."""
    supports_padding: bool = False
    """Whether inputs of different lengths can share a batch with the results they have alone, given a position encoder that
    zeroes padding in every layer (`data2vec.nn.position_encoders.PaddingMode`)."""

    Mixing: ClassVar[type[ImageMixing | WaveformMixing] | None] = None
    """The class of `objective.mixing`, by which the inputs of a batch are mixed in fine-tuning; None: they cannot be."""

    whole_split: str = TRAIN
    """The split that data without splits counts as."""

    input_width: int | None = None
    """Numbers per position, of a custom modality whose batches have an `input` (B, T, …) with all of them: its "raw"
    `input_features`."""

    settings: ModalitySettings
    data: DataSettings

    def __init__(self, settings: ModalitySettings, data: DataSettings):
        self.settings = settings
        self.data = data

    @abstractmethod
    def build_local_encoder(self, width: int) -> LocalEncoder:
        """Build the local encoder for a Transformer of this width."""

    @abstractmethod
    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        """Build the position encoder."""

    @abstractmethod
    def grid(self, batch: Batch) -> tuple[int, ...]:
        """The shape of the positions of this batch's rows: (T,) for a sequence, (rows, columns) for an image."""

    def padded_positions(self, batch: Batch) -> np.ndarray | None:
        """The positions (B, T) of a pre-training batch that are padding, which are never masked or predicted; None by default,
        as examples are cropped to one length."""
        return None

    def measure(self, path: str) -> JsonMapping:
        """Settings that must be read off the training data before a run, by dotted key; none by default. They are written to
        the recipe of the run, and so travel with the weights."""
        return {}

    def data_defaults(self) -> JsonDict:
        """Defaults of the `data:` section for fine-tuning a model of this modality, instead of the general ones; none by
        default."""
        return {}

    def input_features(self) -> Mapping[str, InputFeatures]:
        """The features of the raw input that objectives can predict, by name: "raw" and others; none by default."""
        if self.input_width is None:
            return {}
        return {"raw": InputFeatures(self.input_width, lambda batch: batch.input.flatten(2).float())}

    def rows(self, path: str) -> Rows:
        """Open the dataset at `path`, as the `data:` section says. Raises UserError when it holds nothing of this kind."""
        data = self.data
        return open_dataset(
            path, self.kind, data.split, data.streaming, data.column, self.whole_split, follow_links=data.follow_links
        )

    def selected_rows(self, path: str, selection: RowSelection, name: str) -> Rows:
        """The rows of the dataset at `path` that `selection`, the setting `name`, selects. A selection by column `split`
        replaces `data.split`. Raises UserError if that is none."""
        by_split = "split" in {**selection.where, **selection.exclude}
        reader = self.reading(self.whole_split, split=ALL) if by_split else self
        return select_rows(reader.rows(path), selection, name, getattr(self, "kind", None))

    def reading(self, whole_split: str = TRAIN, **changes: Any) -> Self:
        """The same modality with another `whole_split` and other settings of `data`."""
        other = copy.copy(self)
        other.whole_split, other.data = whole_split, self.data.model_copy(update=changes)
        return other

    def validation(self) -> Self:
        """The same modality, which reads `data.valid_split`."""
        return self.reading(VALID, split=self.data.valid_split)

    @abstractmethod
    def examples(self, rows: Rows) -> ExampleDataset:
        """Training examples from rows: a `datasets.Dataset`, or a list of dicts when streaming."""

    def labelled(self, rows: Rows) -> ExampleDataset:
        """Evaluation examples: one for every row, not cropped, with its label."""
        return self.examples(rows)

    def save(self, folder: Path, examples: ExampleDataset | None) -> dict[str, str]:
        """Write the files, such as a tokenizer, that a saved model needs besides its settings; most modalities need none.

        `examples`: those of the training data, or None when streaming. Returns the keys of `data` that name the files, with
        their paths relative to `folder`."""
        return {}

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """Batch decoded examples; shorter ones are padded and marked in `padding`."""

    def chunks(self, batch: Batch) -> Sequence[Chunk] | None:
        """How the input of a batch, a single long row, is encoded in chunks; None: at once."""
        return None

    def example_input(self, positions: int) -> Tensor:
        """The raw input, (…) as a row of a batch has it, of some example of this many positions; for the export of models.

        Raises UserError by default, and for a number of positions that no input has."""
        raise UserError(
            f"{type(self).__qualname__} cannot be exported: define example_input(positions), the raw input of an example"
        )

    def replace(self, batch: Batch, replaced: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The student's raw input with random content at `replaced` (B, T); only for masks with `random` > 0."""
        raise TypeError(f"{type(self).__name__} cannot replace positions with random ones; use a mask with random: 0")
