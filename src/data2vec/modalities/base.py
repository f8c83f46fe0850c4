"""What a modality is: everything the method needs to know about one kind of signal, and nothing more.

A modality supplies how raw input becomes a sequence of vectors (`features`), where positions come from (`positions`),
the shape of the grid on which masks are drawn (`grid`), and how examples are loaded and batched (`examples`,
`collate`). The method itself (`data2vec.objective`) never asks which modality it is working on.

Shapes: B batch, T positions, D width, H heads, E extra tokens (such as CLS).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.nn.position_encoders import PositionEncoder
from data2vec.settings import Settings


class LocalEncoder(nn.Module, ABC):
    """The local encoder: raw input to a sequence of vectors, and what stands at hidden positions."""

    mask_vector: nn.Parameter | None
    """(D,) a learned vector for hidden positions; not needed by data2vec 2.0, nor where `apply_mask` does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("mask_vector", None)

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Embed `batch.input`. Returns vectors (B, T, D) without positions, and the padding (B, T) or None."""

    def apply_mask(self, x: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
        """The student's view: `x` (B, T, D) with the learned mask vector wherever `mask` (B, T) is True.

        `shown`: the raw input that the student is given, for a local encoder that embeds it anew.

        Raises UserError when there is no such vector."""
        if self.mask_vector is None:
            raise UserError("modality.mask_vector: false leaves nothing to put at hidden positions; only data2vec2 needs none")
        return torch.where(mask[..., None], self.mask_vector.to(x.dtype), x)


class Examples(Protocol):
    """A set of examples that can be read in any order."""

    costs: np.ndarray
    """(n,) what each example weighs in a batch: seconds of audio; 1 for an image or a block of text."""

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
        """One decoded example, at most `limit` of its cost long, augmented by `rng` (None: as it is, for evaluation).

        Raises BadExample when it cannot be read."""

    def label(self, index: int, column: str) -> Any:
        """The value of `column` for this example."""

    def __len__(self) -> int: ...


class DataSettings(Settings):
    """The `data:` section that all modalities share; each adds its own crops, sizes and batch."""

    train: str | None = None
    """Where the training data is: a folder, a parquet file, tar shards, an address such as s3://…, or a hub data set."""
    valid: str | None = None
    """Held-out data of the same form."""
    split: str = "train"
    """Which split to take of a data set that has several."""
    streaming: bool = False
    """Read from start to end in bounded memory, instead of indexing everything first."""
    streams: Annotated[int, Field(gt=0)] = 16
    """With streaming: how many places of the data are read at once, its shards dealt out among them. Should be a multiple of
    processes × workers."""
    buffer: Annotated[int, Field(gt=0)] = 2048
    """With streaming: how many rows are held at once, over all streams, to be shuffled and grouped by length."""
    workers: int = 2
    """Processes that decode and augment (0: in the training process)."""
    max_bad: float = 0.01
    """The run stops when more than this share of the examples cannot be read."""

    @property
    def batch(self) -> float:
        """The global batch, in units of cost, over all devices and accumulated steps."""
        raise NotImplementedError

    @property
    def micro_batch(self) -> float:
        """At most this much on a device at a time; examples of one micro-batch are cropped and masked as one group."""
        raise NotImplementedError


class Modality(ABC):
    """One kind of signal. Plain data and methods, no parameters: it travels to the loader's workers."""

    Settings: ClassVar[type[Settings]]
    """What its `modality:` section holds."""
    Data: ClassVar[type[DataSettings]]
    """What its `data:` section holds."""
    kind: ClassVar[Literal["audio", "image", "text"]]
    """What to look for in a data set; not needed by a modality with `rows` of its own."""
    seconds_per_position: float | None = None
    """How far apart positions are in time, where they are."""
    supports_padding: bool = False
    """Whether inputs of different lengths can share a batch with the results they have alone, given a position encoder that
    zeroes padding in every layer (`data2vec.nn.position_encoders.PaddingMode`)."""

    def __init__(self, settings: Any, data: Any):
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

    def rows(self, where: str) -> Any:
        """Open the data set `where`, as the `data:` section says. Raises UserError when there is nothing of this kind."""
        from data2vec.data.sources.rows import open_rows

        return open_rows(where, self.kind, self.data.split, self.data.streaming)

    @abstractmethod
    def examples(self, rows: Any) -> Examples:
        """Turn rows of a data set (a `datasets.Dataset`, or a list of dicts when streaming) into examples."""

    def labelled(self, rows: Any) -> Examples:
        """The same for evaluation: an example for every row, whole and with its label."""
        return self.examples(rows)

    def save(self, folder: Path, examples: Examples | None) -> dict[str, str]:
        """Write into a model folder what `labelled` needs besides the settings, such as a tokenizer; nothing, for most.

        `examples`: those of the training data, or None when streaming. Returns the keys of `data` that point to what was
        written, as paths in the folder."""
        return {}

    @abstractmethod
    def collate(self, items: Sequence[Any]) -> Batch:
        """Loaded examples to a batch; shorter ones are padded and `padding` says where."""

    def replace(self, batch: Batch, replaced: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The student's raw input with random content at `replaced` (B, T); only for masks that ask for it."""
        raise TypeError(f"{type(self).__name__} cannot replace positions by random ones; use a mask with random: 0")
