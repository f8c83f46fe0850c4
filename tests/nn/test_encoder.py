"""The encoder on kept positions only: the same as on all of them, with what is masked out of sight."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from data2vec.nn.encoder import Encoder
from data2vec.nn.position_encoders import gather_positions
from data2vec.nn.transformer import Transformer, TransformerSettings
from helpers.fuzzing import examples
from helpers.position_kinds import KINDS, positions, views

PADDING = torch.arange(12) >= torch.tensor([12, 8])[:, None]
each = pytest.mark.parametrize("kind", KINDS)
extras = pytest.mark.parametrize("extra", [0, 1])


def encoder(kind: str, extra: int = 0, **changes: Any) -> Encoder:
    settings = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 32, "dropout": 0.0, "attention_dropout": 0.0, **changes}
    place = positions(kind, extra)
    transformer = Transformer(TransformerSettings(**settings, extra_tokens=extra))
    with torch.no_grad():
        for p in transformer.parameters():
            p.add_(0.3 * torch.randn(p.shape))  # so that attention is far from a mean over everything
    return Encoder(nn.Identity(), place, transformer, lambda batch: (12,))


@each
@extras
@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
def test_encode_visible_with_all_positions_visible_equals_the_full_forward(
    kind: str, extra: int, padding: Tensor | None
) -> None:
    model = encoder(kind, extra)
    x, masked, kept = views(masks=2, kept=12)
    first, context = model.encode_visible(x, padding, masked, kept)
    assert first.shape == (4, extra, 16) and context.shape == (4, 12, 16)
    whole = model.transformer(model.position_encoder(x, padding), padding, model.position_encoder.bias(12))
    whole = whole.repeat_interleave(2, dim=0)
    there = torch.ones(4, 12, dtype=torch.bool) if padding is None else ~padding.repeat_interleave(2, dim=0)
    torch.testing.assert_close(first, whole[:, :extra], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(context[there], whole[:, extra:][there], atol=1e-5, rtol=1e-5)


@each
@extras
@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
def test_encode_visible_equals_full_sequence_with_masked_positions_as_padding(
    kind: str, extra: int, padding: Tensor | None
) -> None:
    model = encoder(kind, extra)
    x, masked, kept = views(masks=3)
    first, context = model.encode_visible(x, padding, masked, kept)
    blanked = x.repeat_interleave(3, dim=0).masked_fill(masked[..., None], 0)
    absent = None if padding is None else padding.repeat_interleave(3, dim=0)
    placed = model.position_encoder(blanked, absent)
    unseen = masked if absent is None else masked | absent
    whole = model.transformer(placed, unseen, model.position_encoder.bias(12))
    there = ~gather_positions(unseen[..., None], kept)[..., 0]
    torch.testing.assert_close(first, whole[:, :extra], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(context[there], gather_positions(whole[:, extra:], kept)[there], atol=1e-5, rtol=1e-5)


@each
@examples(20)
@given(seed=st.integers(0, 2**32 - 1), masks=st.integers(1, 3), kept=st.integers(1, 11), view=st.integers(0, 99))
def test_encode_visible_of_a_view_ignores_its_masked_positions(kind: str, seed: int, masks: int, kept: int, view: int) -> None:
    model = encoder(kind, extra=1)
    x, masked, places = views(seed=seed, masks=masks, kept=kept)
    view %= len(masked)
    other = x.clone()
    other[view // masks] += 3 * masked[view][:, None]
    one, two = (torch.cat(model.encode_visible(y, None, masked, places), dim=1) for y in (x, other))
    assert torch.equal(one[view], two[view])


@each
def test_encode_visible_gradient_of_masked_positions_is_zero(kind: str) -> None:
    model = encoder(kind, extra=1)
    x, masked, kept = views(masks=2)
    x.requires_grad_()
    _, context = model.encode_visible(x, None, masked, kept)
    for view in range(4):
        gradient = torch.autograd.grad((context[view] * torch.randn(5, 16)).sum(), x, retain_graph=True)[0]
        reached = gradient.abs().amax(-1) > 0
        assert torch.equal(reached[view // 2], ~masked[view])
        assert not reached[1 - view // 2].any()


@each
def test_encode_visible_with_padding_visible_does_not_attend_to_it(kind: str) -> None:
    model = encoder(kind, extra=1)
    x, masked, kept = views(masks=2, kept=7)
    there = ~gather_positions(PADDING[..., None], kept)[..., 0]
    assert not there.all(), "some padding is kept"
    other = torch.where(PADDING[..., None], torch.randn(x.shape), x)
    one, two = (model.encode_visible(y, PADDING, masked, kept) for y in (x, other))
    torch.testing.assert_close(one[0], two[0])
    torch.testing.assert_close(one[1][there], two[1][there])


@each
def test_encode_visible_gradient_of_many_views_is_the_sum_over_views(kind: str) -> None:
    model = encoder(kind, extra=1)
    x, masked, kept = views(samples=2, masks=3)
    x.requires_grad_()
    weights = torch.randn(6, 6, 16)
    wanted = [x, *model.parameters()]

    def gradients(rows: slice) -> list[Tensor]:
        y = torch.cat(model.encode_visible(x, None, masked[rows], kept[rows]), dim=1)
        return list(torch.autograd.grad((y * weights[rows]).sum(), wanted, allow_unused=True, materialize_grads=True))

    together = gradients(slice(None))
    apart = [gradients(slice(view, None, 3)) for view in range(3)]  # one view of each sample
    for one, parts in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(one, sum(parts, torch.zeros_like(one)), atol=1e-4, rtol=1e-4)
