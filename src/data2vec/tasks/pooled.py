"""One vector an example and layer: the mean over an example's own positions, from frozen encoders."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data2vec import inference
from data2vec.data.loader import start_worker
from data2vec.errors import BadExample, UserError
from data2vec.modalities.base import Batch, Modality
from data2vec.nn import heads
from data2vec.nn.encoder import Encoder, undisturbed
from data2vec.tasks.labelled import Labelled

log = logging.getLogger(__name__)
T = TypeVar("T")


class Here(Protocol):
    """A process, and those it shares the work with."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def gather(self, values: list[T]) -> list[T]:
        """The lists of all processes, one after the other, on every process."""


@dataclass(frozen=True)
class Alone:
    """The only process."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def gather(self, values: list[T]) -> list[T]:
        """All there is."""
        return values


@torch.no_grad()
def pooled(encoders: Sequence[Encoder], modality: Modality, labelled: Labelled, here: Here) -> tuple[np.ndarray, Labelled]:
    """The features of labelled examples in every block of every encoder, which share the work of loading.

    The encoders are plain and in evaluation mode, on the device; processes share the batches, and all get all features.
    Returns float32 vectors (encoders, layers, n, D), and those n of the examples that can be read; the others are named in
    the log. Raises UserError when none can be read, or when features are no numbers."""
    from tqdm import tqdm

    costs = labelled.examples.costs[labelled.indices]
    groups = list(_batches(costs, modality.data.micro_batch))[here.rank :: here.world]
    plain = [undisturbed(encoder) for encoder in encoders]
    every = inference.mix("all", len(plain[0].transformer.blocks))
    batches: Any = DataLoader(
        _Loaded(modality, labelled, inference.most_on(here.device)),
        batch_size=None,
        sampler=groups,
        num_workers=modality.data.workers,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # else making the iterator would move the global random state
    )
    found: list[tuple[np.ndarray, np.ndarray]] = []
    quiet = True if here.rank else None
    for parts, bad in tqdm(batches, "features", len(groups), unit="batch", leave=False, disable=quiet):
        for name in bad:
            log.warning("left out: %s", name)
        for places, batch in parts:
            on_device = {key: value.to(here.device) for key, value in batch.items()}
            means = [heads.mean(*inference.run(encoder, on_device, every)) for encoder in plain]
            found.append((places, torch.stack(means).float().cpu().numpy()))
    found = here.gather(found)
    if not found:
        raise UserError(f"{labelled.name}: none of the {len(costs)} examples can be read")
    places, vectors = np.concatenate([part for part, _ in found]), np.concatenate([part for _, part in found], axis=2)
    if not np.isfinite(vectors).all():
        raise UserError("the features of this encoder are not numbers: its training went wrong, see its metrics.jsonl")
    order = np.argsort(places)  # the same however many processes there are
    return vectors[:, :, order], labelled.take(places[order])


def _batches(costs: np.ndarray, micro_batch: float) -> Iterator[np.ndarray]:
    """Places of examples of like length, rows · longest ≤ micro_batch in each batch."""
    order = np.argsort(-costs, kind="stable")
    start = 0
    while start < len(order):
        rows = max(1, int(micro_batch / costs[order[start]] + 1e-6))
        yield order[start : start + rows]
        start += rows


class _Loaded(Dataset[Any]):
    """In the worker: places become batches, with the places of their rows; and names of what is bad."""

    def __init__(self, modality: Modality, labelled: Labelled, most: int):
        self.modality, self.most, self.examples, self.indices = modality, most, labelled.examples, labelled.indices

    def __getitem__(self, places: np.ndarray) -> tuple[list[tuple[np.ndarray, Batch]], list[str]]:
        items: dict[int, Any] = {}
        bad = []
        for place in places:
            try:
                items[place] = self.examples.load(int(self.indices[place]), None, None)
            except BadExample as error:
                bad.append(str(error))
        batches = inference.batches(self.modality, list(items.values()), self.most)
        return [(np.array(list(items), np.int64)[rows], batch) for rows, batch in batches], bad
