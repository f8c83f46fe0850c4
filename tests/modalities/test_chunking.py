import math

import pytest
import torch
from torch import nn

from data2vec.errors import UserError
from data2vec.modalities.chunking import split_into_chunks
from data2vec.nn.conv_feature_extractor import WAV2VEC, output_length

LAYERS = ((4, 6, 3), (4, 3, 2))
STRIDE = math.prod(stride for _, _, stride in LAYERS)


@pytest.fixture
def network() -> nn.Module:
    """A feature extractor, and a context of three frames on either side."""
    torch.manual_seed(0)
    (c, k, s), (d, l, t) = LAYERS
    return nn.Sequential(nn.Conv1d(1, c, k, s), nn.GELU(), nn.Conv1d(c, d, l, t), nn.GELU(), nn.Conv1d(d, 5, 7, padding=3))


@pytest.mark.parametrize("samples", [*range(600, 620), 59, 12, 120, 121])
@pytest.mark.parametrize("overlap", [54, 60, 90])
def test_kept_outputs_joined_equal_those_of_the_whole_recording(network: nn.Module, samples: int, overlap: int) -> None:
    wave = torch.randn(1, 1, samples)
    with torch.no_grad():
        whole = network(wave)[0].T
        pieces = split_into_chunks(samples, 120, overlap, LAYERS, rate=1)
        joined = torch.cat([network(wave[..., piece.samples])[0].T[piece.kept] for piece in pieces])
    assert joined.shape == whole.shape == (output_length(LAYERS, samples), 5)
    torch.testing.assert_close(joined, whole)


def test_each_frame_comes_from_the_chunk_with_the_farthest_cut() -> None:
    pieces = split_into_chunks(1000, 120, 60, LAYERS, rate=1)
    lengths = [output_length(LAYERS, piece.samples.stop - piece.samples.start) for piece in pieces]
    taken = [i for i, piece in enumerate(pieces) for _ in range(lengths[i])[piece.kept]]
    for frame, chosen in enumerate(taken):
        room = {}
        for i, (piece, n) in enumerate(zip(pieces, lengths, strict=True)):
            place = frame - piece.first_frame
            if 0 <= place < n:
                before = math.inf if i == 0 else place
                after = math.inf if i == len(pieces) - 1 else n - 1 - place
                room[i] = min(before, after)
        assert room[chosen] == max(room.values())


def test_chunks_start_on_frames_and_cover_the_recording() -> None:
    pieces = split_into_chunks(16000 * 95 + 7, 30, 4)
    assert all(piece.samples.start == piece.first_frame * 320 for piece in pieces)
    assert [piece.samples.start / 16000 for piece in pieces] == [0, 26, 52, 78]
    assert pieces[-1].samples.stop == 16000 * 95 + 7
    ends = [piece.first_frame + output_length(WAV2VEC, piece.samples.stop - piece.samples.start) for piece in pieces]
    assert ends[-1] == output_length(WAV2VEC, 16000 * 95 + 7)


def test_too_short_overlaps_raise() -> None:
    for overlap in (0.0, 10.0, 12.0):
        with pytest.raises(UserError, match="overlap_seconds"):
            split_into_chunks(160000, 10, overlap)
