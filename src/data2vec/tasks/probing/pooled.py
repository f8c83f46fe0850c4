"""One vector an example and layer: the mean over an example's own positions, from frozen encoders."""

from collections.abc import Sequence

import numpy as np
import torch

from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.feature_extraction import batch_features, layer_weights
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder, padding_invariant
from data2vec.nn.heads import mean_pool
from data2vec.tasks.extraction.batched_reading import read_batches
from data2vec.tasks.probing.labelled import Labelled


@torch.no_grad()
def pooled(
    encoders: Sequence[Encoder], modality: Modality, labelled: Labelled, process: Process
) -> tuple[np.ndarray, Labelled]:
    """The features of labelled examples in every block of every encoder, which share the work of loading.

    The encoders are plain and in evaluation mode, on the device; processes share the batches, and all get all features.
    Returns float32 vectors (encoders, layers, n, D), and those n of the examples that can be read; the others are named in
    the log. Raises UserError when none can be read, or when features are no numbers."""
    plain = [padding_invariant(encoder) for encoder in encoders]
    every = layer_weights("all", len(plain[0].transformer.blocks))
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for places, batch in read_batches(modality, labelled.examples, labelled.indices, process, "features"):
        means = [mean_pool(*batch_features(encoder, batch, every)) for encoder in plain]
        found.append((places, torch.stack(means).float().cpu().numpy()))
    found = process.all_gather(found)
    if not found:
        raise UserError(f"{labelled.name}: none of the {len(labelled.indices)} examples can be read")
    places, vectors = np.concatenate([part for part, _ in found]), np.concatenate([part for _, part in found], axis=2)
    if not np.isfinite(vectors).all():
        raise UserError("the features of this encoder are not numbers: its training went wrong, see its metrics.jsonl")
    order = np.argsort(places)  # the same however many processes there are
    return vectors[:, :, order], labelled.take(places[order])
