"""Hashes of a model and of inputs, by which interrupted work is only resumed with the same."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch

from data2vec.data.cache import fingerprint
from data2vec.data.dataset import Rows
from data2vec.modalities.base import Modality
from data2vec.model import Model


def model_digest(model: Model) -> str:
    """A hash of the weights and the architecture settings, with those of the head."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (model.recipe.modality, model.recipe.encoder, *(() if model.head is None else (model.head.settings,))):
        digest.update(part.model_dump_json().encode())
    for module in (model.encoder, *(() if model.head is None else (model.head,))):
        for name, weight in module.state_dict().items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def content_digest(modality: Modality, rows: Rows) -> str:
    """A hash of the inputs, which changes if they or the files they point to change."""
    if hasattr(rows, "_fingerprint") and hasattr(modality, "kind"):
        return fingerprint(rows, modality.kind)
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(rows)):  # rows of a custom modality need not end when they are iterated
        row = rows[index]
        if isinstance(row, Path) and row.exists():
            stat = row.stat()
            row = str(row), stat.st_size, stat.st_mtime_ns
        digest.update(pickle.dumps(row))  # which says where it ends
    return digest.hexdigest()


def examples_digest(modality: Modality, rows: Rows, indices: np.ndarray) -> str:
    """A hash of labelled examples, those at `indices` (n,) of `rows`, and of the settings by which they are read."""
    digest = hashlib.blake2b(content_digest(modality, rows).encode(), digest_size=16)
    digest.update(indices.astype("<i8").tobytes())
    digest.update(modality.settings.model_dump_json().encode())
    digest.update(modality.data.model_dump_json(exclude={"train", "valid", "workers", "timeout_minutes"}).encode())
    return digest.hexdigest()
