import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.nn.position_encoders import (
    Alibi,
    AlibiPositionEncoder,
    ConvPositionEncoder,
    LearnedPositionEncoder,
    PaddingMode,
    RelativePositionEncoder,
    SinCosPositionEncoder,
    alibi_slopes,
    gather_positions,
)
from helpers.position_kinds import KINDS, positions, views


@pytest.mark.parametrize("kernel", [4, 5])
def test_conv_encoder_of_shifted_input_keeps_length_and_shifts(kernel: int) -> None:
    torch.manual_seed(0)
    positions = ConvPositionEncoder(8, depth=2, kernel=kernel, groups=2)
    x = torch.zeros(1, 40, 8)
    x[0, 15] = torch.randn(8)
    shifted = x.roll(3, dims=1)
    y, z = positions(x, None), positions(shifted, None)
    assert y.shape == x.shape
    torch.testing.assert_close(z[:, 13:30], y[:, 10:27])


def test_conv_encoder_with_changed_padding_is_unchanged() -> None:
    torch.manual_seed(0)
    positions, x = ConvPositionEncoder(8, depth=2, kernel=5, groups=2), torch.randn(1, 10, 8)
    padding = torch.arange(10)[None] >= 7
    other = torch.where(padding[..., None], torch.randn(1, 10, 8), x)
    torch.testing.assert_close(positions(x, padding), positions(other, padding))


def test_learned_encoder_with_padding_counts_unpadded_positions_only() -> None:
    torch.manual_seed(0)
    positions, x = LearnedPositionEncoder(8, length=6), torch.randn(2, 6, 8)
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
    positions = RelativePositionEncoder((3, 4), heads=2, extra_tokens=1)
    assert positions.table.shape == (5 * 7 + 3, 2)
    with torch.no_grad():
        positions.table.normal_(generator=torch.Generator().manual_seed(0))
    bias = positions.bias(12)
    assert bias.shape == (2, 13, 13)
    patches = bias[:, 1:, 1:].view(2, 3, 4, 3, 4)
    torch.testing.assert_close(patches[:, 0, 0, 1, 1], patches[:, 1, 2, 2, 3])
    assert not torch.equal(patches[:, 0, 0, 1, 1], patches[:, 1, 1, 0, 0])
    assert len(bias[0].unique()) == 5 * 7 + 3
    assert RelativePositionEncoder((14, 14), heads=12).table.shape[0] == 732


def test_sincos_encoder_table_has_columns_in_its_first_half() -> None:
    table = SinCosPositionEncoder((2, 3), 8)(torch.zeros(1, 6, 8), None)[0].view(2, 3, 8)
    torch.testing.assert_close(table[0, :, :4], table[1, :, :4])
    torch.testing.assert_close(table[:, 0, 4:], table[:, 2, 4:])
    torch.testing.assert_close(
        table[1, 2, :4], torch.tensor([2.0, 0.02, 0, 0]).sin() + torch.tensor([0, 0, math.cos(2), math.cos(0.02)])
    )


@pytest.mark.parametrize(("heads", "last"), [(8, 2**-8), (16, 2**-8), (12, 2**-3.5)])
def test_alibi_slopes_are_geometric_in_the_heads(heads: int, last: float) -> None:
    slopes = alibi_slopes(heads)
    assert len(slopes) == heads and slopes[0] == 2 ** (-8 / 2 ** int(math.log2(heads)))
    assert slopes[-1] == pytest.approx(last)


def test_alibi_of_visible_positions_is_a_part_of_the_full_bias() -> None:
    alibi, every = Alibi(12), torch.arange(10.0)
    with torch.no_grad():
        alibi.scale.copy_(torch.linspace(-1, 2, 12))
    kept = torch.tensor([[1.0, 7, 3], [0, 2, 9]])
    whole = alibi(every)
    assert whole.shape == (12, 10, 10) and whole.max() == 0 and whole[0].abs().max() == 0  # a negative scale counts as 0
    part = alibi(kept)
    torch.testing.assert_close(part[1], whole[:, [0, 2, 9]][:, :, [0, 2, 9]])


def test_gather_positions_of_views_gathers_from_the_sample_of_each() -> None:
    x, _, kept = views(samples=3, masks=2, kept=5)
    expected = x.repeat_interleave(2, dim=0).gather(1, kept[..., None].expand(-1, -1, 16))
    assert torch.equal(gather_positions(x, kept), expected)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), masks=st.integers(1, 3), kept=st.integers(1, 11), view=st.integers(0, 99))
def test_visible_positions_of_a_view_ignore_its_masked_positions(
    kind: str, seed: int, masks: int, kept: int, view: int
) -> None:
    this = positions(kind)
    x, masked, places = views(seed=seed, masks=masks, kept=kept)
    view %= len(masked)
    other = x.clone()
    other[view // masks] += 3 * masked[view][:, None]  # at all that this view does not see, and only there
    before = x.clone()
    one, two = (this.encode_visible_positions(y, None, masked, places) for y in (x, other))
    assert one.shape == (len(masked), kept, 16)
    assert torch.equal(one[view], two[view])
    assert torch.equal(x, before), "what it was given is left as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_visible_positions_gradient_reaches_visible_positions_only(kind: str) -> None:
    x, masked, kept = views(masks=3)
    x.requires_grad_()
    visible = positions(kind).encode_visible_positions(x, None, masked, kept)
    for view in range(len(masked)):
        gradient = torch.autograd.grad((visible[view] * torch.randn(5, 16)).sum(), x, retain_graph=True)[0]
        reached = gradient.abs().amax(-1) > 0
        assert torch.equal(reached[view // 3], ~masked[view])
        assert not reached[1 - view // 3].any()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_visible_positions_with_nothing_masked_equal_the_full_forward(kind: str, padded: bool) -> None:
    this = positions(kind)
    x, masked, kept = views(masks=2, kept=12)
    padding = torch.arange(12) >= torch.tensor([12, 8])[:, None] if padded else None
    whole = this(x, padding).repeat_interleave(2, dim=0)
    torch.testing.assert_close(this.encode_visible_positions(x, padding, masked, kept), whole)


def test_conv_encoder_of_a_view_sees_zeros_at_masked_positions() -> None:
    this = positions("conv")
    x, masked, kept = views(masks=2)
    blanked = x.repeat_interleave(2, dim=0).masked_fill(masked[..., None], 0)
    torch.testing.assert_close(
        this.encode_visible_positions(x, None, masked, kept), gather_positions(this(blanked, None), kept)
    )


@pytest.mark.parametrize("kind", ["conv", "conv-alibi"])
def test_conv_encoder_of_a_view_sees_padding_only_in_mode_none(kind: str) -> None:
    x, masked, kept = views(masks=2)
    padding = torch.arange(12) >= torch.tensor([12, 6])[:, None]
    other = torch.where(padding[..., None], torch.randn(x.shape), x)
    modes: tuple[PaddingMode, ...] = ("zero_input", "none", "zero_every_layer")
    for mode in modes:
        this = positions(kind, padding=mode)
        one, two = (this.encode_visible_positions(y, padding, masked, kept) for y in (x, other))
        there = ~gather_positions(padding[..., None], kept)[..., 0]
        assert torch.equal(one[there], two[there]) is (mode != "none")


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("kind", ["conv-alibi", "relative"])
def test_bias_of_visible_positions_is_a_part_of_the_full_bias(kind: str, extra: int) -> None:
    this = positions(kind, extra_tokens=extra)
    *_, kept = views(masks=3)
    whole, part = this.bias(12), this.bias(12, kept)
    assert whole.shape == (2, extra + 12, extra + 12) and part.shape == (6, 2, extra + 5, extra + 5)
    for row, places in enumerate(kept):
        at = torch.cat([torch.arange(extra), places + extra])
        assert torch.equal(part[row], whole[:, at][:, :, at])


@pytest.mark.parametrize("kind", ["conv", "learned", "sincos"])
def test_bias_of_encoders_that_add_to_the_input_is_none(kind: str) -> None:
    this = positions(kind)
    assert this.bias(12) is None and this.bias(12, views()[2]) is None


def test_alibi_bias_of_extra_tokens_is_zero() -> None:
    bias = Alibi(2, extra_tokens=2)(torch.tensor([[4, 1, 7]]))
    assert bias.shape == (1, 2, 5, 5)
    assert bias[..., :2, :].abs().max() == 0 and bias[..., :, :2].abs().max() == 0
    torch.testing.assert_close(bias[0, 0, 2:, 2:], -(2**-4) * torch.tensor([[0.0, 3, 3], [3, 0, 6], [3, 6, 0]]))


def test_alibi_alone_adds_a_bias_and_no_positions() -> None:
    encoder, x = AlibiPositionEncoder(8, Alibi(2, extra_tokens=1)), torch.randn(2, 5, 8)
    torch.testing.assert_close(encoder(x, None), torch.nn.functional.layer_norm(x, (8,)))
    bias = encoder.bias(5)
    for head, slope in enumerate((2**-4, 2**-8)):
        for i in range(6):
            for j in range(6):
                assert bias[head, i, j].item() == (0.0 if 0 in (i, j) else -slope * abs(i - j))
    visible = torch.tensor([[0, 3, 4], [1, 2, 4]])
    rows = torch.cat([torch.zeros(2, 1, dtype=torch.long), visible + 1], dim=1)
    expected = torch.stack([bias[:, row][:, :, row] for row in rows])
    torch.testing.assert_close(encoder.bias(5, visible), expected)


def test_norm_of_convolutional_positions_is_on_the_sum() -> None:
    torch.manual_seed(0)
    with_norm, x = ConvPositionEncoder(8, depth=2, kernel=3, groups=2, norm=True), torch.randn(2, 6, 8)
    expected = torch.nn.functional.layer_norm(x + with_norm.convolve(x), (8,))
    torch.testing.assert_close(with_norm(x, None), expected)
    without = ConvPositionEncoder(8, depth=2, kernel=3, groups=2)
    assert with_norm.state_dict().keys() - without.state_dict().keys() == {"norm.weight", "norm.bias"}
