"""Which positions are masked in the student's input (paper, section 3.2): spans of speech, blocks of patches, tokens of text.

Masks are drawn on the CPU, for all rows of a group at once. R rows, T positions. Every row has a position that is predicted and
one that is visible; where that is impossible, UserError says so.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data2vec.errors import UserError
from data2vec.settings import Fraction, Settings

Count = Annotated[int, Field(gt=0)]
Bools = np.ndarray


@dataclass(frozen=True)
class Mask:
    """Masks of a group of rows."""

    masked: Bools
    """(R, T): masked in the student's input."""
    replaced: Bools | None = None
    """(R, T): replaced by random content in the student's input; None when none are."""
    selected: Bools | None = None
    """(R, T): predicted, if these are not the masked ones alone."""

    @property
    def predicted(self) -> Bools:
        """(R, T): predicted."""
        return self.masked if self.selected is None else self.selected


class SpanMask(Settings):
    """Spans of `length` positions, which may overlap (wav2vec 2.0; speech). All rows get the same number."""

    kind: Literal["span"] = "span"
    prob: Fraction = 0.65
    """Share of the positions that spans would cover if none overlapped: prob·T/length spans start in a row."""
    length: Count = 10
    """Positions of a span."""
    min_spans: Count = 1
    """Minimum number of spans in a row."""
    equal: bool = True
    """Make random masked positions visible again until all rows have the same number of masked ones."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` sequences of T = prod(grid) positions.

        Raises UserError when a row is too short for both masked and visible positions."""
        T = int(np.prod(grid))
        if self.min_spans + 2 > T:
            raise UserError(
                f"a sequence of {T} positions is too short for {self.min_spans} masked span(s) and a visible position: "
                "leave out shorter examples (data.min_seconds for speech), or lower objective.mask.min_spans"
            )
        count = np.maximum(self.min_spans, np.floor(self.prob * T / self.length + rng.random(rows)).astype(int))
        count = np.minimum(count, T - 2)
        length = np.where(T - self.length <= count, T - count - 1, self.length)
        # The released code never starts a span at the last position where it would fit (docs/differences.md).
        masked = draw_spans(T, count, length, T - length, rng)
        return Mask(equalise_counts(masked, rng) if self.equal else masked)


class TokenMask(Settings):
    """Tokens, or short spans of them, some of which stay unchanged or become random, as in BERT (text)."""

    kind: Literal["token"] = "token"
    prob: Fraction = 0.15
    """Share of the positions that are selected: prob·T/length spans start in a row."""
    length: Count = 1
    """Tokens of a span (fairseq: mask_multiple_length)."""
    keep: Fraction = 0.1
    """Share of the selected positions that stay unchanged (fairseq: leave_unmasked_prob)."""
    random: Fraction = 0.1
    """Share of the selected positions that get a random token (fairseq: random_token_prob)."""
    predict: Literal["masked", "selected"] = "masked"
    """What is predicted: of the selected positions those that are masked, as in data2vec; or all of them, as in BERT."""

    @model_validator(mode="after")
    def _some_are_masked(self) -> Self:
        if self.predict == "masked" and self.keep + self.random >= 1:
            raise ValueError(
                f"keep + random: {self.keep + self.random:g} of the selected positions leaves none masked, and only masked "
                "ones are predicted: set less than 1, or predict to selected"
            )
        return self

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` sequences of T = prod(grid) positions.

        At least one token of a row is not selected, and where only masked ones are predicted, at least one is masked. Raises
        UserError when a row has a single position."""
        T = int(np.prod(grid))
        if T < 2:
            raise UserError("a sequence of 1 position is too short for a masked and a visible one: leave out shorter examples")
        count = np.maximum(1, np.floor(self.prob * T / self.length + rng.random(rows)).astype(int))
        selected = draw_spans(T, np.minimum(count, T), np.full(rows, self.length), np.full(rows, T), rng)
        if (all_selected := selected.all(1)).any():
            selected[all_selected] &= ~random_position(selected[all_selected], rng)
        uniform = rng.random(selected.shape)
        replaced = selected & (uniform < self.random)
        unchanged = selected & (uniform >= self.random) & (uniform < self.random + self.keep)
        masked = selected & ~replaced & ~unchanged
        if self.predict == "masked" and (none := ~masked.any(1)).any():
            masked[none] = random_position(selected[none], rng)
            replaced &= ~masked
        return Mask(masked, replaced if self.random else None, selected if self.predict == "selected" else None)


class BlockMask(Settings):
    """Rectangles of patches (BEiT; vision), drawn until `patches` are masked or ten draws in a row do not fit.

    The released code leaves an image unmasked whose first ten draws do not fit, which is common on small grids. Here the tenth
    is then one that fits."""

    kind: Literal["block"] = "block"
    patches: Count = 120
    """Number of masked patches: 120 of 14 x 14 (fairseq: num_mask_patches)."""
    min_patches: Count = 16
    """Patches of the smallest rectangle."""
    max_patches: Count | None = None
    """Patches of the largest rectangle; None: as many as are still to be masked."""
    aspect: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Aspect ratio of a rectangle, height over width: between this and its inverse."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` images of `grid` = (height, width) patches. Raises UserError for another grid, or a smaller one."""
        if len(grid) != 2:
            raise UserError(
                "objective.mask.kind: block masks need a two-dimensional grid, such as an image's; use span or token"
            )
        H, W = grid
        if self.patches >= H * W:
            raise UserError(
                f"objective.mask.patches: {self.patches} patches of a {H} x {W} grid leave none visible: set fewer than {H * W}"
            )
        first = self._first_rectangles(H, W)
        masked = np.zeros((rows, H, W), bool)
        tries = np.zeros(rows, int)
        down, across = np.arange(H)[:, None], np.arange(W)
        while True:
            unfinished = np.flatnonzero((masked.sum((1, 2)) < self.patches) & (tries < 10))
            if not len(unfinished):
                return Mask(masked.reshape(rows, -1))
            n = len(unfinished)
            max_area = self.patches - masked[unfinished].sum((1, 2))
            max_area = max_area if self.max_patches is None else np.minimum(max_area, self.max_patches)
            area = self.min_patches + (max_area - self.min_patches) * rng.random(n)
            ratio = np.exp(np.log(self.aspect) * (1 - 2 * rng.random(n)))
            h, w = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
            unmasked = (tries[unfinished] == 9) & ~masked[unfinished].any((1, 2))
            if unmasked.any():
                h[unmasked], w[unmasked] = first[:, rng.integers(first.shape[1], size=unmasked.sum())]
            top = np.floor(rng.random(n) * (H - h + 1))[:, None, None]
            left = np.floor(rng.random(n) * (W - w + 1))[:, None, None]
            block = (down >= top) & (down < top + h[:, None, None]) & (across >= left) & (across < left + w[:, None, None])
            added = (block & ~masked[unfinished]).sum((1, 2))
            fits = (h < H) & (w < W) & (added > 0) & (added <= max_area)
            masked[unfinished[fits]] |= block[fits]
            tries[unfinished] = np.where(fits, 0, tries[unfinished] + 1)

    def _first_rectangles(self, H: int, W: int) -> np.ndarray:
        """(2, N): all heights and widths that a draw can have and that fit an unmasked image. Raises UserError when none do."""
        max_area = min(self.patches, self.max_patches or self.patches)
        h, w = np.indices((H, W)).reshape(2, -1)
        h, w = np.stack([h, w])[:, (h > 0) & (w > 0) & (h * w <= max_area)]
        # Sides are rounded, so that in log space the sides of a draw are in a box. It has to meet the box of areas and aspects,
        # which stands on a corner: two convex shapes meet if their projections meet on the normals of all sides.
        (low_h, low_w), (high_h, high_w) = np.log([h - 0.5, w - 0.5]), np.log([h + 0.5, w + 0.5])
        low, high = np.log(sorted((self.min_patches, max_area)))
        tilt = -np.log(self.aspect)
        fits = (low_h + low_w < high) & (high_h + high_w > low) & (low_h - high_w < tilt) & (high_h - low_w > -tilt)
        for low_side, high_side in ((low_h, high_h), (low_w, high_w)):
            fits &= (2 * low_side < high + tilt) & (2 * high_side > low - tilt)
        if not fits.any():
            raise UserError(
                f"objective.mask.min_patches: no rectangle of {self.min_patches} patches, of at most {max_area}, with aspect "
                f"{self.aspect:g} to {1 / self.aspect:g} fits in a {H} x {W} grid: set fewer, or mask.kind to random"
            )
        return np.stack([h, w])[:, fits]


class FixedBlockMask(Settings):
    """Blocks of one size around random centres: spans of a sequence, squares of an image (data2vec 2.0).

    Blocks are clipped at the borders. Single positions are then added or removed, so that every row has the same number."""

    kind: Literal["fixed-block"] = "fixed-block"
    prob: Fraction = 0.5
    """R: share of the positions that is masked (fairseq: mask_prob)."""
    adjust: Fraction = 0.05
    """A: added to the share when blocks are drawn, since blocks overlap (fairseq: mask_prob_adjust)."""
    length: Count = 5
    """Side of a block."""
    inverse: bool = False
    """Whether the blocks stay visible and everything else is masked (images)."""
    extrude: Literal["time"] | None = None
    """Of a grid of time, rows and columns: draw blocks of rows and columns, which hold at all times. None: blocks of time, rows
    and columns."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` sequences, images or videos of `grid` positions. Raises UserError when none or all would be masked,
        and for another grid than `extrude` needs."""
        if self.extrude is not None:
            return extruded(self.model_copy(update={"extrude": None}), rows, grid, rng)
        T, share = int(np.prod(grid)), 1 - self.prob if self.inverse else self.prob
        final = int(T * share)
        if not 0 < final < T:
            raise UserError(
                f"objective.mask.prob: {self.prob} of {T} positions masks all or none: leave out shorter examples, "
                "or set another share"
            )
        centres = np.unravel_index(
            rng.integers(T, size=(rows, int(T * (share + self.adjust) / self.length ** len(grid)))), grid
        )
        offsets = np.indices((self.length,) * len(grid)).reshape(len(grid), -1) - self.length // 2
        positions = np.ravel_multi_index(
            [np.clip(c[..., None] + o, 0, side - 1) for c, o, side in zip(centres, offsets, grid, strict=True)], grid
        )
        in_block = np.zeros((rows, T), bool)
        np.put_along_axis(in_block, positions.reshape(rows, -1), True, axis=1)
        in_block = smallest_of_row(final, np.where(in_block, 0.0, 1.0) + rng.random(in_block.shape))
        return Mask(~in_block if self.inverse else in_block)


class RandomMask(Settings):
    """Single positions, uniformly drawn, the same number in every row (data2vec 2.0; text)."""

    kind: Literal["random"] = "random"
    prob: Fraction = 0.48
    """R: share of the positions that is masked (fairseq: mask_prob)."""
    extrude: Literal["time"] | None = None
    """Of a grid of time, rows and columns: draw rows and columns, which are masked at all times (VideoMAE's tubes)."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` sequences of `grid` positions. Raises UserError when none or all would be masked, and for another
        grid than `extrude` needs."""
        if self.extrude is not None:
            return extruded(self.model_copy(update={"extrude": None}), rows, grid, rng)
        T = int(np.prod(grid))
        num_visible = int(T * (1 - self.prob))
        if not 0 < num_visible < T:
            raise UserError(f"objective.mask.prob: {self.prob} of {T} positions masks all or none: set another share")
        return Mask(~smallest_of_row(num_visible, rng.random((rows, T))))


MaskSettings = Annotated[SpanMask | TokenMask | BlockMask | FixedBlockMask | RandomMask, Field(discriminator="kind")]
EqualMaskSettings = Annotated[FixedBlockMask | RandomMask, Field(discriminator="kind")]
"""The masks that have the same number of masked positions in every row."""


def extruded(mask: "FixedBlockMask | RandomMask", rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """Masks of the rows and columns of `grid`, the same at all times. Raises UserError for a grid without time."""
    if len(grid) != 3:
        raise UserError("objective.mask.extrude: time needs positions in time, rows and columns, as of video; set it to null")
    return Mask(np.tile(mask.draw(rows, grid[1:], rng).masked, (1, grid[0])))


def draw_spans(T: int, count: np.ndarray, length: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Bools:
    """(R, T): in each row the union of `count` spans of `length`, starting at distinct positions among the first `starts`."""
    rows, max_count = len(count), int(count.max())
    keys = np.where(np.arange(T) < starts[:, None], rng.random((rows, T)), 2.0)
    first = np.argpartition(keys, max_count - 1, axis=1)[:, :max_count] if max_count < T else np.argsort(keys, axis=1)
    order = np.take_along_axis(first, np.take_along_axis(keys, first, 1).argsort(1), 1)
    row, nth = np.nonzero(np.arange(order.shape[1]) < np.minimum(count, starts)[:, None])
    start = order[row, nth]
    edges = np.zeros((rows, T + 1), np.int32)
    edges[row, start] += 1
    np.subtract.at(edges, (row, np.minimum(start + length[row], T)), 1)
    return edges[:, :T].cumsum(1) > 0


def equalise_counts(masked: Bools, rng: np.random.Generator) -> Bools:
    """Make random masked positions visible again until every row has as many masked ones as the row with the fewest."""
    fewest = int(masked.sum(1).min())
    if fewest == masked.shape[1]:
        return masked
    return smallest_of_row(fewest, np.where(masked, rng.random(masked.shape), 2.0))


def random_position(candidates: Bools, rng: np.random.Generator) -> Bools:
    """(R, T): one of the positions that are True in each row of `candidates`."""
    return smallest_of_row(1, np.where(candidates, rng.random(candidates.shape), 2.0))


def smallest_of_row(count: int, keys: np.ndarray) -> Bools:
    """(R, T): True at the `count` smallest of each row of `keys`."""
    smallest = np.zeros(keys.shape, bool)
    np.put_along_axis(smallest, np.argpartition(keys, count - 1, axis=1)[:, :count], True, axis=1)
    return smallest
