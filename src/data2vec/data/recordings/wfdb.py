"""Recordings in the WFDB format of PhysioNet: a header `.hea`, and files of samples beside it in formats 16, 24, 32 and 212."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data2vec.data.recordings.recording import MAX_CHANNELS, Recording, checked_rate
from data2vec.errors import CorruptExample
from data2vec.untrusted import open_regular, read_regular, require_regular

MAX_HEADER_BYTES = 2**20
MAX_PACKED_BYTES = 2**29
"""Of a file in format 212, which is read as a whole."""
DEFAULT_RATE, DEFAULT_GAIN = 250.0, 200.0
_FORMAT = re.compile(r"(\d+)(?:x(\d+))?(?::(\d+))?(?:\+(\d+))?")
_GAIN = re.compile(r"([-+.\deE]+)(?:\(([-+]?\d+)\))?(?:/(\S+))?")
WIDTHS = {16: 2, 24: 3, 32: 4}
"""Bytes of a sample."""
MISSING = {16: -(2**15), 24: -(2**23), 32: -(2**31), 212: -(2**11)}
"""The number that stands for a missing sample."""


class _Signal(NamedTuple):
    file: str
    format: int
    offset: int
    """Bytes before the first sample."""
    gain: float
    """Digital units of a physical one."""
    baseline: float
    unit: str
    name: str


class WfdbRecording(Recording):
    """The signals of a header. Raises CorruptExample for what cannot be read, and for samples outside of its folder."""

    def __init__(self, path: str):
        lines = [line for line in _lines(path) if line and not line.startswith("#")]
        if not lines:
            raise CorruptExample("no WFDB header: it is empty")
        name, *numbers = lines[0].split()
        if "/" in name:
            raise CorruptExample("a WFDB record of several segments; give the segments")
        count = _integer(numbers[0] if numbers else "", "number of signals")
        rate = float(re.split(r"[/(]", numbers[1])[0]) if len(numbers) > 1 else DEFAULT_RATE
        if not 0 < count <= MAX_CHANNELS or len(lines) < count + 1:
            raise CorruptExample(f"a WFDB header of {count} signals with {len(lines) - 1} lines of signals")
        self.signals = [_signal(line, index) for index, line in enumerate(lines[1 : count + 1])]
        self.folder = Path(path).parent
        self.arrays = {file: self._open(file) for file in dict.fromkeys(signal.file for signal in self.signals)}
        there = min(len(array) for array in self.arrays.values())
        total = _integer(numbers[2], "number of samples") if len(numbers) > 2 else there
        if total > there:
            raise CorruptExample(f"truncated, only {there} of {total} samples are there")
        self.total = total or there
        self.channels = tuple(signal.name for signal in self.signals)
        self.units = tuple(signal.unit for signal in self.signals)
        self.rates = (checked_rate(rate),) * count
        self.seconds = self.total / rate

    def _open(self, file: str) -> np.ndarray:
        """The samples (S, channels of the file), those of formats 16 and 32 memory-mapped; in format 24 as (S, channels, 3)
        bytes."""
        if Path(file).name != file or file in ("", ".", ".."):
            raise CorruptExample(f"its samples are in {file!r}, which is not in its folder")
        path, signals = self.folder / file, [signal for signal in self.signals if signal.file == file]
        if os.path.islink(path):
            raise CorruptExample(f"its samples are in {file!r}, a link; copy the file")
        kinds = {(signal.format, signal.offset) for signal in signals}
        if len(kinds) > 1:
            raise CorruptExample(f"{file} has signals of several formats")
        ((form, offset),) = kinds
        channels, size = len(signals), require_regular(path).st_size - offset
        if form == 212:
            return self._unpacked(path, offset, channels)
        samples = size // (WIDTHS[form] * channels)
        if samples <= 0:
            raise CorruptExample(f"{file} has no samples")
        if form == 24:
            return np.memmap(path, np.uint8, "r", offset, (samples, channels, 3))
        return np.memmap(path, f"<i{WIDTHS[form]}", "r", offset, (samples, channels))

    @staticmethod
    def _unpacked(path: Path, offset: int, channels: int) -> np.ndarray:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_PACKED_BYTES:
                raise CorruptExample(f"more than {MAX_PACKED_BYTES} bytes in format 212; split the record")
            file.seek(offset)
            packed = file.read()
        # The last of an odd number of samples has two bytes.
        content = np.frombuffer(packed + b"\0" * (len(packed) % 3 == 2), np.uint8)
        triples = content[: len(content) // 3 * 3].reshape(-1, 3).astype(np.int16)
        pairs = np.stack([triples[:, 0] | (triples[:, 1] & 15) << 8, triples[:, 2] | (triples[:, 1] >> 4) << 8], axis=1)
        values = np.where(pairs >= 2**11, pairs - 2**12, pairs).ravel()
        return values[: len(values) // channels * channels].reshape(-1, channels)

    def read(self, channel: int, first: int, last: int) -> np.ndarray:
        signal = self.signals[channel]
        index = [other for other in range(len(self.signals)) if self.signals[other].file == signal.file].index(channel)
        values = self.arrays[signal.file][first : min(last, self.total), index]
        if signal.format == 24:
            three = values.astype(np.int32)
            values = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
            values = np.where(values >= 2**23, values - 2**24, values)
        values = values.astype(np.float64)
        return np.where(values == MISSING[signal.format], np.nan, (values - signal.baseline) / signal.gain)


def _lines(path: str) -> list[str]:
    return [line.strip() for line in read_regular(path, MAX_HEADER_BYTES).decode("utf-8", "replace").splitlines()]


def _signal(line: str, index: int) -> _Signal:
    file, form, *rest = [*line.split(), ""][:9]
    match = _FORMAT.fullmatch(form)
    if match is None or int(match[1]) not in MISSING or int(match[2] or 1) != 1 or int(match[3] or 0):
        wanted = ", ".join(map(str, MISSING))
        raise CorruptExample(f"signal {index + 1} is in WFDB format {form!r}; these are read: {wanted}, without skew")
    gain = _GAIN.fullmatch(rest[0]) if rest and rest[0] else None
    zero = float(rest[2]) if len(rest) > 2 and rest[2] else 0.0
    number = float(gain[1]) if gain else 0.0
    name = " ".join(line.split()[8:]) or f"ch{index + 1}"
    baseline = float(gain[2]) if gain and gain[2] else zero
    return _Signal(
        file, int(match[1]), int(match[4] or 0), number or DEFAULT_GAIN, baseline, gain[3] or "" if gain else "", name
    )


def _integer(text: str, what: str) -> int:
    if not text.isdigit() or len(text) > 12:
        raise CorruptExample(f"no WFDB header: {what} is {text!r}")
    return int(text)
