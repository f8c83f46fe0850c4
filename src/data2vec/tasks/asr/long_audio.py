"""Long recordings: overlapping chunks, and their logits joined as if computed at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data2vec.data.audio import SAMPLE_RATE
from data2vec.errors import UserError
from data2vec.nn.conv_feature_extractor import WAV2VEC, Layers, output_length


@dataclass(frozen=True)
class Chunk:
    """A chunk of a recording."""

    samples: slice
    first_frame: int
    """The index of its first frame in the recording."""


def split_into_chunks(
    samples: int, chunk_seconds: float, overlap_seconds: float, layers: Layers = WAV2VEC, rate: int = SAMPLE_RATE
) -> list[Chunk]:
    """Overlapping chunks of a recording of `samples`, aligned to the frames of the feature extractor with these conv `layers`.

    Raises UserError if the overlap is shorter than the receptive field of a frame, or not shorter than a chunk."""
    stride = math.prod(stride for _, _, stride in layers)
    size, overlap = (round(seconds * rate / stride) * stride for seconds in (chunk_seconds, overlap_seconds))
    least = size - output_length(layers, size) * stride
    if not least <= overlap < size:
        raise UserError(
            f"overlap_seconds: {overlap_seconds}; must be at least {least / rate:g} s, the receptive field of a frame, and "
            f"less than a chunk ({chunk_seconds} s)"
        )
    starts = range(0, max(samples - overlap, 1), size - overlap)
    return [Chunk(slice(start, min(start + size, samples)), start // stride) for start in starts]


def join_logits(logits: Sequence[Tensor], chunks: Sequence[Chunk]) -> Tensor:
    """Logits (T, V) of the recording from those of its chunks; each frame is taken from the chunk with the farthest cut."""
    ends = [chunk.first_frame + len(part) for part, chunk in zip(logits, chunks, strict=True)]
    cuts = [(end + chunk.first_frame + 1) // 2 for end, chunk in zip(ends, chunks[1:], strict=False)]
    spans = zip([0, *cuts], [*cuts, ends[-1]], logits, chunks, strict=True)
    return torch.cat([part[start - chunk.first_frame : end - chunk.first_frame] for start, end, part, chunk in spans])
