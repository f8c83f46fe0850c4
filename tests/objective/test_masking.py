"""Masks: what always holds, and how they are distributed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data2vec.errors import UserError
from data2vec.objective.masking import BlockMask, SpanMask, TokenMask, equalise

seeds = st.integers(0, 2**32 - 1)


def runs(row: np.ndarray) -> list[int]:
    """Lengths of the maximal stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@given(seeds, st.integers(1, 6), st.integers(3, 300), st.floats(0, 1), st.integers(1, 20))
def test_spans_hide_something_and_leave_something(seed: int, rows: int, T: int, prob: float, length: int) -> None:
    hidden = SpanMask(prob=prob, length=length).draw(rows, (T,), np.random.default_rng(seed)).hidden
    counts = hidden.sum(1)
    assert hidden.shape == (rows, T)
    assert (counts >= 1).all() and (counts < T).all()
    assert len(set(counts)) == 1


@given(seeds, st.lists(st.integers(3, 200), min_size=1, max_size=5), st.integers(1, 12))
def test_spans_never_hide_padding(seed: int, lengths: list[int], length: int) -> None:
    T = max(lengths) + 5
    hidden = SpanMask(length=length).draw(len(lengths), (T,), np.random.default_rng(seed), np.array(lengths)).hidden
    assert not (hidden & (np.arange(T) >= np.array(lengths)[:, None])).any()
    assert len(set(hidden.sum(1))) == 1


@given(seeds, st.integers(60, 400), st.integers(2, 12))
def test_spans_are_whole_in_a_single_row(seed: int, T: int, length: int) -> None:
    hidden = SpanMask(prob=0.5, length=length).draw(1, (T,), np.random.default_rng(seed)).hidden[0]
    assert min(runs(hidden)) >= length


@given(seeds, st.integers(3, 30))
def test_spans_shrink_on_short_inputs(seed: int, T: int) -> None:
    hidden = SpanMask(prob=0.65, length=10).draw(2, (T,), np.random.default_rng(seed)).hidden
    assert 1 <= hidden.sum(1).min() <= hidden.sum(1).max() < T


def test_an_input_too_short_for_a_span_is_told() -> None:
    with pytest.raises(UserError, match="a sequence of 2 positions is too short for 1 masked"):
        SpanMask(min_spans=1).draw(3, (2,), np.random.default_rng(0))


@given(seeds, st.integers(1, 5), st.integers(1, 50))
def test_equalising_only_shows(seed: int, rows: int, T: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.random((rows, T)) < 0.5
    before[:, 0] = True
    after = equalise(before, rng)
    assert not (after & ~before).any()
    assert (after.sum(1) == before.sum(1).min()).all()


@given(seeds, st.integers(1, 4), st.integers(1, 200), st.integers(1, 6))
def test_tokens_are_hidden_replaced_or_kept(seed: int, rows: int, T: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    mask = TokenMask(prob=0.3, length=length, keep=0.2, random=0.3).draw(rows, (T,), rng)
    assert mask.replaced is not None and not (mask.hidden & mask.replaced).any()
    assert TokenMask(random=0.0).draw(rows, (T,), rng).replaced is None


def test_tokens_have_the_shares_of_bert() -> None:
    mask = TokenMask().draw(200, (512,), np.random.default_rng(0))
    assert mask.replaced is not None
    chosen = 0.15 * 512 * 200
    assert mask.hidden.sum() / chosen == pytest.approx(0.8, abs=0.02)
    assert mask.replaced.sum() / chosen == pytest.approx(0.1, abs=0.015)


@given(seeds, st.integers(1, 5), st.integers(4, 16), st.integers(4, 16), st.floats(0.1, 0.8))
def test_blocks_hide_at_most_what_is_asked(seed: int, rows: int, H: int, W: int, share: float) -> None:
    patches = max(1, int(share * H * W))
    hidden = BlockMask(patches=patches, min_patches=min(4, patches)).draw(rows, (H, W), np.random.default_rng(seed)).hidden
    assert hidden.shape == (rows, H * W) and (hidden.sum(1) <= patches).all()
    assert hidden.any()


@given(seeds)
def test_a_single_block_is_a_rectangle(seed: int) -> None:
    mask = BlockMask(patches=12, min_patches=12, max_patches=12).draw(1, (8, 8), np.random.default_rng(seed)).hidden
    grid = mask.reshape(8, 8)
    rows, columns = np.flatnonzero(grid.any(1)), np.flatnonzero(grid.any(0))
    first = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert first.all() or grid.sum() < first.size  # one rectangle, or several


def test_blocks_need_a_grid_and_something_to_see() -> None:
    with pytest.raises(UserError, match="two-dimensional grid"):
        BlockMask().draw(1, (196,), np.random.default_rng(0))
    with pytest.raises(UserError, match="36 of 6 x 6 patches would leave nothing"):
        BlockMask(patches=36).draw(1, (6, 6), np.random.default_rng(0))


def test_the_same_seed_gives_the_same_masks() -> None:
    for mask, grid in ((SpanMask(), (200,)), (TokenMask(), (128,)), (BlockMask(), (14, 14))):
        first, again = (mask.draw(4, grid, np.random.default_rng(3)) for _ in range(2))
        assert (first.hidden == again.hidden).all()


# Means and standard errors of 1,600 to 4,000 masks of the official code; T = positions, R = rows of a batch.
@pytest.mark.parametrize(
    ("mask", "grid", "rows", "count", "longest_run", "spread"),
    [
        (SpanMask(), (500,), 8, 223.42, 6.739, 9.79),
        (SpanMask(), (999,), 8, 459.63, 8.198, 13.15),
        (SpanMask(), (500,), 1, 245.28, 14.621, 14.54),
        (TokenMask(prob=0.35, length=4, keep=0, random=0), (512,), 1, 156.89, 5.011, 5.78),
    ],
)
def test_spans_are_distributed_as_in_the_official_code(
    mask: SpanMask | TokenMask, grid: tuple[int], rows: int, count: float, longest_run: float, spread: float
) -> None:
    rng = np.random.default_rng(0)
    hidden = np.concatenate([mask.draw(rows, grid, rng).hidden for _ in range(2400 // rows)])
    counts = hidden.sum(1)
    # rows of a batch share their count: so many fewer are independent
    assert abs(counts.mean() - count) < 5 * spread * (rows / 2400 + rows / 2400) ** 0.5
    assert counts.std() == pytest.approx(spread, rel=0.15)
    assert np.mean([length for row in hidden for length in runs(row)]) == pytest.approx(longest_run, rel=0.06)


@pytest.mark.parametrize(("patches", "count", "same_right"), [(75, 74.50, 0.889), (120, 119.52, 0.883)])
def test_blocks_are_distributed_as_in_the_official_code(patches: int, count: float, same_right: float) -> None:
    hidden = BlockMask(patches=patches).draw(2000, (14, 14), np.random.default_rng(0)).hidden.reshape(-1, 14, 14)
    counts = hidden.sum((1, 2))
    assert counts.mean() == pytest.approx(count, abs=0.15)  # five standard errors of 2,000 + 2,000
    assert counts.max() == patches
    assert (hidden[:, :, 1:] == hidden[:, :, :-1]).mean() == pytest.approx(same_right, abs=0.006)
    assert hidden.mean(0)[0, 0] < 0.5 * hidden.mean(0)[7, 7]
