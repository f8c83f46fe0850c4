"""`check_recordings()`: read a complete data set of recordings, and report channels, rates, units, gaps and bad channels."""

import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.atomic_io import write_json
from data2vec.console.progress import progress
from data2vec.data.check.report import Distribution, describe_counts, describe_range
from data2vec.data.corrupt import decoding
from data2vec.data.dataset import column_value
from data2vec.data.recordings.open import open_recording
from data2vec.data.recordings.recording import Recording
from data2vec.data.recordings.rows import KIND
from data2vec.data.recordings.windows import recording_name
from data2vec.errors import CorruptExample, UserError
from data2vec.local_path import local_path, output_file
from data2vec.modalities.signal import SignalData, Signals, SignalSettings
from data2vec.recipe.loading import load_recipe
from data2vec.settings import JsonMapping

BLOCK = 2**20
"""Samples of a channel that are read at a time."""
CLIPPED, CLIPPED_RUN = 0.001, 3
"""A channel is clipped if more than this fraction of its samples is at its largest or smallest value, so many in a row."""
SHOWN = 5
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

    def __str__(self) -> str:
        bad = len(self.unreadable)
        rows = {"recordings": f"{self.recordings:,}" + (f"; {bad:,} unreadable" if bad else ", all readable")}
        if self.seconds is not None:
            rows |= {"total": f"{self.seconds.total / 3600:.2f} hours", "seconds": describe_range(self.seconds)}
        for name in ("channels", "units", "rates", "subjects", "classes"):
            if counts := getattr(self, name):
                rows[name] = f"{len(counts):,}: {describe_counts(counts)}"
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
        if len(self.channels) > 1:
            return "Recordings differ in channels: name those to use by modality.channels, or set data.missing_channels=pad."
        if len(self.rates) > 1:
            return "Channels differ in their rates: set modality.rate to that of the model, in Hz."
        return f"Ready: data2vec pretrain signal/v2-tiny data.train={shlex.quote(self.where)}"


def check_recordings(
    where: Any, overrides: Iterable[str] | JsonMapping = (), label: str = "label", out: str | Path | None = None
) -> RecordingReport:
    """Read a complete data set of recordings, in parts. An unreadable recording is part of the report, not an error.

    `where` and `overrides`: as `data.train` and the settings of `data:` for modality signal, such as {"data.rate": 50}.
    `label`: the column whose classes are counted; subjects are those of column `subject`. `out`: a JSON file for the complete
    report. Raises UserError if there is no such data set."""
    out = None if out is None else output_file(out, "--json")
    data = load_recipe("signal/v2-tiny", overrides).data
    assert isinstance(data, SignalData)
    modality = Signals(SignalSettings(), data)
    rows = modality.rows(str(local_path(where)))
    if not hasattr(rows, "__len__"):
        raise UserError("data.streaming: recordings are checked one by one; set it to false")
    report, seconds = RecordingReport(str(where), len(rows)), list[float]()
    counts = {name: Counter[str]() for name in ("channels", "units", "rates", "subjects", "classes")}
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
        seconds.append(recording.seconds)
        counts["channels"][" ".join(recording.channels)] += 1
        counts["units"].update(unit or "unknown" for unit in recording.units)
        counts["rates"].update(f"{rate:g} Hz" for rate in recording.rates)
        for column, key in (("subject", "subjects"), (label, "classes")):
            if column in rows.features and (value := column_value(rows, index, column)) is not None:
                counts[key][str(value)] += 1
    for key, found in counts.items():
        setattr(report, key, dict(found.most_common()))
    if seconds:
        values = np.array(seconds)
        ends = float(values.min()), float(np.median(values)), float(values.mean()), float(values.max()), float(values.sum())
        report.seconds = Distribution(*ends)
    if out is not None:
        write_json(Path(out), asdict(report))
    return report


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
