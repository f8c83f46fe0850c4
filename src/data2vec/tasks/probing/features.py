"""Mean-pooled features of frozen encoders: one vector per example and layer."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.feature_extraction import Layers, batch_features, encode_chunks, layer_weights, pooled
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder, padding_invariant
from data2vec.tasks.eval_batches import read_batches
from data2vec.tasks.probing.dataset import ProbeSet


@torch.no_grad()
def pool_features(
    encoders: Sequence[Encoder], modality: Modality, probe_set: ProbeSet, process: Process, layers: Layers = "all"
) -> tuple[np.ndarray, ProbeSet]:
    """The features of labelled examples in every block of each encoder, averaged over an example's positions; or in other
    `layers`.

    The encoders are in evaluation mode, on the device; the examples are decoded once for all. Processes share the batches, and
    every process gets all features. Returns float32 vectors (encoders, layers, n, D), and the n examples that can be decoded;
    the others are logged. Raises UserError if none can be decoded, or if features are NaN or inf."""
    encoders = [padding_invariant(encoder) for encoder in encoders]
    weights = layer_weights(layers, len(encoders[0].transformer.blocks))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, batch in read_batches(modality, probe_set.examples, probe_set.indices, process, "features"):
        chunks = modality.chunks(batch)
        means = [
            pooled(encode_chunks(encoder, partial(batch_features, encoder, layers=weights), batch, chunks))
            for encoder in encoders
        ]
        parts.append((rows, torch.stack(means).float().cpu().numpy()))
    parts = process.all_gather(parts)
    if not parts:
        raise UserError(f"{probe_set.name}: none of the {len(probe_set.indices)} examples can be decoded")
    rows, vectors = np.concatenate([rows for rows, _ in parts]), np.concatenate([part for _, part in parts], axis=2)
    if not np.isfinite(vectors).all():
        raise UserError("this encoder's features are NaN or inf: its training diverged, see metrics.jsonl")
    order = np.argsort(rows)  # the same for any number of processes
    return vectors[:, :, order], probe_set.subset(rows[order])
