"""Which positions are hidden from the student (paper, section 3.2): spans of speech, blocks of patches, tokens of text.

Masks are drawn on the CPU, for all rows of a group at once. R rows, T positions.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data2vec.errors import UserError
from data2vec.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Bools = np.ndarray


@dataclass(frozen=True)
class Mask:
    """What was drawn for a group."""

    hidden: Bools
    """(R, T): hidden from the student, and predicted."""
    replaced: Bools | None = None
    """(R, T): shown to the student as something random, and not predicted; None when nothing is."""


class SpanMask(Settings):
    """Spans of `length` positions, which may overlap (wav2vec 2.0; speech). All rows get the same number."""

    kind: Literal["span"] = "span"
    prob: Share = 0.65
    """Share of the positions that spans would cover if none overlapped: prob·T/length spans start in a row."""
    length: Count = 10
    """Positions of a span."""
    min_spans: Count = 1
    """At least so many spans in a row."""
    equal: bool = True
    """Rows with more hidden positions than the others get some of them back, at random."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator, lengths: np.ndarray | None = None) -> Mask:
        """Masks for `rows` sequences of T = prod(grid) positions, of which the first `lengths` (R,) are not padding.

        Raises UserError when a row is too short to hide anything and still show something."""
        T = int(np.prod(grid))
        valid = np.full(rows, T) if lengths is None else np.asarray(lengths)
        if (short := valid.min()) < self.min_spans + 2:
            raise UserError(
                f"a sequence of {short} positions is too short for {self.min_spans} masked span(s) with something left to see: "
                "leave out shorter examples (data.min_seconds for speech), or lower objective.mask.min_spans"
            )
        count = np.maximum(self.min_spans, np.floor(self.prob * valid / self.length + rng.random(rows)).astype(int))
        count = np.minimum(count, valid - 2)
        length = np.where(valid - self.length <= count, valid - count - 1, self.length)
        # The released code never starts a span at the last place where it would fit (docs/differences.md).
        hidden = spans(T, count, length, valid - length, rng) & (np.arange(T) < valid[:, None])
        return Mask(equalise(hidden, rng) if self.equal else hidden)


class TokenMask(Settings):
    """Tokens, or short spans of them, with BERT's share of kept and random ones (text)."""

    kind: Literal["token"] = "token"
    prob: Share = 0.15
    """Share of the positions that are chosen: prob·T/length spans start in a row."""
    length: Count = 1
    """Tokens of a span (fairseq: mask_multiple_length)."""
    keep: Share = 0.1
    """Share of the chosen positions that stay as they are; they are not predicted (fairseq: leave_unmasked_prob)."""
    random: Share = 0.1
    """Share of the chosen positions that show a random token; they are not predicted (fairseq: random_token_prob)."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator, lengths: np.ndarray | None = None) -> Mask:
        """Masks for `rows` sequences of T = prod(grid) positions, of which the first `lengths` (R,) are not padding."""
        T = int(np.prod(grid))
        valid = np.full(rows, T) if lengths is None else np.asarray(lengths)
        count = np.maximum(1, np.floor(self.prob * valid / self.length + rng.random(rows)).astype(int))
        chosen = spans(T, np.minimum(count, valid), np.full(rows, self.length), valid, rng)
        chosen &= np.arange(T) < valid[:, None]
        fate = rng.random(chosen.shape)
        replaced = chosen & (fate < self.random)
        kept = chosen & (fate >= self.random) & (fate < self.random + self.keep)
        return Mask(chosen & ~replaced & ~kept, replaced if self.random else None)


class BlockMask(Settings):
    """Rectangles of patches (BEiT; vision), until `patches` are hidden or ten tries in a row add nothing."""

    kind: Literal["block"] = "block"
    patches: Count = 120
    """How many patches to hide: 120 of 14 x 14 (fairseq: num_mask_patches)."""
    min_patches: Count = 16
    """Smallest rectangle."""
    max_patches: Count | None = None
    """Largest rectangle; None: whatever is still to hide."""
    aspect: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Height over width lies between this and its inverse."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator, lengths: np.ndarray | None = None) -> Mask:
        """Masks for `rows` images of `grid` = (height, width) patches. Raises UserError for another grid, or a smaller one."""
        if len(grid) != 2:
            raise UserError(
                "objective.mask.kind: block masks need a two-dimensional grid, such as an image's; use span or token"
            )
        H, W = grid
        if self.patches >= H * W:
            raise UserError(f"objective.mask.patches: {self.patches} of {H} x {W} patches would leave nothing to see")
        hidden = np.zeros((rows, H, W), bool)
        tries = np.zeros(rows, int)
        down, across = np.arange(H)[:, None], np.arange(W)
        while True:
            todo = np.flatnonzero((hidden.sum((1, 2)) < self.patches) & (tries < 10))
            if not len(todo):
                return Mask(hidden.reshape(rows, -1))
            n = len(todo)
            most = self.patches - hidden[todo].sum((1, 2))
            most = most if self.max_patches is None else np.minimum(most, self.max_patches)
            area = self.min_patches + (most - self.min_patches) * rng.random(n)
            ratio = np.exp(np.log(self.aspect) * (1 - 2 * rng.random(n)))
            h, w = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
            top = np.floor(rng.random(n) * (H - h + 1))[:, None, None]
            left = np.floor(rng.random(n) * (W - w + 1))[:, None, None]
            block = (down >= top) & (down < top + h[:, None, None]) & (across >= left) & (across < left + w[:, None, None])
            new = (block & ~hidden[todo]).sum((1, 2))
            fits = (h < H) & (w < W) & (new > 0) & (new <= most)
            hidden[todo[fits]] |= block[fits]
            tries[todo] = np.where(fits, 0, tries[todo] + 1)


class FixedBlockMask(Settings):
    """Blocks of one size around random centres, then single positions until the count is right (data2vec 2.0).

    The same number in every row. Spans of a sequence, squares of an image; cut where they cross a border."""

    kind: Literal["fixed-block"] = "fixed-block"
    prob: Share = 0.5
    """R: share of the positions that is hidden (fairseq: mask_prob)."""
    adjust: Share = 0.05
    """A: blocks are drawn for this much more, since they overlap (fairseq: mask_prob_adjust)."""
    length: Count = 5
    """Side of a block."""
    inverse: bool = False
    """The blocks are what is kept, not what is hidden (images)."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` sequences or images of `grid` positions. Raises UserError when nothing is hidden or nothing left."""
        T, share = int(np.prod(grid)), 1 - self.prob if self.inverse else self.prob
        final = int(T * share)
        if not 0 < final < T:
            raise UserError(
                f"objective.mask.prob: {self.prob} of {T} positions hides all or nothing: leave out shorter examples, "
                "or choose another share"
            )
        centres = np.unravel_index(
            rng.integers(T, size=(rows, int(T * (share + self.adjust) / self.length ** len(grid)))), grid
        )
        offsets = np.indices((self.length,) * len(grid)).reshape(len(grid), -1) - self.length // 2
        places = np.ravel_multi_index(
            [np.clip(c[..., None] + o, 0, side - 1) for c, o, side in zip(centres, offsets, grid, strict=True)], grid
        )
        chosen = np.zeros((rows, T), bool)
        np.put_along_axis(chosen, places.reshape(rows, -1), True, axis=1)
        chosen = exactly(final, np.where(chosen, 0.0, 1.0) + rng.random(chosen.shape))
        return Mask(~chosen if self.inverse else chosen)


class RandomMask(Settings):
    """Single positions, each as likely as any other, the same number in every row (data2vec 2.0; text)."""

    kind: Literal["random"] = "random"
    prob: Share = 0.48
    """R: share of the positions that is hidden (fairseq: mask_prob)."""

    def draw(self, rows: int, grid: tuple[int, ...], rng: np.random.Generator) -> Mask:
        """Masks for `rows` sequences of `grid` positions. Raises UserError when nothing is hidden or nothing left."""
        T = int(np.prod(grid))
        kept = int(T * (1 - self.prob))
        if not 0 < kept < T:
            raise UserError(f"objective.mask.prob: {self.prob} of {T} positions hides all or nothing")
        return Mask(~exactly(kept, rng.random((rows, T))))


MaskSettings = Annotated[SpanMask | TokenMask | BlockMask | FixedBlockMask | RandomMask, Field(discriminator="kind")]
EqualMaskSettings = Annotated[FixedBlockMask | RandomMask, Field(discriminator="kind")]
"""Those that hide the same number in every row, always."""


def spans(T: int, count: np.ndarray, length: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Bools:
    """(R, T): in each row the union of `count` spans of `length`, at distinct places among the first `starts`."""
    rows, most = len(count), int(count.max())
    keys = np.where(np.arange(T) < starts[:, None], rng.random((rows, T)), 2.0)
    first = np.argpartition(keys, most - 1, axis=1)[:, :most] if most < T else np.argsort(keys, axis=1)
    order = np.take_along_axis(first, np.take_along_axis(keys, first, 1).argsort(1), 1)
    row, nth = np.nonzero(np.arange(order.shape[1]) < np.minimum(count, starts)[:, None])
    start = order[row, nth]
    edges = np.zeros((rows, T + 1), np.int32)
    edges[row, start] += 1
    np.subtract.at(edges, (row, np.minimum(start + length[row], T)), 1)
    return edges[:, :T].cumsum(1) > 0


def equalise(hidden: Bools, rng: np.random.Generator) -> Bools:
    """Show random hidden positions again until every row hides as many as the row with the fewest."""
    fewest = int(hidden.sum(1).min())
    if fewest == hidden.shape[1]:
        return hidden
    return exactly(fewest, np.where(hidden, rng.random(hidden.shape), 2.0))


def exactly(count: int, keys: np.ndarray) -> Bools:
    """(R, T): True at the `count` smallest of each row of `keys`."""
    chosen = np.zeros(keys.shape, bool)
    np.put_along_axis(chosen, np.argpartition(keys, count - 1, axis=1)[:, :count], True, axis=1)
    return chosen
