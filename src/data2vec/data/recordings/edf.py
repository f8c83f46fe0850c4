"""Recordings in EDF, EDF+, BDF and BDF+ files (Kemp et al., 1992 and 2003), read in parts.

A file is a header and data records of equal duration, each with some samples of every signal, one after the other: 16-bit
integers, in BDF 24-bit. In EDF+ a signal may be text: annotations, with the time of the record, so that records may have gaps
between them (EDF+D).

Why not edfio, by which the tests write files and read them a second time (version 0.4.18): it has no times of records, so it
joins what is before and after a gap; it takes BDF into memory as a whole, 405 MB for a file of 55 MB; of a truncated file it
warns and returns what there is; and damaged headers end in IndexError or UnboundLocalError."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data2vec.data.recordings.recording import MAX_CHANNELS, Event, Recording, checked_rate
from data2vec.errors import CorruptExample
from data2vec.untrusted import open_regular

FIELDS = (16, 80, 8, 8, 8, 8, 8, 80, 8, 32)
"""Bytes of each field of a signal in the header: label, transducer, unit, ends of the physical and the digital range, filter,
samples, reserved."""
ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
MAX_ANNOTATION_BYTES = 2**27
"""Of all annotations of a file."""
_TAL = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14((?:[^\x00\x14]*\x14)*)\x00")


class _Signal(NamedTuple):
    label: str
    unit: str
    gain: float
    """Physical units of a digital one; NaN if the header has no digital range."""
    baseline: float
    """The physical value of digital 0."""
    samples: int
    """In a data record."""
    offset: int
    """Bytes before it in a data record."""


class EdfRecording(Recording):
    """The signals of a file, without those of annotations. Raises CorruptExample for a damaged header or a truncated file."""

    def __init__(self, path: str):
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(256)
            if len(header) < 256:
                raise CorruptExample("no EDF file: it is shorter than a header")
            self.width = 3 if header[:1] == b"\xff" else 2
            self.reserved = _text(header[192:236])
            count, start = _integer(header[252:256], "signals"), _integer(header[184:192], "header bytes")
            if not 0 < count <= MAX_CHANNELS or start != 256 * (count + 1):
                raise CorruptExample(f"no EDF file: {count} signals and a header of {start} bytes")
            signals = self._read_signals(file.read(256 * count), count)
        self.record_seconds = _number(header[244:252], "duration of a record")
        self.record_bytes = sum(signal.samples for signal in signals) * self.width
        if self.record_bytes <= 0:
            raise CorruptExample("its data records are empty")
        records, there = _integer(header[236:244], "data records"), (size - start) // self.record_bytes
        if records > there:
            raise CorruptExample(f"truncated, only {there} of {records} data records are there")
        self.records = there if records < 0 else records
        if self.records == 0:
            raise CorruptExample("it has no data records")
        shape = (self.records, self.record_bytes)
        self.content = np.memmap(path, np.uint8, "r", start, shape)
        self.signals = [signal for signal in signals if signal.label not in ANNOTATIONS]
        self.texts = [signal for signal in signals if signal.label in ANNOTATIONS]
        if self.signals and self.record_seconds <= 0:
            raise CorruptExample(f"data records of {self.record_seconds:g} s")
        self.channels = tuple(signal.label for signal in self.signals)
        self.units = tuple(signal.unit for signal in self.signals)
        self.rates = tuple(checked_rate(signal.samples / self.record_seconds) for signal in self.signals)
        self.starts = self._record_starts()
        self.seconds = float(self.starts[-1]) + self.record_seconds

    def _read_signals(self, header: bytes, count: int) -> list[_Signal]:
        columns, position = list[list[bytes]](), 0
        for width in FIELDS:
            columns.append([header[position + index * width : position + (index + 1) * width] for index in range(count)])
            position += width * count
        found, offset = list[_Signal](), 0
        for label, _, unit, *ends, _, samples, _ in zip(*columns, strict=True):
            name = _text(label)
            low, high, digital_low, digital_high = (_number(end, f"range of {name}") for end in ends)
            span = digital_high - digital_low
            gain = (high - low) / span if span else np.nan
            number = _integer(samples, f"samples of {name}")
            if number < 0:
                raise CorruptExample(f"{number} samples of {name} in a record")
            found.append(_Signal(name, _text(unit), gain, low - gain * digital_low, number, offset))
            offset += number * self.width
        return found

    def _record_starts(self) -> np.ndarray:
        """(records,) seconds of the start of each record after that of the first."""
        if not self.reserved.startswith(("EDF+D", "BDF+D")):
            return np.arange(self.records) * self.record_seconds
        if not self.texts:
            raise CorruptExample("EDF+D, but without annotations, which have the times of its records")
        starts = []
        for record in range(self.records):
            first = next(iter(_TAL.finditer(self._annotation_bytes(self.texts[0], record))), None)
            if first is None:
                raise CorruptExample(f"EDF+D, but data record {record + 1} has no time")
            starts.append(float(first[1]))
        times = np.array(starts) - starts[0]
        if (np.diff(times) < self.record_seconds * (1 - 1e-3)).any():
            raise CorruptExample("EDF+D, but its data records overlap")
        return times

    def _annotation_bytes(self, signal: _Signal, record: int) -> bytes:
        return self.content[record, signal.offset : signal.offset + signal.samples * self.width].tobytes()

    @cached_property
    def events(self) -> Sequence[Event]:  # type: ignore[override]
        """The annotations, in seconds from the start of the recording."""
        if self.records * sum(signal.samples for signal in self.texts) * self.width > MAX_ANNOTATION_BYTES:
            raise CorruptExample(f"more than {MAX_ANNOTATION_BYTES} bytes of annotations")
        found, origin = list[Event](), None
        for record in range(self.records):
            for signal in self.texts:
                for match in _TAL.finditer(self._annotation_bytes(signal, record)):
                    start = float(match[1])
                    origin = start if origin is None else origin
                    seconds = float(match[2] or 0)
                    texts = [text.decode("utf-8", "replace") for text in match[3].split(b"\x14")]
                    found += [Event(start - origin, seconds, text) for text in texts if text]
        return sorted(found)

    def read(self, channel: int, first: int, last: int) -> np.ndarray:
        signal, rate = self.signals[channel], self.rates[channel]
        if np.isnan(signal.gain):
            raise CorruptExample(f"channel {signal.label} has no digital range in the header")
        found = np.full(max(last - first, 0), np.nan)
        begins = np.rint(self.starts * rate).astype(np.int64)
        one, end = (int(np.searchsorted(begins, place, "right")) for place in (first, last - 1))
        one = max(one - 1, 0)
        values = signal.baseline + signal.gain * self._digital(signal, one, end)
        for record, samples in zip(range(one, end), values, strict=True):
            place = int(begins[record]) - first
            low, high = max(place, 0), min(place + signal.samples, len(found))
            if low < high:
                found[low:high] = samples[low - place : high - place]
        return found

    def _digital(self, signal: _Signal, first: int, last: int) -> np.ndarray:
        """(records, samples) integers of data records `first` to `last`."""
        part = self.content[first:last, signal.offset : signal.offset + signal.samples * self.width]
        if self.width == 2:
            return np.ascontiguousarray(part).view("<i2")
        three = part.reshape(last - first, signal.samples, 3).astype(np.int32)
        whole = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
        return np.where(whole >= 2**23, whole - 2**24, whole)


def _text(field: bytes) -> str:
    return field.decode("latin-1").strip(" \0")


def _number(field: bytes, what: str) -> float:
    try:
        value = float(_text(field).replace(",", "."))
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise CorruptExample(f"no EDF file: {what} is {_text(field)!r} in its header")
    return value


def _integer(field: bytes, what: str) -> int:
    value = _number(field, what)
    if value != int(value):
        raise CorruptExample(f"no EDF file: {what} is {value} in its header")
    return int(value)
