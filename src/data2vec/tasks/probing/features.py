"""Mean-pooled features of frozen encoders: one vector per example and layer."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from data2vec.batch import Batch
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.feature_extraction import (
    Layers,
    autocast,
    batch_features,
    encode_chunks,
    inference_encoder,
    layer_weights,
    pooled,
)
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.tasks.eval_batches import Compute, EvalPass, Output, gather_outputs
from data2vec.tasks.probing.dataset import ProbeSet


def pool_features(
    encoders: Sequence[Encoder], modality: Modality, probe_set: ProbeSet, process: Process, layers: Layers = "all"
) -> tuple[np.ndarray, ProbeSet]:
    """The features of labelled examples in every block of each encoder, averaged over an example's positions; or in other
    `layers`.

    The encoders are in evaluation mode, on the device; the examples are decoded once for all. Processes share the batches, and
    every process gets all features. Returns float32 vectors (encoders, layers, n, D), and the n examples that can be decoded;
    the others are logged. Raises UserError if none can be decoded, or if features are NaN or inf."""
    reading = EvalPass(modality, probe_set.examples, probe_set.indices, process.device)
    outputs = gather_outputs(reading, compute_pooled(encoders, modality, layers), process, "features")
    return stack_pooled(outputs, probe_set, len(encoders), encoders[0].transformer.settings.width)


def compute_pooled(
    encoders: Sequence[Encoder], modality: Modality, layers: Layers, precision: str = "fp32", compile: bool = False
) -> Compute:
    """What computes, for each row of a batch, the pooled features of `layers` of each encoder, flat, float32; matrix products
    are in this precision."""
    encoders = [inference_encoder(encoder, compile) for encoder in encoders]
    weights = layer_weights(layers, len(encoders[0].transformer.blocks))

    @torch.no_grad()
    def compute(batch: Batch) -> Sequence[np.ndarray]:
        chunks = modality.chunks(batch)
        with autocast(batch.input.device, precision):
            means = [
                pooled(encode_chunks(encoder, partial(batch_features, encoder, layers=weights), batch, chunks))
                for encoder in encoders
            ]
        vectors: np.ndarray = torch.stack(means).float().cpu().numpy()  # (encoders, layers, B, D)
        return list(np.moveaxis(vectors, 2, 0).reshape(vectors.shape[2], -1))

    return compute


def stack_pooled(outputs: list[Output], probe_set: ProbeSet, encoders: int, width: int) -> tuple[np.ndarray, ProbeSet]:
    """The pooled features (encoders, layers, n, D) of the n examples that can be decoded, and these examples.

    Raises UserError if there are none, or if features are NaN or inf."""
    if not outputs:
        raise UserError(f"{probe_set.name}: none of the {len(probe_set.indices)} examples can be decoded")
    vectors = np.stack([output for _, output in outputs]).reshape(len(outputs), encoders, -1, width)
    if not np.isfinite(vectors).all():
        raise UserError("this encoder's features are NaN or inf: its training diverged, see metrics.jsonl")
    return np.ascontiguousarray(np.moveaxis(vectors, 0, 2)), probe_set.subset(np.array([row for row, _ in outputs]))
