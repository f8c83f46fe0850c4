"""Datasets: the interfaces of examples and modalities to the loader, and the `data:` settings all modalities share."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from data2vec.batch import Batch
from data2vec.data.sources.columns import class_names, label_value
from data2vec.data.sources.selection import RowSelection
from data2vec.errors import UserError
from data2vec.settings import JsonDict, Settings

Row = JsonDict
"""One row of a dataset: the signal in column `audio`, `image` or `text`, undecoded, and any other columns."""
Signal = JsonDict
"""Undecoded audio, image or text: {"bytes": its content or None, "path": where it is or None}; or audio or an image in memory,
{"array": samples or pixels, "path": its name}, audio with "sampling_rate". One without content may say why (`UNREADABLE`)."""
UNREADABLE = "unreadable_because"
"""The key of a signal, or the column of texts, that says why it cannot be read; its `path` is then only a name."""
Rows = Any
"""A `datasets.Dataset`, a `datasets.IterableDataset` or a list of `Row`; the library has no type stubs."""


FEWEST_WORKERS, MOST_WORKERS = 2, 16
"""Of those that load data, where their number is derived; each holds decoded batches in memory."""


def array_of(value: Any) -> np.ndarray:
    """A tensor on any device, an array or a nested list as an array in the byte order of the machine, without gradients.

    Raises ValueError for lists of unequal lengths."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("lists of unequal lengths are no array") from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)


class DataSettings(Settings):
    """The `data:` section that all modalities share; each adds its own crops, sizes and batch."""

    train: str | None = None
    """Training data: a folder, a parquet file, tar shards, a URL such as s3://…, or a dataset on the hub, hf://owner/name."""
    valid: str | None = None
    """Validation data, in the same forms: labelled in fine-tuning; in pre-training, the loss on it is measured every
    `probe.every` steps."""
    train_rows: RowSelection = RowSelection()
    """The rows of `train` to use; all by default."""
    valid_rows: RowSelection = RowSelection()
    """The rows of `valid` to use; all by default."""
    split: str = "train"
    """The split of `train` to use: a name in the data, such as train-clean-100, or train, valid or test for all names that
    stand for it; all: everything. Data without splits counts as train."""
    valid_split: str = "valid"
    """The split of `valid` to use, in the same way. Data without splits counts as valid."""
    column: str | None = None
    """The column of the audio, image or text, or of the paths of its files. None: one with a known name, or the only one."""
    label: str | None = None
    """The column of the labels or transcripts of `train` and `valid`. None: the one that `objective.label` names."""
    follow_links: bool = False
    """Also read files outside of the folder of the data, which links in it and paths in its tables lead to. Otherwise such data
    is refused: data of others could name your private files."""
    streaming: bool = False
    """Read sequentially in bounded memory instead of indexing the dataset first."""
    num_streams: Annotated[int, Field(gt=0, le=2**20)] = 16
    """With streaming: how many streams are read in parallel; the shards are divided among them. Use a multiple of
    processes × workers."""
    shuffle_buffer: Annotated[int, Field(gt=0)] = 2048
    """With streaming: rows held in memory, over all streams, to be shuffled and bucketed by length."""
    workers: Annotated[int, Field(ge=0, le=512)] | None = None
    """Processes that decode and augment, of each training process (0: in the training process). null: the cores of the machine
    divided among its training processes, less one; 2 to 16, of which each part of a joint run has its share."""
    timeout_minutes: Annotated[float, Field(gt=0)] = 30.0
    """With workers: how long to wait for a batch, before the run stops because the workers hang."""
    allow_changes: bool = False
    """Resume although the training data is not what it was at the last checkpoint; otherwise that is an error."""
    max_corrupt: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run stops when more than this fraction of the examples cannot be decoded."""

    @property
    def num_workers(self) -> int:
        """`workers`, or as many as fit this machine; they change no batch."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return min(max(cores // processes - 1, FEWEST_WORKERS), MOST_WORKERS)

    @property
    def batch(self) -> float:
        """The global batch over all devices and accumulated steps, in units of `ExampleDataset.costs`."""
        raise NotImplementedError

    @property
    def micro_batch(self) -> float:
        """The largest per-device micro-batch, in the same units; its examples are cropped to one length and masked together."""
        raise NotImplementedError


class CountedDataSettings(DataSettings):
    """The `data:` section of a modality whose examples all cost 1. It declares both sizes, with its own unit and default."""

    if TYPE_CHECKING:
        batch_size: int
        micro_batch_size: int

    @property
    def batch(self) -> float:
        return self.batch_size

    @property
    def micro_batch(self) -> float:
        return self.micro_batch_size


class ExampleDataset(ABC):
    """A set of examples that can be decoded in any order. It is copied to the loader's workers, so it must be picklable."""

    costs: np.ndarray
    """(n,) what each example adds to a batch: seconds of audio; 1 for an image or a block of text."""
    corrupt: Sequence[str] = ()
    """ "name: reason" of every example that was left out because it cannot be read."""
    recordings: np.ndarray | None = None
    """(n,) which recording each example is a window of, if examples are windows; None if each is complete in itself."""
    num_cropped: int = 0
    """Examples that are longer than what is cropped of them."""

    @property
    def total(self) -> int:
        """The number of examples that `data.max_corrupt` is a fraction of, with those that were left out."""
        return len(self) + len(self.corrupt)

    @abstractmethod
    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
        """One decoded example, cropped to a cost of `limit` (None: not cropped) and augmented with `rng` (None: not augmented,
        for evaluation).

        Raises CorruptExample when it cannot be decoded."""

    def label(self, index: int, column: str) -> Any:
        """The value of `column` for this example. Raises UserError when there is no such column."""
        raise UserError(f"these examples have no column {column!r}")

    def cut(self, indices: np.ndarray) -> list[str]:
        """ "name: size" of those of the examples that are longer than the model takes, and lose their end."""
        return []

    def __len__(self) -> int:
        return len(self.costs)


class DataPipeline(Protocol):
    """What the loader needs of a modality (`data2vec.modalities.base.Modality`)."""

    @property
    def data(self) -> DataSettings:
        """The `data:` section."""

    def examples(self, rows: Rows) -> ExampleDataset:
        """Training examples from the rows of a dataset."""

    def collate(self, items: Sequence[Any]) -> Batch:
        """Batch decoded examples."""

    def grid(self, batch: Batch) -> tuple[int, ...]:
        """The shape of the positions of this batch's rows."""

    def padded_positions(self, batch: Batch) -> np.ndarray | None:
        """The positions (B, T) of the batch that are padding; None if no position is."""

    def replace(self, batch: Batch, replaced: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The student's raw input with random content at `replaced` (B, T)."""


def column_value(rows: Rows, index: int, column: str) -> Any:
    """The value of `column` in row `index`: a class, or a list of them, by name; None if it is missing, which is null, NaN,
    empty or the class -1. Raises UserError when there is no such column."""
    if isinstance(rows, list):
        return label_value(_existing(rows[index], column)[column])
    values, names = _column(rows, column)
    return label_value(values[index], names)


@lru_cache(maxsize=4)  # a row of a `datasets.Dataset` costs milliseconds, a whole column of numbers or texts hardly more
def _column(rows: Rows, column: str) -> tuple[Sequence[Any], list[str] | None]:
    """The values of a column, read at once unless they are signals to decode, and the names of its classes."""
    feature = _existing(rows.features, column)[column]
    values = rows[column]
    return (values if hasattr(feature, "decode_example") else values[:]), class_names(feature)


def _existing(columns: Any, column: str) -> Any:
    if column not in columns:
        raise UserError(f"there is no column {column!r} in the data, only {', '.join(columns)}")
    return columns
