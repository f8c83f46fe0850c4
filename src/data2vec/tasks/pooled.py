"""One vector an example and layer: the mean over an example's own positions, from frozen encoders."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data2vec.errors import BadExample
from data2vec.modalities.base import Batch, Examples, Modality
from data2vec.nn.encoder import Encoder

log = logging.getLogger(__name__)


@torch.inference_mode()
def pooled(
    encoders: Sequence[Encoder], modality: Modality, examples: Examples, indices: np.ndarray, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The features of examples `indices` in every block of every encoder, which share the work of loading.

    Returns vectors (encoders, layers, n, D), and for each of the n its place in `indices`; what cannot be read is left out,
    and named in the log."""
    from tqdm import tqdm

    groups = list(_batches(examples.costs[indices], modality.data.micro_batch))
    batches: Any = DataLoader(
        _Loaded(modality, examples, indices),
        batch_size=None,
        sampler=groups,
        num_workers=modality.data.workers,
        generator=torch.Generator(),  # else making the iterator would move the global random state
    )
    vectors, found = [], []
    for parts, bad in tqdm(batches, "features", len(groups), unit="batch", leave=False, disable=None):
        for name in bad:
            log.warning("left out: %s", name)
        for kept, batch in parts:
            here = {key: value.to(device) for key, value in batch.items()}
            vectors.append(torch.stack([_means(encoder, here) for encoder in encoders]).float().cpu().numpy())
            found.append(kept)
    if not found:
        return np.empty((len(encoders), 0, 0, 0)), np.empty(0, np.int64)
    return np.concatenate(vectors, axis=2), np.concatenate(found)


def _means(encoder: Encoder, batch: Batch) -> Tensor:
    """(layers, B, D): every block's output, averaged over the positions that are there."""
    blocks: list[Tensor] = []
    _, padding = encoder(batch, visit=lambda index, ffn, block: blocks.append(block))
    x = torch.stack(blocks)
    if padding is None:
        return x.mean(2)
    there = ~padding[..., None]
    return torch.where(there, x, 0).sum(2) / there.sum(1).clamp(min=1)


def _batches(costs: np.ndarray, micro_batch: float) -> Iterator[np.ndarray]:
    """Places of examples of like length, rows · longest ≤ micro_batch in each batch."""
    order = np.argsort(-costs, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, int(micro_batch / costs[order[start]] + 1e-6))
        yield order[start : start + rows]
        start += rows


class _Loaded(Dataset[Any]):
    """In the worker: places become batches of one length each, with the places of their rows; and names of what is bad.

    Padding would reach into the last positions through convolutions."""

    def __init__(self, modality: Modality, examples: Examples, indices: np.ndarray):
        self.modality, self.examples, self.indices = modality, examples, indices

    def __getitem__(self, places: np.ndarray) -> tuple[list[tuple[np.ndarray, Batch]], list[str]]:
        alike: dict[Any, list[tuple[int, Any]]] = {}
        bad = []
        for place in places:
            try:
                item = self.examples.load(int(self.indices[place]), None, None)
                alike.setdefault(getattr(item, "shape", None), []).append((place, item))
            except BadExample as error:
                bad.append(str(error))
        return [
            (np.array([place for place, _ in part], np.int64), self.modality.collate([item for _, item in part]))
            for part in alike.values()
        ], bad
