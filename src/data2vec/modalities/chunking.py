"""Long recordings: overlapping chunks, and their outputs joined as if computed at once.

Time and memory of attention grow with the square of the length, and models work best on lengths that occurred in training."""

import math
from dataclasses import dataclass
from itertools import pairwise

from data2vec.data.audio import SAMPLE_RATE
from data2vec.errors import UserError
from data2vec.nn.conv_feature_extractor import WAV2VEC, Layers, output_length

CHUNK_SECONDS, OVERLAP_SECONDS = 40.0, 10.0
"""Recordings longer than a chunk are encoded in chunks, each with at least half of the overlap as context on both sides."""


@dataclass(frozen=True)
class Chunk:
    """A chunk of a recording."""

    samples: slice
    """Its samples, with the context."""
    first_frame: int
    """The index of its first frame in the recording."""
    kept: slice
    """The frames of its output that belong to the output of the recording; the others are context."""


def split_into_chunks(
    samples: int,
    chunk_seconds: float = CHUNK_SECONDS,
    overlap_seconds: float = OVERLAP_SECONDS,
    layers: Layers = WAV2VEC,
    rate: float = SAMPLE_RATE,
) -> list[Chunk]:
    """Overlapping chunks of a recording of `samples`, aligned to the frames of the feature extractor with these conv `layers`.

    The kept frames of all chunks, one after the other, are those of the recording; each is taken from the chunk in which it is
    farthest from a cut. Raises UserError if the overlap is shorter than the receptive field of a frame, or not shorter than a
    chunk."""
    stride = math.prod(stride for _, _, stride in layers)
    size, overlap = (round(seconds * rate / stride) * stride for seconds in (chunk_seconds, overlap_seconds))
    least = size - output_length(layers, size) * stride
    if not least <= overlap < size:
        raise UserError(
            f"overlap_seconds: {overlap_seconds}; must be at least {least / rate:g} s, the receptive field of a frame, and "
            f"less than a chunk ({chunk_seconds} s)"
        )
    starts = range(0, max(samples - overlap, 1), size - overlap)
    slices = [slice(start, min(start + size, samples)) for start in starts]
    firsts = [start // stride for start in starts]
    ends = [first + output_length(layers, part.stop - part.start) for first, part in zip(firsts, slices, strict=True)]
    cuts = [0, *((end + first + 1) // 2 for end, first in zip(ends, firsts[1:], strict=False)), ends[-1]]
    return [
        Chunk(part, first, slice(cut - first, next_cut - first))
        for part, first, (cut, next_cut) in zip(slices, firsts, pairwise(cuts), strict=True)
    ]
