"""Decoding of many inputs by worker processes, in order."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data2vec.data.corrupt import load_example
from data2vec.data.dataset import Rows
from data2vec.data.loader import init_worker
from data2vec.errors import CorruptExample, UserError
from data2vec.feature_extraction import num_positions
from data2vec.inputs import read_input
from data2vec.modalities.base import Modality

CHUNK = 32
"""Number of inputs that a worker decodes at a time."""
DecodedInput = tuple[str, Any]
"""The name of an input, and the decoded input or, as a string, why it cannot be decoded."""


def decode_in_order(modality: Modality, rows: Rows, first: int, positions: int) -> Iterator[list[DecodedInput]]:
    """The decoded inputs in order, from `first` on, in lists of at least `positions` positions."""
    chunks = [range(start, min(start + CHUNK, len(rows))) for start in range(first, len(rows), CHUNK)]
    loader = DataLoader(
        _DecodeDataset(modality, rows),
        batch_size=None,
        sampler=chunks,
        num_workers=min(modality.data.workers, len(chunks) // 2),
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else creating the iterator would advance the global random state
    )
    window: list[DecodedInput] = []
    size = 0
    for packed in loader:
        window += (chunk := pickle.loads(packed))
        size += sum(0 if isinstance(item, str) else num_positions(modality, item) for _, item in chunk)
        if size >= positions:
            yield window
            window, size = [], 0
    if window:
        yield window


class _DecodeDataset(Dataset[bytes]):
    """Decodes a range of inputs in a worker; pickled here, since every tensor sent by itself would take a file descriptor."""

    def __init__(self, modality: Modality, rows: Rows):
        self.modality, self.rows = modality, rows
        self.kind = getattr(modality, "kind", None)
        self.examples = modality.labelled(rows) if self.kind is None else None
        if hasattr(rows, "select_columns"):
            self.rows = rows.select_columns([name for name in (self.kind, "path", "key") if name in rows.column_names])

    def __getitem__(self, chunk: range) -> bytes:
        return pickle.dumps([self._read(index) for index in chunk])

    def _read(self, index: int) -> DecodedInput:
        row, name = self.rows[index], f"input {index + 1}"
        if isinstance(row, Path):
            name = str(row)
        elif isinstance(row, dict):
            signal = row.get(self.kind)
            name = (signal.get("path") if isinstance(signal, dict) else None) or row.get("path") or row.get("key") or name
        try:
            if self.examples is not None:
                return name, load_example(self.examples, index, None, None)
            return name, read_input(self.modality, row, name)
        except (CorruptExample, UserError) as error:
            return name, str(error)
