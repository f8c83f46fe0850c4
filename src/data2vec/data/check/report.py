"""What a check of a data set found, as a report."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data2vec.data.dataset import DataSettings
from data2vec.data.sources.formats import SignalKind

SHORT_SECONDS, LONG_SECONDS = 2.0, 20.0
"""The `data.min_seconds` and `data.max_seconds` of all but the tiny speech recipes."""
NOTICED: dict[SignalKind, dict[str, tuple[str, str]]] = {
    "audio": {
        f"under {SHORT_SECONDS:g} s": (
            f"seconds < {SHORT_SECONDS}",
            ", left out except by the tiny recipes (data.min_seconds)",
        ),
        f"over {LONG_SECONDS:g} s": (f"seconds > {LONG_SECONDS}", ", cropped to that (data.max_seconds)"),
        "silent": ("peak < 0.001", ", never louder than -60 dB"),
    },
    "image": {"tiny": ('"shorter side" < 64', " with a side under 64 pixels")},
    "text": {"empty": ("characters = 0", "")},
}
"""What else is told, how it is found among what `examine` measures, and what it means."""


@dataclass(frozen=True)
class Spread:
    """How a number is distributed over the examples that can be read."""

    least: float
    median: float
    mean: float
    greatest: float
    total: float


@dataclass(frozen=True)
class Findings:
    """Of one kind of signal."""

    kind: SignalKind
    examples: int
    bytes: int
    unreadable: list[str]
    """ "name: reason" of each."""
    duplicates: list[list[str]]
    """Names of examples whose content is the same, byte by byte."""
    classes: dict[str, int]
    """Examples of each class, the largest first; empty without labels."""
    spreads: dict[str, Spread]
    """Of seconds and peak (audio); shorter side, width and height (image); tokens, words and characters (text)."""
    histogram: dict[float, int]
    """Of the first of these: how many lie from each key, a power of two, to twice that."""
    counts: dict[str, dict[str, int]]
    """Sample rates, channels, sizes, formats and modes, the commonest first."""
    noticed: dict[str, list[str]]
    """Names of examples that are short, long, silent, small or empty."""
    tokens_by: str | None
    """What tokens were counted by."""

    @property
    def readable(self) -> int:
        return self.examples - len(self.unreadable)


@dataclass(frozen=True)
class Check:
    """What was found; `str()` of it is a report."""

    where: str
    split: str
    parts: tuple[Findings, ...]
    """One for each kind of signal that is there."""
    left_aside: str | None
    """Files that were not looked at, by their endings."""

    def __str__(self) -> str:
        lines: list[str] = []
        for part in self.parts:
            lines += [f"{self.where}: {part.kind}", *(f"  {key:<14}{text}" for key, text in self._rows(part)), ""]
        if self.left_aside:
            lines += [f"not looked at: {self.left_aside}", ""]
        return "\n".join([*lines, *(advice(part, self.where, self.split) for part in self.parts)])

    def _rows(self, part: Findings) -> Iterator[tuple[str, str]]:
        """(what, how much) for each line about one kind."""
        bad = part.unreadable
        can = f"; {part.readable:,} can be read, {len(bad):,} cannot" if bad else ", all can be read"
        yield "examples", f"{part.examples:,}{can}; {_size(part.bytes)}"
        if part.classes:
            yield "classes", f"{len(part.classes):,}: {_most(part.classes)}"
        if total := part.spreads.get("seconds"):
            yield "in all", f"{total.total / 3600:.2f} hours"
        if total := part.spreads.get("tokens"):
            yield "in all", f"{total.total:,.0f} tokens, by {part.tokens_by}"
        for name, spread in part.spreads.items():
            yield name, _range(spread)
            if name == next(iter(part.spreads)):
                yield from _bars(part.histogram)
        for name, counts in part.counts.items():
            if counts:
                yield name, _most(counts)
        for title, (_, meaning) in NOTICED[part.kind].items():
            if names := part.noticed[title]:
                yield title, f"{len(names):,}{meaning}: {self._some(names, 3, ', ')}"
        if part.duplicates:
            spare = sum(map(len, part.duplicates)) - len(part.duplicates)
            yield "duplicates", f"{spare:,} have the content of another:"
            groups = [self._some(names, 3, " = ") for names in part.duplicates]
            yield from (("", text) for text in self._few(groups, 5))
        if bad:
            yield "unreadable", f"{len(bad):,}:"
            yield from (("", text) for text in self._few(bad, 20))

    def _few(self, texts: list[str], most: int) -> list[str]:
        more = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
        return [self._short(text) for text in texts[:most]] + more

    def _some(self, names: list[str], most: int, between: str) -> str:
        more = f" and {len(names) - most:,} more" if len(names) > most else ""
        return between.join(map(self._short, names[:most])) + more

    def _short(self, name: str) -> str:
        """Without the folder that was asked about."""
        return name.removeprefix(f"{self.where.rstrip('/')}/")


class _Needs(NamedTuple):
    """What the recipes of a modality ask of data."""

    modality: str
    unit: str
    step: float
    """So many units a step of v2-tiny takes."""
    least: float
    """And examples no smaller than this, by the first of their measures."""
    base: float
    """From so many units on, v2-base is worth naming."""
    base_least: float
    """And where examples reach this."""


NEEDS: dict[SignalKind, _Needs] = {
    "audio": _Needs("speech", "seconds", 8, 0.3, 36_000, SHORT_SECONDS),
    "image": _Needs("vision", "images", 64, 0, 10_000, 64),
    "text": _Needs("text", "tokens", 8 * 127, 0, 10_000_000, 0),
}


def advice(part: Findings, where: str, split: str) -> str:
    """A sentence: how to go on, or what to mend first."""
    needs = NEEDS[part.kind]
    allowed = max(1, int(DataSettings().max_corrupt * part.examples))
    first = next(iter(part.spreads.values()), None)
    if first is None:
        return f"Not ready: none of this can be read as {part.kind}."
    if len(part.unreadable) > allowed:
        share = min(1.0, len(part.unreadable) / part.examples + 0.005)
        return (
            f"Mend first: {len(part.unreadable):,} of {part.examples:,} examples cannot be read, more than the {allowed:,} "
            f"that data.max_corrupt bears; mend or remove them, or give data.max_corrupt={share:.2f}."
        )
    if first.greatest < needs.least:
        return f"Mend first: all clips are shorter than {needs.least:g} s; join them, or lower data.min_seconds."
    amount = part.readable if part.kind == "image" else first.total
    if amount < needs.step:
        few = f"a step of {needs.modality}/v2-tiny takes {needs.step:g} {needs.unit}, and here are {amount:g}"
        return f"Not ready: {few}; take more, or lower its batch."
    size = "base" if amount >= needs.base and first.greatest >= needs.base_least else "tiny"
    other = f" data.split={shlex.quote(split)}" if split != "train" else ""
    return f"Ready: data2vec pretrain {needs.modality}/v2-{size} data.train={shlex.quote(where)}{other}"


def _bars(histogram: dict[float, int]) -> Iterator[tuple[str, str]]:
    longest = max(histogram.values(), default=0)
    for low, number in histogram.items():
        between = f"{_plain(low)} to {_plain(2 * low)}"
        yield "", f"{between:>16} {'▇' * max(1, round(30 * number / longest))} {number:,}"


def _most(counts: dict[str, int], most: int = 6) -> str:
    shown = ", ".join(f"{name} ({number:,})" for name, number in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most:,} more" if len(counts) > most else "")


def _range(spread: Spread) -> str:
    if spread.least == spread.greatest:
        return f"all {_plain(spread.least)}"
    ends = f"{_plain(spread.least)} to {_plain(spread.greatest)}"
    return f"{ends}, median {_plain(spread.median)}, mean {_plain(spread.mean)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def _size(number: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(1, number)) / 3))
    return f"{number / 1000**power:.3g} {units[power]}"
