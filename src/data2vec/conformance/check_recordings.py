"""`check_recordings()`: read a complete data set of recordings, and report channels, rates, units, gaps and bad channels."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.atomic_io import write_json
from data2vec.console.progress import progress
from data2vec.data.check.report import Distribution, describe_counts, describe_range
from data2vec.data.corrupt import decoding
from data2vec.data.dataset import column_value
from data2vec.data.recordings.channels import canonical, named_twice
from data2vec.data.recordings.electrodes import POSITIONS
from data2vec.data.recordings.open import open_recording
from data2vec.data.recordings.recording import Recording
from data2vec.data.recordings.rows import KIND
from data2vec.data.recordings.windows import recording_name
from data2vec.data.sources.columns import require_labels
from data2vec.errors import CorruptExample, UserError
from data2vec.local_path import local_path, output_file
from data2vec.modalities.signal import EVENT, SignalData, Signals, SignalSettings
from data2vec.recipe.loading import list_overrides, load_recipe
from data2vec.settings import JsonDict, JsonMapping

BLOCK = 2**20
"""Samples of a channel that are read at a time."""
CLIPPED, CLIPPED_RUN = 0.001, 3
"""A channel is clipped if more than this fraction of its samples is at its largest or smallest value, so many in a row."""
SHOWN = 5
RECIPE = "signal/v2-tiny"
FAST = 128
"""Hz from which the patches of all channels together are short."""
PATCH_SECONDS = (0.1, 0.16, 0.5), (0.05, 0.05, 0.1)
"""The shortest patch, a good one and the longest, below FAST and from there on."""
GRID_SECONDS, MANY_POSITIONS = 30, 1000
"""A window of a grid of electrodes, and the positions that attention takes well."""
SUITED = ("modality.window_seconds", "modality.patch", "modality.layout", "modality.spectrum", "objective.decoder.kernel")
"""Settings that are proposed together, unless one of them is given."""
MEANINGS = {
    "bad": "channels marked as bad in their files",
    "flat": "channels that do not change",
    "clipped": "channels at their limits",
    "gaps": "",
}
"""Of the findings of a report."""


@dataclass
class RecordingReport:
    """What a data set of recordings contains; `str()` is the report."""

    where: str
    recordings: int
    unreadable: list[str] = field(default_factory=list)
    """ "name: reason" of each."""
    seconds: Distribution | None = None
    channels: dict[str, int] = field(default_factory=dict)
    """Recordings by their channels."""
    units: dict[str, int] = field(default_factory=dict)
    """Channels by unit."""
    rates: dict[str, int] = field(default_factory=dict)
    """Channels by sampling rate."""
    flat: list[str] = field(default_factory=list)
    """ "name: channel" of each that does not change."""
    clipped: list[str] = field(default_factory=list)
    """ "name: channel" of each with runs at its largest or smallest value."""
    bad: list[str] = field(default_factory=list)
    """ "name: channel" of each that its file marks as bad."""
    gaps: list[str] = field(default_factory=list)
    """ "name: percentage" of each recording with missing samples."""
    subjects: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    annotations: dict[str, int] = field(default_factory=dict)
    """Spans by the text of their annotation, which are labels by the column `event`."""
    points: int = 0
    """Annotations without a duration, which are none."""
    twice: str | None = None
    """A name that several channels of the first recording have, unless `modality.channels` names those to use."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What pre-training of `signal/v2-tiny` on this data needs, by dotted key."""
    window_seconds: float = 0.0
    """Of a training example, with these settings."""
    least_seconds: float = 0.0
    """Recordings that are shorter are left out in training."""

    def __str__(self) -> str:
        bad = len(self.unreadable)
        rows = {"recordings": f"{self.recordings:,}" + (f"; {bad:,} unreadable" if bad else ", all readable")}
        if self.seconds is not None:
            rows |= {"total": f"{self.seconds.total / 3600:.2f} hours", "seconds": describe_range(self.seconds)}
        for name in ("channels", "units", "rates", "subjects", "classes", "annotations"):
            if counts := getattr(self, name):
                rows[name] = f"{len(counts):,}: {describe_counts(counts)}"
        if self.points:
            points = f"{self.points:,} without a duration, which are no labels"
            rows["annotations"] = "; ".join(filter(None, (rows.get("annotations"), points)))
        for name, meaning in MEANINGS.items():
            if found := getattr(self, name):
                more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
                rows[name] = f"{len(found):,} {meaning}: {', '.join(found[:SHOWN])}{more}".replace(" : ", ": ")
        lines = [f"{self.where}: recordings", *(f"  {name:<14}{text}" for name, text in rows.items())]
        lines += [f"  unreadable    {reason}" for reason in self.unreadable[: 4 * SHOWN]]
        return "\n".join([*lines, "", self._advice()])

    def _advice(self) -> str:
        if len(self.unreadable) == self.recordings:
            return "Not ready: no recording can be read."
        given = self.settings  # nothing is proposed for recordings that differ
        if len(self.channels) > 1 and "modality.channels" not in given and given.get("data.missing_channels") != "pad":
            return "Recordings differ in channels: name those to use by modality.channels, or set data.missing_channels=pad."
        if len(self.rates) > 1 and "modality.rate" not in given:
            return "Channels differ in their rates: set modality.rate to that of the model, in Hz."
        if self.twice is not None:
            named = "name those to use by modality.channels, or give each a name of its own by modality.aliases."
            return f"Several channels are {self.twice}: {named}"
        if self.seconds is not None and self.seconds.max < self.least_seconds:
            needed = f"{self.least_seconds:g} s of a window of {self.window_seconds:g} s"
            return f"Not ready: all recordings are shorter than the least, {needed}: lower modality.window_seconds."
        words = (f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in self.settings.items())
        return f"Ready: data2vec pretrain {RECIPE} {shlex.join((f'data.train={self.where}', *words))}"


def check_recordings(
    where: Any, overrides: Iterable[str] | JsonMapping = (), label: str = "label", out: str | Path | None = None
) -> RecordingReport:
    """Read a complete data set of recordings, in parts. An unreadable recording is part of the report, not an error.

    `where` and `overrides`: as `data.train` and the settings of `data:` for modality signal, such as {"data.rate": 50}.
    `label`: the column whose classes are counted; subjects are those of column `subject`. `out`: a JSON file for the complete
    report. Raises UserError if there is no such data set."""
    out = None if out is None else output_file(out, "--json")
    given = list_overrides(overrides)
    if "data.train" in given:
        raise UserError("data.train: is what is checked, and given already; omit it")
    chosen, hertz = any(key in given for key in SUITED), given.get("modality.rate")
    is_rate = isinstance(hertz, int | float) and 0 < hertz < math.inf  # the recipe says what is wrong with another value
    fitting: JsonDict = suited_settings((), float(hertz or 0), 0) if is_rate and not chosen else {}
    recipe = load_recipe(RECIPE, given | fitting)
    data = recipe.data
    assert isinstance(data, SignalData)
    modality = Signals(SignalSettings(), data)
    rows = modality.selected_rows(str(local_path(where)), data.train_rows, "data.train_rows")
    if not hasattr(rows, "__len__"):
        raise UserError("data.streaming: recordings are checked one by one; set it to false")
    if label != EVENT:
        require_labels(label, rows.features, modality.kind, data.column)
    report, seconds = RecordingReport(str(where), len(rows)), list[float]()
    counts = {name: Counter[str]() for name in ("channels", "units", "rates", "subjects", "classes", "annotations")}
    first: Recording | None = None
    for index in progress(range(len(rows)), desc="reading", unit="recording"):
        signal = rows[index][KIND]
        name = _short(recording_name(signal), str(where))
        try:
            with decoding({**signal, "path": name, "array": 0}, name):
                recording = open_recording(signal, data.description)
                _inspect(recording, name, report)
        except CorruptExample as error:
            report.unreadable.append(str(error))
            continue
        first = first or recording
        seconds.append(recording.seconds)
        with suppress(CorruptExample), decoding({**signal, "path": name, "array": 0}, name):
            counts["annotations"].update(event.text for event in recording.events if event.seconds)
            report.points += sum(not event.seconds for event in recording.events)
        counts["channels"][" ".join(recording.channels)] += 1
        counts["units"].update(unit or "unknown" for unit in recording.units)
        counts["rates"].update(f"{rate:g} Hz" for rate in recording.rates)
        for column, key in (("subject", "subjects"), (label, "classes")):
            if column in rows.features and (value := column_value(rows, index, column)) is not None:
                counts[key][str(value)] += 1
    for key, found in counts.items():
        setattr(report, key, dict(found.most_common()))
    if first is not None:
        values = np.array(seconds)
        ends = float(values.min()), float(np.median(values)), float(values.mean()), float(values.max()), float(values.sum())
        report.seconds = Distribution(*ends)
        fitting.pop("modality.rate", None)
        base = load_recipe(RECIPE, fitting).flat()
        report.settings = {key: value for key, value in recipe.flat().items() if value != base.get(key)}
        rate, names = (report.settings.get(f"modality.{key}") for key in ("rate", "channels"))
        assert isinstance(recipe.modality, SignalSettings)
        report.twice = None if names else named_twice(first.channels, recipe.modality.aliases)
        if not chosen and (rate or len(report.rates) == 1):
            alike = names or (first.channels if len(report.channels) == 1 else ())
            report.settings = suited_settings(alike, rate or first.rates[0], ends[1]) | report.settings
        report.window_seconds = report.settings.get("modality.window_seconds", recipe.modality.window_seconds)
        report.least_seconds = data.min_present * report.window_seconds
    if out is not None:
        write_json(Path(out), asdict(report))
    return report


def suited_settings(channels: Sequence[str], found: float, seconds: float) -> JsonDict:
    """The settings of `signal/v2-tiny` that differ for recordings of these channels, rate and length, by docs/signals.md: of
    electrodes of the head a grid of 1 s; of other channels patches of a length that suits the rate."""
    rate = max(round(found), 1)
    settings: JsonDict = {} if found == rate else {"modality.rate": rate}  # so that a window has whole samples
    electrodes = [name for name in channels if all(end in POSITIONS for end in canonical(name).split("-"))]
    window = int(min(GRID_SECONDS, MANY_POSITIONS // max(len(electrodes), 1), seconds))
    if electrodes and window > 1 < rate:
        others = len(electrodes) < len(channels)
        settings |= {"modality.channels": electrodes} if others else {}
        settings |= {"modality.window_seconds": window, "modality.patch": rate, "modality.layout": "grid"}
        return settings | {"modality.spectrum": True, "objective.decoder.kernel": [3, 3]}
    shortest, target, longest = PATCH_SECONDS[rate >= FAST]
    recipe = load_recipe(RECIPE).modality
    assert isinstance(recipe, SignalSettings)
    samples = round(rate * recipe.window_seconds)
    if shortest <= recipe.patch / rate <= longest and samples % recipe.patch == 0:
        return settings
    patches = (patch for patch in range(1, samples // 2 + 1) if samples % patch == 0)
    return settings | {"modality.patch": min(patches, key=lambda patch: abs(patch - target * rate))}


def _short(name: str, where: str) -> str:
    return name.removeprefix(f"{where.rstrip('/')}/")


def _inspect(recording: Recording, name: str, report: RecordingReport) -> None:
    """Add flat and clipped channels and gaps to the report."""
    missing = total = 0
    report.bad += [f"{name}: {channel}" for channel in recording.bad]
    for index, channel in enumerate(recording.channels):
        samples = recording.samples(index)
        low, high, there, at_limit = np.inf, -np.inf, 0, 0
        for first in range(0, samples, BLOCK):
            block = recording.read(index, first, min(first + BLOCK, samples))
            valid = np.isfinite(block)
            there += int(valid.sum())
            if valid.any():
                low, high = min(low, float(block[valid].min())), max(high, float(block[valid].max()))
        for first in range(0, samples if high > low else 0, BLOCK):
            block = recording.read(index, first, min(first + BLOCK, samples))
            at_limit += sum(_in_runs(block == limit) for limit in (low, high))
        if channel not in recording.bad:
            total, missing = total + samples, missing + samples - there
        if there and high == low:
            report.flat.append(f"{name}: {channel}")
        elif at_limit > CLIPPED * max(there, 1):
            report.clipped.append(f"{name}: {channel}")
    if missing:
        report.gaps.append(f"{name}: {missing / max(total, 1):.1%} missing")


def _in_runs(at_limit: np.ndarray) -> int:
    """How many are in runs of at least CLIPPED_RUN."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], at_limit.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= CLIPPED_RUN].sum())
