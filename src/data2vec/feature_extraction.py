"""Feature extraction from a user's inputs, in batches of similar length that do not change any input's features.

Shapes: B inputs, T positions of the longest, L requested layers, D width.
"""

import io
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data2vec.batch import Batch
from data2vec.data.audio import SAMPLE_RATE
from data2vec.data.bucketing import pad_by_length
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.nn.heads import mean_pool
from data2vec.settings import JsonDict

Layers = Literal["last", "all", "mean"] | int | Sequence[float]
"""The encoder's output, after its final norm if it has one ("last"); the output of every block ("all") or their mean ("mean");
one block, counted from 1, or from the end when negative; or a weighted sum of all blocks, one weight each."""
LayerWeights = list[list[float]] | None
"""(L, blocks) weights of the blocks' outputs; None means the encoder's output."""
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


def layer_weights(layers: Layers, depth: int) -> LayerWeights:
    """The weights that `layers` selects in an encoder of `depth` blocks. Raises UserError for a layer that does not exist."""
    choice: Any = layers
    if layers == "last":
        return None
    if layers == "all":
        return torch.eye(depth).tolist()
    if layers == "mean":
        return [[1 / depth] * depth]
    try:
        if hasattr(choice, "__len__"):
            weights = [float(weight) for weight in choice]
            if len(weights) == depth and any(weights):
                return [weights]
        elif 1 <= abs(number := operator.index(choice)) <= depth:
            return torch.eye(depth)[[number - (number > 0)]].tolist()
    except (TypeError, ValueError):
        pass
    raise UserError(
        f"layers: {layers!r} does not exist; this model has blocks 1 to {depth}: give a block number, {depth} weights that are "
        "not all zero, 'last', 'all' or 'mean'"
    )


def max_positions(device: torch.device, batch: int | None = None) -> int:
    """Positions to compute per batch: `batch`, by default what is fast on the device. Raises UserError if it is below 1."""
    if batch is not None and batch < 1:
        raise UserError(f"batch: {batch} is not a number of positions per batch; give 1 or more")
    return batch or DEFAULT_POSITIONS[device.type if device.type in DEFAULT_POSITIONS else "cuda"]


def num_positions(modality: Modality, item: object) -> int:
    """The number of positions an input will have."""
    return prod(modality.grid(modality.collate([item])))


def collate_by_length(modality: Modality, items: Sequence[object], limit: int) -> Iterator[tuple[list[int], Batch]]:
    """Batches of items of similar length, each with the indices of its items: at most `limit` positions including padding, of
    which few are padding; or a single item."""
    lengths = [num_positions(modality, item) for item in items]
    shapes = None if modality.supports_padding else [_shape(item) for item in items]
    for indices in pad_by_length(lengths, limit, shapes):
        yield indices, modality.collate([items[index] for index in indices])


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
    for output in islice(encoder.block_outputs(x, padding), top + 1):
        for number, weights in enumerate(layers):
            if weight := weights[output.layer]:
                before, part = sums[number], output.block if weight == 1 else weight * output.block
                sums[number] = part if before is None else before + part
    return torch.stack([each for each in sums if each is not None]), padding


@torch.inference_mode()
def extract_features(
    encoder: Encoder, modality: Modality, items: Sequence[object], layers: LayerWeights, pool: bool, batch: int | None = None
) -> list[tuple[Tensor, int]]:
    """The features of each input, (L, T, D) cut to its own length or (L, D) if pooled, and its length, in input order.

    The encoder must keep padding from changing the output (`data2vec.nn.encoder.padding_invariant`)."""
    device = next(encoder.parameters()).device
    results: list[Any] = [None] * len(items)
    for rows, part in collate_by_length(modality, items, max_positions(device, batch)):
        x, padding = batch_features(encoder, part.to(device), layers)
        lengths = [x.shape[2]] * len(rows) if padding is None else (~padding).sum(1).tolist()
        pooled = mean_pool(x, padding) if pool else None
        for row, (index, length) in enumerate(zip(rows, lengths, strict=True)):
            results[index] = (x[:, row, :length] if pooled is None else pooled[:, row], length)
    return results


def read_input(modality: Modality, value: object, name: str) -> Tensor:
    """One input, ready to be collated: a file path; an array or tensor of (S,) samples at 16 kHz, (H, W, 3) bytes or (T,) token
    ids; a string of text; or a row of a dataset. `name` stands for arrays in error messages.

    Raises CorruptExample when it cannot be decoded, and UserError when this model does not accept such inputs."""
    kind = getattr(modality, "kind", None)
    if kind == "text" and not isinstance(value, str | Path | dict):
        return _token_ids(modality, value, name)
    row = value if kind is None or isinstance(value, dict) else _dataset_row(kind, value, name)
    examples = modality.labelled([row])
    if not len(examples):
        raise CorruptExample((*examples.corrupt, f"{name}: too short for a single position")[0])
    return examples.load(0, None, None)


def _dataset_row(kind: str, value: object, name: str) -> JsonDict:
    if kind == "text" and isinstance(value, str):
        return {"text": value}
    if isinstance(value, str | Path):
        return {kind: {"bytes": None, "path": str(value)}}
    array, content = torch.as_tensor(value).cpu(), io.BytesIO()
    if kind == "audio":
        import soundfile

        if array.ndim != 1:
            raise UserError(f"{name}: audio of shape {tuple(array.shape)}; it must be (S,), mono samples at 16 kHz")
        array = array.float() if array.is_floating_point() else array
        soundfile.write(content, array.numpy(), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    else:
        from PIL import Image

        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != torch.uint8:
            raise UserError(f"{name}: an image of {array.dtype} {tuple(array.shape)}; it must be uint8 (H, W, 3)")
        Image.fromarray(array.numpy()).save(content, "BMP")
    return {kind: {"bytes": content.getvalue(), "path": name}}


def _token_ids(modality: Modality, value: object, name: str) -> Tensor:
    ids = torch.as_tensor(value).cpu()
    settings: Any = modality.settings
    size, most = settings.vocab_size, settings.max_length
    if ids.ndim != 1 or ids.is_floating_point() or not 1 <= len(ids) <= most or ids.min() < 0 or ids.max() >= size:
        raise UserError(f"{name}: must be a string, or a 1-D array of 1 to {most} token ids from 0 to {size - 1}")
    return ids.long()


def require_tokenizer(modality: Modality) -> None:
    """Raises UserError for a text model without a tokenizer."""
    if getattr(modality, "kind", None) == "text" and getattr(modality.data, "tokenizer", None) is None:
        raise UserError(
            "this text model has no tokenizer: put its tokenizer.json, or vocab.json and merges.txt, into the model folder, or "
            "pass token ids"
        )
