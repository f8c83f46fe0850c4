"""Masks: what always holds, and how they are distributed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from data2vec.errors import UserError
from data2vec.objective.masking import BlockMask, FixedBlockMask, RandomMask, SpanMask, TokenMask, equalise_counts

seeds = st.integers(0, 2**32 - 1)
grids = st.one_of(st.tuples(st.integers(1, 300)), st.tuples(st.integers(1, 16), st.integers(1, 16)))
shares = st.floats(0, 1)
lengths = st.integers(1, 20)
sequence_masks = st.one_of(
    st.builds(SpanMask, prob=shares, length=lengths, min_spans=st.integers(1, 4), equal=st.booleans()),
    st.builds(TokenMask, prob=shares, length=lengths, keep=st.floats(0, 0.45), random=st.floats(0, 0.45)),
    st.builds(TokenMask, prob=shares, length=lengths, keep=shares, random=shares, predict=st.just("selected")),
    st.builds(FixedBlockMask, prob=shares, adjust=shares, length=st.integers(1, 7), inverse=st.booleans()),
    st.builds(RandomMask, prob=shares),
)
block_masks = st.builds(
    BlockMask,
    patches=st.integers(1, 40),
    min_patches=st.integers(1, 20),
    max_patches=st.none() | st.integers(1, 40),
    aspect=st.floats(0.05, 1),
)
small_grids = st.tuples(st.integers(1, 8), st.integers(1, 8))


def runs(row: np.ndarray) -> list[int]:
    """Lengths of the maximal stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@given(
    seeds,
    st.integers(1, 6),
    st.one_of(st.tuples(sequence_masks, st.tuples(st.integers(1, 60))), st.tuples(sequence_masks | block_masks, small_grids)),
)
def test_every_row_has_a_predicted_and_a_visible_position_or_it_is_an_error(seed: int, rows: int, case: Any) -> None:
    mask, grid = case
    drawn, message = None, ""
    try:
        drawn = mask.draw(rows, grid, np.random.default_rng(seed))
    except UserError as error:
        message = str(error)
    if drawn is None:
        assert message.startswith(("objective.mask.", "a sequence of "))
        return
    changed = drawn.masked if drawn.replaced is None else drawn.masked | drawn.replaced
    assert drawn.masked.shape == (rows, np.prod(grid))
    assert drawn.predicted.any(1).all() and not changed.all(1).any()
    assert (drawn.predicted | ~drawn.masked).all(), "all that is masked is predicted"
    if not isinstance(mask, TokenMask | BlockMask) and getattr(mask, "equal", True):
        assert len(set(drawn.masked.sum(1))) == 1


@given(seeds, st.integers(1, 6), st.integers(3, 300), st.floats(0, 1), st.integers(1, 20))
def test_spans_mask_something_and_leave_something_visible(seed: int, rows: int, T: int, prob: float, length: int) -> None:
    masked = SpanMask(prob=prob, length=length).draw(rows, (T,), np.random.default_rng(seed)).masked
    counts = masked.sum(1)
    assert masked.shape == (rows, T)
    assert (counts >= 1).all() and (counts < T).all()
    assert len(set(counts)) == 1


@given(seeds, st.integers(60, 400), st.integers(2, 12))
def test_spans_are_whole_in_a_single_row(seed: int, T: int, length: int) -> None:
    masked = SpanMask(prob=0.5, length=length).draw(1, (T,), np.random.default_rng(seed)).masked[0]
    assert min(runs(masked)) >= length


@given(seeds, st.integers(3, 30))
def test_spans_shrink_on_short_inputs(seed: int, T: int) -> None:
    masked = SpanMask(prob=0.65, length=10).draw(2, (T,), np.random.default_rng(seed)).masked
    assert 1 <= masked.sum(1).min() <= masked.sum(1).max() < T


def test_an_input_too_short_for_a_span_is_told() -> None:
    with pytest.raises(UserError, match="a sequence of 2 positions is too short for 1 masked"):
        SpanMask(min_spans=1).draw(3, (2,), np.random.default_rng(0))


@given(seeds, st.integers(1, 5), st.integers(1, 50))
def test_equalising_only_shows(seed: int, rows: int, T: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.random((rows, T)) < 0.5
    before[:, 0] = True
    after = equalise_counts(before, rng)
    assert not (after & ~before).any()
    assert (after.sum(1) == before.sum(1).min()).all()


@given(seeds, st.integers(1, 4), st.integers(2, 200), st.integers(1, 6))
def test_tokens_are_masked_replaced_or_kept(seed: int, rows: int, T: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    mask = TokenMask(prob=0.3, length=length, keep=0.2, random=0.3).draw(rows, (T,), rng)
    assert mask.replaced is not None and not (mask.masked & mask.replaced).any()
    assert TokenMask(random=0.0).draw(rows, (T,), rng).replaced is None


@pytest.mark.parametrize("T", [2, 3, 5])
def test_short_texts_have_a_masked_and_an_unselected_token(T: int) -> None:
    mask = TokenMask(prob=0.9, length=2, keep=0.3, random=0.3).draw(500, (T,), np.random.default_rng(0))
    assert mask.replaced is not None and not (mask.masked & mask.replaced).any()
    assert mask.masked.any(1).all() and not (mask.masked | mask.replaced).all(1).any()
    if T > 2:
        assert 0 < mask.replaced.mean() < 0.3


def test_tokens_of_a_single_position_are_refused() -> None:
    with pytest.raises(UserError, match="a sequence of 1 position is too short for a masked and a visible one"):
        TokenMask().draw(2, (1,), np.random.default_rng(0))


def test_token_mask_that_masks_none_of_what_it_predicts_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"keep \+ random: 1 of the selected positions leaves none masked"):
        TokenMask(keep=0.5, random=0.5)
    assert TokenMask(keep=0.5, random=0.5, predict="selected").draw(3, (9,), np.random.default_rng(0)).predicted.any(1).all()


def test_tokens_have_the_shares_of_bert() -> None:
    mask = TokenMask().draw(200, (512,), np.random.default_rng(0))
    assert mask.replaced is not None
    chosen = 0.15 * 512 * 200
    assert mask.masked.sum() / chosen == pytest.approx(0.8, abs=0.02)
    assert mask.replaced.sum() / chosen == pytest.approx(0.1, abs=0.015)


@given(seeds, st.integers(1, 5), st.integers(4, 16), st.integers(4, 16), st.floats(0.1, 0.8))
def test_blocks_mask_at_most_what_is_asked(seed: int, rows: int, H: int, W: int, share: float) -> None:
    patches = max(1, int(share * H * W))
    masked = BlockMask(patches=patches, min_patches=min(4, patches)).draw(rows, (H, W), np.random.default_rng(seed)).masked
    assert masked.shape == (rows, H * W) and (masked.sum(1) <= patches).all()
    assert masked.any()


@pytest.mark.parametrize(
    ("mask", "grid"),
    [
        (BlockMask(patches=18, min_patches=16), (6, 6)),
        (BlockMask(patches=18, min_patches=6), (6, 6)),
        (BlockMask(patches=1, min_patches=1), (2, 2)),
        (BlockMask(patches=6, min_patches=6), (3, 4)),
    ],
)
def test_blocks_leave_no_image_unmasked_on_small_grids(mask: BlockMask, grid: tuple[int, int]) -> None:
    assert mask.draw(20_000, grid, np.random.default_rng(0)).masked.any(1).all()


@pytest.mark.parametrize(
    ("mask", "grid"),
    [(BlockMask(patches=3, min_patches=1), (1, 8)), (BlockMask(patches=8, min_patches=8, max_patches=8, aspect=1), (3, 3))],
)
def test_blocks_that_cannot_fit_are_refused(mask: BlockMask, grid: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"^objective\.mask\.min_patches: no rectangle of .* fits in a \d x \d grid: set fewer"):
        mask.draw(1, grid, np.random.default_rng(0))


@given(seeds, block_masks, small_grids)
def test_first_rectangles_are_those_that_draws_have(seed: int, mask: BlockMask, grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    max_area = min(mask.patches, mask.max_patches or mask.patches)
    area = mask.min_patches + (max_area - mask.min_patches) * rng.random(3000)
    ratio = mask.aspect ** (1 - 2 * rng.random(3000))
    sides = np.rint(np.sqrt([area * ratio, area / ratio])).astype(int)
    fits = (sides > 0).all(0) & (np.array(grid) > sides.T).all(1) & (sides.prod(0) <= max_area)
    drawn = set(map(tuple, sides[:, fits].T))
    try:
        first = set(map(tuple, mask._first_rectangles(*grid).T))
    except UserError:
        first = set()
    assert drawn <= first
    assert all(h < grid[0] and w < grid[1] and h * w <= max_area for h, w in first)


@given(seeds)
def test_a_single_block_is_a_rectangle(seed: int) -> None:
    mask = BlockMask(patches=12, min_patches=12, max_patches=12).draw(1, (8, 8), np.random.default_rng(seed)).masked
    grid = mask.reshape(8, 8)
    rows, columns = np.flatnonzero(grid.any(1)), np.flatnonzero(grid.any(0))
    first = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert first.all() or grid.sum() < first.size  # one rectangle, or several


def test_block_mask_needs_a_grid_and_a_visible_patch() -> None:
    with pytest.raises(UserError, match="two-dimensional grid"):
        BlockMask().draw(1, (196,), np.random.default_rng(0))
    with pytest.raises(UserError, match="36 patches of a 6 x 6 grid leave none visible: set fewer than 36"):
        BlockMask(patches=36).draw(1, (6, 6), np.random.default_rng(0))


@given(seeds, st.integers(1, 5), grids, shares, shares, st.integers(1, 7), st.booleans())
def test_fixed_blocks_mask_the_same_number_in_every_row(
    seed: int, rows: int, grid: tuple[int, ...], prob: float, adjust: float, length: int, inverse: bool
) -> None:
    T, mask = int(np.prod(grid)), FixedBlockMask(prob=prob, adjust=adjust, length=length, inverse=inverse)
    count = T - int(T * (1 - prob)) if inverse else int(T * prob)
    if count in (0, T):
        with pytest.raises(UserError, match=r"^objective\.mask\.prob: .* masks all or none.*$"):
            mask.draw(rows, grid, np.random.default_rng(seed))
    else:
        masked = mask.draw(rows, grid, np.random.default_rng(seed)).masked
        assert masked.shape == (rows, T) and masked.dtype == bool
        assert (masked.sum(1) == count).all()


@given(seeds, st.integers(1, 5), st.integers(1, 300), shares)
def test_random_masks_have_the_same_number_in_every_row(seed: int, rows: int, T: int, prob: float) -> None:
    count = T - int(T * (1 - prob))
    if count in (0, T):
        with pytest.raises(UserError, match=r"^objective\.mask\.prob: .* masks all or none.*$"):
            RandomMask(prob=prob).draw(rows, (T,), np.random.default_rng(seed))
    else:
        masked = RandomMask(prob=prob).draw(rows, (T,), np.random.default_rng(seed)).masked
        assert masked.shape == (rows, T) and (masked.sum(1) == count).all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("grid", "length"), [((64,), 4), ((64,), 8), ((8, 8), 4), ((16, 16), 4)])
def test_a_fixed_block_is_whole_where_no_border_cuts_it(grid: tuple[int, ...], length: int, inverse: bool) -> None:
    """With room for one block in a row: a square where it fits, and single positions for what a border cuts off."""
    share = length ** len(grid) / np.prod(grid)  # a power of two, so that 1 - share is exact
    mask = FixedBlockMask(prob=1 - share if inverse else share, adjust=0, length=length, inverse=inverse)
    masked = mask.draw(2000, grid, np.random.default_rng(0)).masked
    blocks = (masked != inverse).reshape(-1, *grid)
    extents = [(np.ptp(axis) + 1) for block in blocks for axis in np.nonzero(block)]
    whole = (np.reshape(extents, (-1, len(grid))) == length).all(1).mean()
    expected = np.prod([(side - length + 1) / side for side in grid])
    assert abs(whole - expected) < 5 * (expected * (1 - expected) / 2000) ** 0.5 + 0.01  # chance makes some more


def test_the_same_seed_gives_the_same_masks() -> None:
    line, image = (200,), (14, 14)
    for mask, grid in (
        (SpanMask(), line), (TokenMask(), line), (BlockMask(), image),
        (FixedBlockMask(), line), (FixedBlockMask(length=3, inverse=True), image), (RandomMask(), line),
    ):  # fmt: skip
        first, again, other = (mask.draw(4, grid, np.random.default_rng(seed)) for seed in (3, 3, 4))
        assert (first.masked == again.masked).all()
        assert (first.masked != other.masked).any()
        assert len({row.tobytes() for row in first.masked}) == 4


# Means and standard errors of 1,600 to 4,000 masks of the official code; T = positions, R = rows of a batch.
@pytest.mark.parametrize(
    ("mask", "grid", "rows", "count", "longest_run", "spread"),
    [
        (SpanMask(), (500,), 8, 223.42, 6.739, 9.79),
        (SpanMask(), (999,), 8, 459.63, 8.198, 13.15),
        (SpanMask(), (500,), 1, 245.28, 14.621, 14.54),
        (TokenMask(prob=0.35, length=4, keep=0, random=0), (512,), 1, 156.89, 5.011, 5.78),
        (SpanMask(prob=0.5, length=5), (500,), 8, 193.68, 5.202, 5.46),
    ],
)
def test_spans_are_distributed_as_in_the_official_code(
    mask: SpanMask | TokenMask, grid: tuple[int], rows: int, count: float, longest_run: float, spread: float
) -> None:
    rng = np.random.default_rng(0)
    masked = np.concatenate([mask.draw(rows, grid, rng).masked for _ in range(2400 // rows)])
    counts = masked.sum(1)
    # rows of a batch share their count: so many fewer are independent
    assert abs(counts.mean() - count) < 5 * spread * (rows / 2400 + rows / 2400) ** 0.5
    assert counts.std() == pytest.approx(spread, rel=0.15)
    assert np.mean([length for row in masked for length in runs(row)]) == pytest.approx(longest_run, rel=0.06)


@pytest.mark.parametrize(("patches", "count", "same_right"), [(75, 74.50, 0.889), (120, 119.52, 0.883)])
def test_blocks_are_distributed_as_in_the_official_code(patches: int, count: float, same_right: float) -> None:
    masked = BlockMask(patches=patches).draw(2000, (14, 14), np.random.default_rng(0)).masked.reshape(-1, 14, 14)
    counts = masked.sum((1, 2))
    assert counts.mean() == pytest.approx(count, abs=0.15)  # five standard errors of 2,000 + 2,000
    assert counts.max() == patches
    assert (masked[:, :, 1:] == masked[:, :, :-1]).mean() == pytest.approx(same_right, abs=0.006)
    assert masked.mean(0)[0, 0] < 0.5 * masked.mean(0)[7, 7]


# Of 1,600 to 4,000 masks of the official code, as those above. Ends: the first and the last position, then their neighbours.
@pytest.mark.parametrize(
    ("mask", "T", "count", "rows", "run", "spread", "of_one", "of_five", "ends"),
    [
        (FixedBlockMask(prob=0.5, adjust=0.05, length=5), 500, 250, 56.173, 4.451, 5.731, 0.4083, 0.2376, (0.378, 0.448)),
        (FixedBlockMask(prob=0.5, adjust=0.05, length=5), 999, 499, 112.967, 4.417, 8.060, 0.4179, 0.2298, (0.373, 0.440)),
        (FixedBlockMask(prob=0.55, adjust=0.1, length=5), 500, 275, 55.022, 4.998, 6.115, 0.3702, 0.2279, (0.421, 0.492)),
        (RandomMask(prob=0.48), 512, 246, 128.276, 1.918, 5.544, 0.5200, 0.0272, (0.473, 0.477)),
    ],
)  # fmt: skip
def test_masks_of_version_2_are_distributed_as_in_the_official_code(
    mask: FixedBlockMask | RandomMask, T: int, count: int, rows: float, run: float, spread: float, of_one: float,
    of_five: float, ends: tuple[float, float],
) -> None:  # fmt: skip
    masked = mask.draw(2400, (T,), np.random.default_rng(0)).masked
    assert (masked.sum(1) == count).all()
    each = [runs(row) for row in masked]
    lengths = np.concatenate(each)
    numbers = np.array([len(row) for row in each])
    assert abs(numbers.mean() - rows) < 5 * spread * (2 / 1600) ** 0.5
    assert numbers.std() == pytest.approx(spread, rel=0.1)
    assert lengths.mean() == pytest.approx(run, rel=0.02)
    assert (lengths == 1).mean() == pytest.approx(of_one, abs=0.015)
    assert (lengths == 5).mean() == pytest.approx(of_five, abs=0.015)
    share = masked.mean(0)
    assert [(share[i] + share[-1 - i]) / 2 for i in (0, 1)] == pytest.approx(ends, abs=0.055)  # five standard errors
    assert share[16:-16].mean() == pytest.approx(count / T, abs=0.006)


@pytest.mark.parametrize(
    ("prob", "adjust", "side", "count", "same_right", "components", "corner", "edge", "inside"),
    [
        (0.8, 0.07, 14, 157, 0.8652, 5.317, 0.8911, 0.8461, 0.7835),
        (0.75, 0.1, 14, 147, 0.8381, 5.221, 0.8630, 0.8040, 0.7289),
        (0.75, 0.1, 16, 192, 0.8416, 6.302, 0.8633, 0.8101, 0.7305),
    ],
)
def test_masks_of_images_are_distributed_as_in_the_official_code(
    prob: float, adjust: float, side: int, count: int, same_right: float, components: float, corner: float, edge: float,
    inside: float,
) -> None:  # fmt: skip
    mask = FixedBlockMask(prob=prob, adjust=adjust, length=3, inverse=True)
    masked = mask.draw(4000, (side, side), np.random.default_rng(0)).masked.reshape(-1, side, side)
    assert (masked.sum((1, 2)) == count).all()
    assert (masked[:, :, 1:] == masked[:, :, :-1]).mean() == pytest.approx(same_right, abs=0.003)
    assert (masked[:, 1:] == masked[:, :-1]).mean() == pytest.approx(same_right, abs=0.003)
    within = np.zeros((3, 3, 3), int)
    within[1] = ndimage.generate_binary_structure(2, 1)
    assert ndimage.label(~masked, within)[1] / 4000 == pytest.approx(components, abs=5 * 2.4 * (2 / 4000) ** 0.5)
    share = masked.mean(0)
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(corner, abs=0.02)
    edges = [share[0, 1:-1], share[-1, 1:-1], share[1:-1, 0], share[1:-1, -1]]
    assert np.mean(edges) == pytest.approx(edge, abs=0.005)
    assert share[1:-1, 1:-1].mean() == pytest.approx(inside, abs=0.003)
