"""Long audio in pieces that overlap, and their logits as if it had been one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data2vec.data.audio import RATE
from data2vec.errors import UserError
from data2vec.nn.conv_feature_extractor import WAV2VEC, Layers, output_length


@dataclass(frozen=True)
class Chunk:
    """A piece of a recording."""

    samples: slice
    first: int
    """Its first frame, among those of the recording."""


def chunks(
    samples: int, chunk_seconds: float, overlap_seconds: float, layers: Layers = WAV2VEC, rate: int = RATE
) -> list[Chunk]:
    """Pieces of a recording of so many samples, which begin where a frame of the front-end does (its layers: `layers`).

    Raises UserError where they would overlap by less than a frame sees, or wholly."""
    stride = math.prod(stride for _, _, stride in layers)
    size, overlap = (round(seconds * rate / stride) * stride for seconds in (chunk_seconds, overlap_seconds))
    least = size - output_length(layers, size) * stride
    if not least <= overlap < size:
        raise UserError(
            f"overlap_seconds: {overlap_seconds}; at least the {least / rate:g} s that a frame needs, and less than a chunk "
            f"({chunk_seconds} s)"
        )
    starts = range(0, max(samples - overlap, 1), size - overlap)
    return [Chunk(slice(start, min(start + size, samples)), start // stride) for start in starts]


def join(logits: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
    """(T, V) of the recording from (T, V) of each of its chunks: every frame from the one in which it is furthest from an
    edge, the two ends of the recording being none."""
    ends = [chunk.first + len(part) for part, chunk in zip(logits, chunks, strict=True)]
    cuts = [(end + chunk.first + 1) // 2 for end, chunk in zip(ends, chunks[1:], strict=False)]
    spans = zip([0, *cuts], [*cuts, ends[-1]], logits, chunks, strict=True)
    return torch.cat([part[start - chunk.first : end - chunk.first] for start, end, part, chunk in spans])
