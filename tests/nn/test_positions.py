import math

import pytest
import torch

from data2vec.nn.positions import Alibi, ConvPositions, LearnedPositions, RelativePositions, SinCosPositions, alibi_slopes


@pytest.mark.parametrize("kernel", [4, 5])
def test_convolutional_positions_keep_length_and_shift_with_the_input(kernel: int) -> None:
    torch.manual_seed(0)
    positions = ConvPositions(8, depth=2, kernel=kernel, groups=2)
    x = torch.zeros(1, 40, 8)
    x[0, 15] = torch.randn(8)
    shifted = x.roll(3, dims=1)
    y, z = positions(x, None), positions(shifted, None)
    assert y.shape == x.shape
    torch.testing.assert_close(z[:, 13:30], y[:, 10:27])


def test_convolutional_positions_do_not_look_at_padding() -> None:
    torch.manual_seed(0)
    positions, x = ConvPositions(8, depth=2, kernel=5, groups=2), torch.randn(1, 10, 8)
    padding = torch.arange(10)[None] >= 7
    other = torch.where(padding[..., None], torch.randn(1, 10, 8), x)
    torch.testing.assert_close(positions(x, padding), positions(other, padding))


def test_learned_positions_count_what_is_there() -> None:
    torch.manual_seed(0)
    positions, x = LearnedPositions(8, length=6), torch.randn(2, 6, 8)
    none = torch.zeros(2, 6, dtype=torch.bool)
    torch.testing.assert_close(positions(x, none), positions(x, None))
    late = none.clone()
    late[:, :2] = True  # what is there starts at the third place, and counts from one
    torch.testing.assert_close(positions(x, late)[:, 2:], positions(x[:, 2:], None))
    assert positions(x, late)[:, :2].abs().max() == 0
    assert positions.table.weight.shape == (8, 8)
    with pytest.raises(ValueError, match="7 positions is longer than the 6"):
        positions(torch.randn(1, 7, 8), None)


def test_relative_bias_depends_on_the_offset_only() -> None:
    positions = RelativePositions((3, 4), heads=2, extra_tokens=1)
    assert positions.table.shape == (5 * 7 + 3, 2)
    with torch.no_grad():
        positions.table.normal_(generator=torch.Generator().manual_seed(0))
    bias = positions.bias(12)
    assert bias.shape == (2, 13, 13)
    patches = bias[:, 1:, 1:].view(2, 3, 4, 3, 4)
    torch.testing.assert_close(patches[:, 0, 0, 1, 1], patches[:, 1, 2, 2, 3])
    assert not torch.equal(patches[:, 0, 0, 1, 1], patches[:, 1, 1, 0, 0])
    assert len(bias[0].unique()) == 5 * 7 + 3
    assert RelativePositions((14, 14), heads=12).table.shape[0] == 732


def test_sine_positions_put_the_column_first() -> None:
    table = SinCosPositions((2, 3), 8)(torch.zeros(1, 6, 8), None)[0].view(2, 3, 8)
    torch.testing.assert_close(table[0, :, :4], table[1, :, :4])
    torch.testing.assert_close(table[:, 0, 4:], table[:, 2, 4:])
    torch.testing.assert_close(
        table[1, 2, :4], torch.tensor([2.0, 0.02, 0, 0]).sin() + torch.tensor([0, 0, math.cos(2), math.cos(0.02)])
    )


@pytest.mark.parametrize(("heads", "last"), [(8, 2**-8), (16, 2**-8), (12, 2**-3.5)])
def test_alibi_slopes(heads: int, last: float) -> None:
    slopes = alibi_slopes(heads)
    assert len(slopes) == heads and slopes[0] == 2 ** (-8 / 2 ** int(math.log2(heads)))
    assert slopes[-1] == pytest.approx(last)


def test_alibi_of_kept_positions_is_a_part_of_the_whole() -> None:
    alibi, every = Alibi(12), torch.arange(10.0)
    with torch.no_grad():
        alibi.scale.copy_(torch.linspace(-1, 2, 12))
    kept = torch.tensor([[1.0, 7, 3], [0, 2, 9]])
    whole = alibi(every)
    assert whole.shape == (12, 10, 10) and whole.max() == 0 and whole[0].abs().max() == 0  # a negative scale counts as 0
    part = alibi(kept)
    torch.testing.assert_close(part[1], whole[:, [0, 2, 9]][:, :, [0, 2, 9]])
