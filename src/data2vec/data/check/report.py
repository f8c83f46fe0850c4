"""The report of a data check: counts, distributions, corrupt and duplicate files, and whether training can start."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from data2vec.console.quantities import format_bytes
from data2vec.data.audio import SILENCE
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
        "silent": (f"peak < {SILENCE}", ", peak below -60 dB"),
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


class Usable(NamedTuple):
    """What a recipe can train on."""

    examples: int
    amount: float
    """Seconds, images or tokens."""
    steps: int
    """Steps of an epoch."""


@dataclass(frozen=True)
class KindReport:
    """What was found in the examples of one kind of signal."""

    kind: SignalKind
    examples: int
    bytes: int
    unreadable: list[str]
    """ "name: reason" of each."""
    damaged: list[str]
    """Those of them that are shards whose rest cannot be read, which ends a training run."""
    duplicates: list[list[str]]
    """Groups of names of examples with identical content."""
    classes: dict[str, int]
    """Examples per class, the largest class first; empty without labels."""
    unlabelled: int
    """Readable examples without a label, if others have one."""
    distributions: dict[str, Distribution]
    """Of seconds and peak (audio); shorter side, width and height (image); tokens, words and characters (text)."""
    histogram: dict[float, int]
    """Of the first measure: the number of examples from each key, a power of two, to twice that."""
    counts: dict[str, dict[str, int]]
    """Sample rates, channels, sizes, formats and modes, the most frequent first."""
    flagged: dict[str, list[str]]
    """Names of examples that are short, long, silent, small or empty."""
    usable: dict[str, Usable]
    """What training would use, by the recipes that may be suggested."""
    token_counter: str | None
    """The tokenizer that tokens were counted with, for the report."""
    first: list[str]
    """The first examples: the beginning of their text, or their names."""
    splits: dict[str, int]
    """Files, or rows of a table, by the split that they are named by."""

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
    tokenizer_settings: str = ""
    """The settings with which training uses the tokenizer that tokens were counted with, if one was given."""

    def __str__(self) -> str:
        lines: list[str] = []
        for part in self.parts:
            lines += [f"{self.where}: {part.kind}", *(f"  {key:<14}{text}" for key, text in self._rows(part)), ""]
        if self.other_files:
            lines += [f"not read: {self.other_files}", ""]
        own = {"text": self.tokenizer_settings}
        return "\n".join([*lines, *(advice(part, self.where, self.split, own.get(part.kind, "")) for part in self.parts)])

    def _rows(self, part: KindReport) -> Iterator[tuple[str, str]]:
        """(title, text) of each line about one kind."""
        unreadable = part.unreadable
        readable = f"; {part.readable:,} readable, {len(unreadable):,} unreadable" if unreadable else ", all readable"
        yield "examples", f"{part.examples:,}{readable}; {format_bytes(part.bytes)}"
        if part.splits:
            yield "splits", f"{describe_counts(part.splits)}; {self.split} is read"
        for index, value in enumerate(part.first):
            yield "" if index else "first", self._short(value)
        if part.classes:
            unlabelled = f"; {part.unlabelled:,} without" if part.unlabelled else ""
            yield "classes", f"{len(part.classes):,}: {describe_counts(part.classes)}{unlabelled}"
        if total := part.distributions.get("seconds"):
            yield "total", f"{total.total / 3600:.2f} hours"
        if total := part.distributions.get("tokens"):
            yield "total", f"{total.total:,.0f} tokens, counted with {part.token_counter}"
        for name, distribution in part.distributions.items():
            yield name, describe_range(distribution)
            if name == next(iter(part.distributions)):
                yield from _bars(part.histogram)
        for name, counts in part.counts.items():
            if counts:
                yield name, describe_counts(counts)
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


class RecipeNeeds(NamedTuple):
    """What a recipe needs of the data, in units: seconds, images or tokens."""

    recipe: str
    batch: float
    micro_batch: float
    """Both as in its `data:` section."""
    unit: str
    unit_size: int = 1
    """Units in one example of a batch: of text, the tokens of a block."""
    shortest: float = 0
    longest: float = math.inf
    """Seconds of the shortest clip it uses, and what longer ones are cropped to."""
    enough: float = 0
    """The units from which on it is suggested."""
    side: int = 0
    """Pixels of the shorter side of the largest image from which on it is suggested."""


RECIPE_NEEDS: dict[SignalKind, tuple[RecipeNeeds, RecipeNeeds]] = {
    "audio": (
        RecipeNeeds("speech/v2-base", 500, 62.5, "seconds", shortest=SHORT_SECONDS, longest=LONG_SECONDS, enough=36_000),
        RecipeNeeds("speech/v2-tiny", 8, 8, "seconds", shortest=0.3, longest=4),
    ),
    "image": (
        RecipeNeeds("vision/v2-base", 256, 16, "images", enough=10_000, side=64),
        RecipeNeeds("vision/v2-tiny", 64, 32, "images"),
    ),
    "text": (
        RecipeNeeds("text/v2-base", 64, 4, "tokens", unit_size=511, enough=10_000_000),
        RecipeNeeds("text/v2-tiny", 8, 8, "tokens", unit_size=127),
    ),
}
"""The recipes that a check suggests, the larger first."""


def advice(part: KindReport, where: str, split: str, settings: str = "") -> str:
    """One sentence: the command to train with, or what to fix first. `settings`: more settings of the command."""
    *_, needs = RECIPE_NEEDS[part.kind]
    usable = part.usable[needs.recipe]
    allowed = max(1, int(DataSettings().max_corrupt * part.examples))
    first = next(iter(part.distributions.values()), None)
    if first is None:
        return f"Not ready: no example can be read as {part.kind}."
    if part.damaged:
        return f"Fix first: {part.damaged[0]}; it would end the run: copy or create it again."
    if len(part.unreadable) > allowed:
        share = min(1.0, len(part.unreadable) / part.examples + 0.005)
        return (
            f"Fix first: {len(part.unreadable):,} of {part.examples:,} examples cannot be read, data.max_corrupt tolerates "
            f"{allowed:,}: repair or remove them, or set data.max_corrupt={share:.2f}."
        )
    if not usable.examples and first.max < needs.shortest:
        return f"Fix first: all clips are shorter than {needs.shortest:g} s: join them, or lower data.min_seconds."
    if part.kind == "text" and not usable.examples:
        block = f"a block of {needs.recipe} has {needs.unit_size} {needs.unit}"
        return f"Not ready: {block}, more than all text has: add data, or lower data.block_size."
    size = needs.batch * needs.unit_size
    if usable.amount < size or not usable.steps:
        batch = f"a step of {needs.recipe} needs {size:g} {needs.unit}"
        cropped = f" after clips are cropped to {needs.longest:g} s" if first.max > needs.longest else ""
        return f"Not ready: {batch}, but there are only {usable.amount:g}{cropped}: add data, or lower the batch."
    recipe = next(
        each.recipe
        for each in RECIPE_NEEDS[part.kind]
        if (found := part.usable[each.recipe]).steps
        and found.amount >= max(each.enough, each.batch * each.unit_size)
        and first.max >= each.side
    )
    other = f" data.split={shlex.quote(split)}" if split != "train" else ""
    return f"Ready: data2vec pretrain {recipe} data.train={shlex.quote(where)}{other}{settings}"


def _bars(histogram: dict[float, int]) -> Iterator[tuple[str, str]]:
    longest = max(histogram.values(), default=0)
    for low, number in histogram.items():
        between = f"{_plain(low)} to {_plain(2 * low)}"
        yield "", f"{between:>16} {'▇' * max(1, round(30 * number / longest))} {number:,}"


def describe_counts(counts: dict[str, int], most: int = 6) -> str:
    """The first `most` keys, each with its count."""
    shown = ", ".join(f"{name} ({number:,})" for name, number in list(counts.items())[:most])
    return shown + (f" and {len(counts) - most:,} more" if len(counts) > most else "")


def describe_range(distribution: Distribution) -> str:
    """The smallest and the largest value, median and mean."""
    if distribution.min == distribution.max:
        return f"all {_plain(distribution.min)}"
    ends = f"{_plain(distribution.min)} to {_plain(distribution.max)}"
    return f"{ends}, median {_plain(distribution.median)}, mean {_plain(distribution.mean)}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
