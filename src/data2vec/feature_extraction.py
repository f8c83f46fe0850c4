"""Feature extraction, in batches of similar length that do not change any input's features, and in chunks of long recordings.

Shapes: B inputs, T positions of the longest, L requested layers, D width.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from data2vec.batch import Batch
from data2vec.data.bucketing import pad_by_length
from data2vec.errors import UserError, get_logger
from data2vec.modalities.base import Modality
from data2vec.modalities.chunking import Chunk
from data2vec.nn.compilation import require_compiler, with_compiled_blocks
from data2vec.nn.encoder import Encoder, padding_invariant
from data2vec.nn.heads import Head, head_input, mean_pool, reads_class_token

log = get_logger(__name__)

Layers = Literal["last", "all", "states", "mean"] | int | Sequence[float]
"""The encoder's output, after its final norm if it has one ("last"); the output of every block ("all") or their mean ("mean");
the input of the first block and the output of every block ("states"), as transformers and s3prl count hidden states; one block,
counted from 1, or from the end when negative; or a weighted sum of all blocks, one weight each."""
MANY_LAYERS = ("all", "states")
"""What gives several layers; all else gives one."""
LayerWeights = list[list[float]] | None
"""(L, blocks + 1) weights of the encoder's states, the input of the first block first; None means the encoder's output."""
PRECISIONS = ("fp32", "bf16")
"""Of matrix products over many inputs; weights and results stay float32."""
DEFAULT_POSITIONS = {"cpu": 1024, "cuda": 8192}
"""Positions per batch, padding included: more would overflow the processor's caches, or the memory of a small GPU."""


@dataclass(frozen=True)
class FeatureBatch:
    """Features of several inputs."""

    hidden: Tensor
    """(L, B, T, D), zero past each input's length; (L, B, D) if pooled."""
    lengths: Tensor
    """(B,) positions of each input."""
    seconds: Tensor | None
    """(T,) start time of each position; None for images and text."""


@dataclass(frozen=True)
class LogitBatch:
    """What the head of a fine-tuned model computes for several inputs."""

    logits: Tensor
    """(B, V), a number for each label; of CTC (B, T, V), zero past each input's length."""
    lengths: Tensor | None
    """(B,) positions of each input, of CTC; None for one output per input."""


def layer_weights(layers: Layers, depth: int) -> LayerWeights:
    """The weights that `layers` selects in an encoder of `depth` blocks. Raises UserError for a layer that does not exist."""
    choice: Any = layers
    if layers == "last":
        return None
    if layers == "all":
        return torch.eye(depth + 1)[1:].tolist()
    if layers == "states":
        return torch.eye(depth + 1).tolist()
    if layers == "mean":
        return [[0.0] + [1 / depth] * depth]
    try:
        if hasattr(choice, "__len__"):
            weights = [float(weight) for weight in choice]
            if len(weights) == depth and any(weights):
                return [[0.0, *weights]]
        elif 1 <= abs(number := operator.index(choice)) <= depth:
            return torch.eye(depth + 1)[[number]].tolist()
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"layers: {layers!r} does not exist; this model has blocks 1 to {depth}: give a block number, {depth} weights that are "
        "not all zero, 'last', 'all', 'states' or 'mean'"
    )


def max_positions(device: torch.device, batch: int | None = None) -> int:
    """Positions to compute per batch: `batch`, by default what is fast on the device. Raises UserError if it is below 1."""
    if batch is not None and batch < 1:
        raise UserError(f"batch: {batch} is not a number of positions per batch; give 1 or more")
    return batch or DEFAULT_POSITIONS[device.type if device.type in DEFAULT_POSITIONS else "cuda"]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """A block with products in this precision, fp32 or bf16. Raises UserError for another one."""
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} does not exist; use {' or '.join(PRECISIONS)}")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def check_computation(device: torch.device, precision: str, compile: bool) -> None:
    """Raises UserError for a precision that does not exist, and for `compile` without a compiler."""
    autocast(device, precision)
    if compile:
        require_compiler(device, "compile")


def inference_encoder(encoder: Encoder, compile: bool = False) -> Encoder:
    """The same encoder, all weights shared, in which padding changes no other position; with compiled blocks if `compile`."""
    encoder = padding_invariant(encoder)
    return with_compiled_blocks(encoder) if compile else encoder


def num_positions(modality: Modality, item: object) -> int:
    """The number of positions an input will have."""
    return prod(modality.grid(modality.collate([item])))


def collate_by_length(modality: Modality, items: Sequence[object], limit: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches of items of similar length, each with the indices of its items: at most `limit` positions including padding, of
    which few are padding; or a single item. Items that are encoded in chunks are single."""
    lengths = [num_positions(modality, item) for item in items]
    shapes = None if modality.supports_padding else [_shape(item) for item in items]
    for indices in pad_by_length(lengths, limit, shapes):
        batch = modality.collate([items[index] for index in indices])
        if len(indices) > 1 and modality.chunks(batch):
            yield from (([index], modality.collate([items[index]])) for index in indices)
        else:
            yield indices, batch


def _shape(item: object) -> object:
    return getattr(item, "shape", None)  # items of custom modalities may have none


def batch_features(encoder: Encoder, batch: Batch, layers: LayerWeights) -> tuple[Tensor, Tensor | None]:
    """The features (L, B, T, D) of a batch, and its padding (B, T) or None. Blocks above the last one needed are skipped."""
    if layers is None:
        last, padding = encoder(batch)
        return last[None], padding
    x, padding = encoder.local_encoder(batch)
    top = max(index for weights in layers for index, weight in enumerate(weights) if weight)
    sums: list[Tensor | None] = [None] * len(layers)
    for index, state in enumerate(islice(encoder.states(x, padding), top + 1)):
        for number, weights in enumerate(layers):
            if weight := weights[index]:
                before, part = sums[number], state if weight == 1 else weight * state
                sums[number] = part if before is None else before + part
    return torch.stack([each for each in sums if each is not None]), padding


Encode = Callable[[Batch], tuple[Tensor, Tensor | None]]
"""From a batch to vectors (…, B, T, D), one for each position, and the padding (B, T) or None."""


def encode_chunks(
    encoder: Encoder, encode: Encode, batch: Batch, chunks: Sequence[Chunk] | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """What `encode` gives for a batch on the device and in the precision of the encoder: at once; or, for a single row and its
    `chunks` (`Modality.chunks`), for the positions of one chunk after the other, without their context."""
    weight = next(encoder.parameters())
    parts: Sequence[Chunk | None] = chunks or [None]
    for chunk in parts:
        part = (batch if chunk is None else _slice(batch, chunk.samples)).to(weight.device)
        if part.input.is_floating_point():
            part.input = part.input.to(weight.dtype)
        x, padding = encode(part)
        yield (x, padding) if chunk is None else (x[..., chunk.kept, :], None if padding is None else padding[:, chunk.kept])


def _slice(batch: Batch, samples: slice) -> Batch:
    return Batch(batch.input[:, samples], None if batch.padding is None else batch.padding[:, samples])


def joined(chunks: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """The vectors (…, B, T, D) of all positions, and the padding."""
    parts = list(chunks)
    if len(parts) == 1:
        return parts[0]
    paddings = [x.new_zeros(x.shape[-3:-1], dtype=torch.bool) if padding is None else padding for x, padding in parts]
    has_padding = any(padding is not None for _, padding in parts)
    return torch.cat([x for x, _ in parts], -2), torch.cat(paddings, 1) if has_padding else None


def pooled(chunks: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """The mean (…, B, D) over the positions that are not padding, holding one chunk at a time."""
    means = [(mean_pool(x, padding), _num_valid(x, padding)) for x, padding in chunks]
    if len(means) == 1:
        return means[0][0]
    count = torch.stack([count for _, count in means]).sum(0).clamp(min=1)
    return (torch.stack([mean * count for mean, count in means]).sum(0) / count).to(means[0][0].dtype)


def _num_valid(x: Tensor, padding: Tensor | None) -> Tensor:
    """(B, 1): the positions of `x` (…, B, T, D) that are not padding, in float32, as bfloat16 has no 257."""
    if padding is None:
        return torch.full((x.shape[-3], 1), x.shape[-2], dtype=torch.float32, device=x.device)
    return (~padding).sum(1, keepdim=True).float()


def head_logits(
    encoder: Encoder, head: Head, batch: Batch, chunks: Sequence[Chunk] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Logits of a batch, (B, T, V) or (B, V), and the padding (B, T) or None. Of several chunks, the mean of their class tokens
    is taken, if the head reads these."""
    if chunks and reads_class_token(head):
        chunks = [replace(chunk, kept=slice(None)) for chunk in chunks]
        x, _ = joined(encode_chunks(encoder, partial(head_input, encoder, head), batch, chunks))
        return head(x.mean(1, keepdim=True), None), None
    x, padding = joined(encode_chunks(encoder, partial(head_input, encoder, head), batch, chunks))
    return head(x, padding), padding


def logits_by_row(encoder: Encoder, head: Head, batch: Batch, chunks: Sequence[Chunk] | None) -> list[Tensor]:
    """The logits of each row of a batch: (V,), or (T, V) cut to its own length."""
    logits, padding = head_logits(encoder, head, batch, chunks)
    if logits.ndim == 2 or padding is None:
        return list(logits)
    return [row[:length] for row, length in zip(logits, (~padding).sum(1).tolist(), strict=True)]


@torch.inference_mode()
def extract_logits(
    encoder: Encoder, head: Head, modality: Modality, items: Sequence[object], batch: int | None = None
) -> list[Tensor]:
    """The logits of each input, (V,) or (T, V) cut to its own length, in input order. The encoder is as in
    `extract_features`."""
    results: list[Any] = [None] * len(items)
    for rows, part in collate_by_length(modality, items, max_positions(next(encoder.parameters()).device, batch)):
        for index, logits in zip(rows, logits_by_row(encoder, head, part, modality.chunks(part)), strict=True):
            results[index] = logits
    return results


def count_full(modality: Modality, items: Iterable[object]) -> tuple[int, int]:
    """How many texts have as many tokens as the model takes at most, so that they may have been cut; and that number."""
    most = getattr(getattr(modality, "data", None), "block_size", 0)  # of text
    return (sum(isinstance(item, Tensor) and len(item) == most for item in items) if most else 0), most


def warn_full(what: str, full: int, texts: int, most: int) -> None:
    """Warn about texts that may have been cut (`count_full`)."""
    if full:
        message = "%s: %d of %d texts have %d tokens, the most that the model takes; what is longer is cut"
        log.warning(message, what, full, texts, most)


@torch.inference_mode()
def extract_features(
    encoder: Encoder, modality: Modality, items: Sequence[object], layers: LayerWeights, pool: bool, batch: int | None = None
) -> list[tuple[Tensor, int]]:
    """The features of each input, (L, T, D) cut to its own length or (L, D) if pooled, and its length, in input order.

    The encoder must keep padding from changing the output (`data2vec.nn.encoder.padding_invariant`)."""
    results: list[Any] = [None] * len(items)
    full, most = count_full(modality, items)
    warn_full("features", full, len(items), most)
    for rows, part in collate_by_length(modality, items, max_positions(next(encoder.parameters()).device, batch)):
        chunks = encode_chunks(encoder, partial(batch_features, encoder, layers=layers), part, modality.chunks(part))
        lengths = [num_positions(modality, items[index]) for index in rows]
        x = pooled(chunks) if pool else joined(chunks)[0]
        for row, (index, length) in enumerate(zip(rows, lengths, strict=True)):
            results[index] = (x[:, row] if pool else x[:, row, :length], length)
    return results
