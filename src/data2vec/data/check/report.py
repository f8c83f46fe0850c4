"""The report of a data check: counts, distributions, corrupt and duplicate files, and whether training can start."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data2vec.data.dataset import DataSettings
from data2vec.data.sources.formats import SignalKind

SHORT_SECONDS, LONG_SECONDS = 2.0, 20.0
"""The `data.min_seconds` and `data.max_seconds` of all but the tiny speech recipes."""
FLAGS: dict[SignalKind, dict[str, tuple[str, str]]] = {
    "audio": {
        f"under {SHORT_SECONDS:g} s": (
            f"seconds < {SHORT_SECONDS}",
            ", skipped except by the tiny recipes (data.min_seconds)",
        ),
        f"over {LONG_SECONDS:g} s": (f"seconds > {LONG_SECONDS}", ", cropped to that length (data.max_seconds)"),
        "silent": ("peak < 0.001", ", peak below -60 dB"),
    },
    "image": {"tiny": ('"shorter side" < 64', " with a side under 64 pixels")},
    "text": {"empty": ("characters = 0", "")},
}
"""Examples that are listed by name: title, SQL condition on what `inspect_example` measures, and explanation."""


@dataclass(frozen=True)
class Distribution:
    """The distribution of a measure over the readable examples."""

    min: float
    median: float
    mean: float
    max: float
    total: float


@dataclass(frozen=True)
class KindReport:
    """What was found in the examples of one kind of signal."""

    kind: SignalKind
    examples: int
    bytes: int
    unreadable: list[str]
    """ "name: reason" of each."""
    duplicates: list[list[str]]
    """Groups of names of examples with identical content."""
    classes: dict[str, int]
    """Examples per class, the largest class first; empty without labels."""
    distributions: dict[str, Distribution]
    """Of seconds and peak (audio); shorter side, width and height (image); tokens, words and characters (text)."""
    histogram: dict[float, int]
    """Of the first measure: the number of examples from each key, a power of two, to twice that."""
    counts: dict[str, dict[str, int]]
    """Sample rates, channels, sizes, formats and modes, the most frequent first."""
    flagged: dict[str, list[str]]
    """Names of examples that are short, long, silent, small or empty."""
    token_counter: str | None
    """The tokenizer that tokens were counted with, for the report."""

    @property
    def readable(self) -> int:
        return self.examples - len(self.unreadable)


@dataclass(frozen=True)
class DataReport:
    """What was found in a dataset; `str()` is the report."""

    where: str
    split: str
    parts: tuple[KindReport, ...]
    """One for each kind of signal in the dataset."""
    other_files: str | None
    """Files that were not read, counted by ending."""

    def __str__(self) -> str:
        lines: list[str] = []
        for part in self.parts:
            lines += [f"{self.where}: {part.kind}", *(f"  {key:<14}{text}" for key, text in self._rows(part)), ""]
        if self.other_files:
            lines += [f"not read: {self.other_files}", ""]
        return "\n".join([*lines, *(advice(part, self.where, self.split) for part in self.parts)])

    def _rows(self, part: KindReport) -> Iterator[tuple[str, str]]:
        """(title, text) of each line about one kind."""
        unreadable = part.unreadable
        readable = f"; {part.readable:,} readable, {len(unreadable):,} unreadable" if unreadable else ", all readable"
        yield "examples", f"{part.examples:,}{readable}; {_size(part.bytes)}"
        if part.classes:
            yield "classes", f"{len(part.classes):,}: {_most_frequent(part.classes)}"
        if total := part.distributions.get("seconds"):
            yield "total", f"{total.total / 3600:.2f} hours"
        if total := part.distributions.get("tokens"):
            yield "total", f"{total.total:,.0f} tokens, counted with {part.token_counter}"
        for name, distribution in part.distributions.items():
            yield name, _range(distribution)
            if name == next(iter(part.distributions)):
                yield from _bars(part.histogram)
        for name, counts in part.counts.items():
            if counts:
                yield name, _most_frequent(counts)
        for title, (_, meaning) in FLAGS[part.kind].items():
            if names := part.flagged[title]:
                yield title, f"{len(names):,}{meaning}: {self._some(names, 3, ', ')}"
        if part.duplicates:
            spare = sum(map(len, part.duplicates)) - len(part.duplicates)
            yield "duplicates", f"{spare:,} identical to another example:"
            groups = [self._some(names, 3, " = ") for names in part.duplicates]
            yield from (("", text) for text in self._few(groups, 5))
        if unreadable:
            yield "unreadable", f"{len(unreadable):,}:"
            yield from (("", text) for text in self._few(unreadable, 20))

    def _few(self, texts: list[str], most: int) -> list[str]:
        more = [f"and {len(texts) - most:,} more"] if len(texts) > most else []
        return [self._short(text) for text in texts[:most]] + more

    def _some(self, names: list[str], most: int, between: str) -> str:
        more = f" and {len(names) - most:,} more" if len(names) > most else ""
        return between.join(map(self._short, names[:most])) + more

    def _short(self, name: str) -> str:
        """Without the path of the dataset."""
        return name.removeprefix(f"{self.where.rstrip('/')}/")


class _RecipeNeeds(NamedTuple):
    """What the recipes of a modality need."""

    modality: str
    unit: str
    step: float
    """Units per training step of v2-tiny."""
    min_measure: float
    """The smallest usable example, by its first measure."""
    base: float
    """From this many units on, v2-base is suggested."""
    base_min_measure: float
    """If there are examples of at least this size."""


RECIPE_NEEDS: dict[SignalKind, _RecipeNeeds] = {
    "audio": _RecipeNeeds("speech", "seconds", 8, 0.3, 36_000, SHORT_SECONDS),
    "image": _RecipeNeeds("vision", "images", 64, 0, 10_000, 64),
    "text": _RecipeNeeds("text", "tokens", 8 * 127, 0, 10_000_000, 0),
}


def advice(part: KindReport, where: str, split: str) -> str:
    """One sentence: the command to train with, or what to fix first."""
    needs = RECIPE_NEEDS[part.kind]
    allowed = max(1, int(DataSettings().max_corrupt * part.examples))
    first = next(iter(part.distributions.values()), None)
    if first is None:
        return f"Not ready: no example can be read as {part.kind}."
    if len(part.unreadable) > allowed:
        share = min(1.0, len(part.unreadable) / part.examples + 0.005)
        return (
            f"Fix first: {len(part.unreadable):,} of {part.examples:,} examples cannot be read, data.max_corrupt tolerates "
            f"{allowed:,}: repair or remove them, or set data.max_corrupt={share:.2f}."
        )
    if first.max < needs.min_measure:
        return f"Fix first: all clips are shorter than {needs.min_measure:g} s: join them, or lower data.min_seconds."
    amount = part.readable if part.kind == "image" else first.total
    if amount < needs.step:
        batch = f"a step of {needs.modality}/v2-tiny needs {needs.step:g} {needs.unit}"
        return f"Not ready: {batch}, but there are only {amount:g}: add data, or lower the batch."
    size = "base" if amount >= needs.base and first.max >= needs.base_min_measure else "tiny"
    other = f" data.split={shlex.quote(split)}" if split != "train" else ""
    return f"Ready: data2vec pretrain {needs.modality}/v2-{size} data.train={shlex.quote(where)}{other}"


def _bars(histogram: dict[float, int]) -> Iterator[tuple[str, str]]:
    longest = max(histogram.values(), default=0)
    for low, number in histogram.items():
        between = f"{_plain(low)} to {_plain(2 * low)}"
        yield "", f"{between:>16} {'▇' * max(1, round(30 * number / longest))} {number:,}"


def _most_frequent(counts: dict[str, int], most: int = 6) -> str:
    shown = ", ".join(f"{name} ({number:,})" for name, number in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most:,} more" if len(counts) > most else "")


def _range(distribution: Distribution) -> str:
    if distribution.min == distribution.max:
        return f"all {_plain(distribution.min)}"
    ends = f"{_plain(distribution.min)} to {_plain(distribution.max)}"
    return f"{ends}, median {_plain(distribution.median)}, mean {_plain(distribution.mean)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def _size(number: float) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, int(math.log10(max(1, number)) / 3))
    return f"{number / 1000**power:.3g} {units[power]}"
