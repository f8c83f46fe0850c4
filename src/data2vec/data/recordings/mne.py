"""Recordings that MNE reads, in parts: FIF, BrainVision and EEGLAB, with names, units, bad channels and annotations.

What a file marks as bad is missing: channels, and spans whose annotation begins with "bad" (MNE's own rule). Values are in SI
units, as MNE gives them: volts, teslas. Trigger channels are no signals and are left out."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.data.recordings.recording import Event, Recording, checked_rate
from data2vec.errors import CorruptExample, MissingPackage
from data2vec.untrusted import read_regular, require_regular

READERS = {".fif": "read_raw_fif", ".vhdr": "read_raw_brainvision", ".set": "read_raw_eeglab"}
"""Of `mne.io`, by the ending of a file."""
ENDINGS = tuple(READERS)
NO_SIGNALS = ("stim", "syst")
"""Types of channels that hold triggers and states."""
UNITS = {"FIFF_UNIT_V": "V", "FIFF_UNIT_T": "T", "FIFF_UNIT_T_M": "T/m", "FIFF_UNIT_M": "m", "FIFF_UNIT_S": "S"}
"""By the constants of FIF; others are unknown."""
MAX_HEADER_BYTES = 2**24
BLOCK_NUMBERS = 2**24
"""Samples of all channels that are read at once, and kept for the next channel: files store them sample by sample."""
_NAMED_FILE = re.compile(r"^\s*(?:DataFile|MarkerFile)\s*=\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)

_PART = re.compile(r"(.+)_split-(\d+)(.*\.fif)|(.+)-\d+\.fif", re.IGNORECASE)


class MneRecording(Recording):
    """The channels of a file. Raises CorruptExample, also for samples outside its folder, and MissingPackage without MNE."""

    def __init__(self, path: str):
        self.raw = _open(path)
        rate = checked_rate(float(self.raw.info["sfreq"]))
        kinds = self.raw.get_channel_types()
        self.indices = [index for index, kind in enumerate(kinds) if kind not in NO_SIGNALS]
        listed = [self.raw.info["chs"][index] for index in self.indices]
        self.channels = tuple(str(each["ch_name"]) for each in listed)
        self.units = tuple(_unit(each["unit"]) for each in listed)
        self.rates = (rate,) * len(listed)
        self.seconds = len(self.raw.times) / rate
        self.bad = tuple(name for name in self.channels if name in self.raw.info["bads"])
        self._span, self._block = (0, 0), np.empty((0, 0))

    @cached_property
    def events(self) -> Sequence[Event]:  # type: ignore[override]
        """The annotations, in seconds from the start of the recording."""
        marks = self.raw.annotations
        start = self.raw.first_time if marks.orig_time is not None else 0.0
        spans = zip(marks.onset, marks.duration, marks.description, strict=True)
        return sorted(Event(float(onset - start), float(seconds), str(text)) for onset, seconds, text in spans)

    def read(self, channel: int, first: int, last: int) -> np.ndarray:
        found = np.full(max(last - first, 0), np.nan)
        begin, end = max(first, 0), min(last, len(self.raw.times))
        if self.channels[channel] not in self.bad and begin < end:
            found[begin - first : end - first] = self._read(channel, begin, end)
        return found

    def _read(self, channel: int, begin: int, end: int) -> np.ndarray:
        """Samples of a channel, from a block of all channels if that is not too large."""
        if (end - begin) * len(self.indices) > BLOCK_NUMBERS:
            return self._get(self.indices[channel : channel + 1], begin, end)[0]
        if self._span != (begin, end):
            self._block, self._span = self._get(self.indices, begin, end), (begin, end)
        return self._block[channel]

    def _get(self, indices: Sequence[int], begin: int, end: int) -> np.ndarray:
        found: np.ndarray = self.raw.get_data(list(indices), begin, end, reject_by_annotation="NaN", verbose="ERROR")
        return found


def _open(path: str) -> Any:
    try:
        import mne
    except ImportError:
        raise MissingPackage("reading FIF, BrainVision and EEGLAB files needs MNE: pip install 'data2vec[mne]'") from None
    require_regular(path)
    _refuse_part(Path(path))
    ending = next(each for each in ENDINGS if path.lower().endswith(each))
    if ending == ".vhdr":
        for name in _NAMED_FILE.findall(read_regular(path, MAX_HEADER_BYTES).decode("utf-8", "replace")):
            _require_beside(path, Path(path).parent / name.replace("$b", Path(path).stem))
    raw = getattr(mne.io, READERS[ending])(path, preload=False, verbose="ERROR")
    for file in raw.filenames:
        if file is not None:
            _require_beside(path, Path(file))
    return raw


def _refuse_part(path: Path) -> None:
    """A long FIF recording is split into files, of which the first one reads the others."""
    if (part := _PART.fullmatch(path.name)) is not None:
        first = f"{part[1]}_split-01{part[3]}" if part[1] else f"{part[4]}.fif"
        if first != path.name and (path.parent / first).is_file():
            raise CorruptExample(f"it is a part of {first}, which is read with its parts; leave it out")


def _require_beside(path: str, file: Path) -> None:
    if os.path.abspath(file.parent) != os.path.abspath(Path(path).parent):
        raise CorruptExample(f"its samples are in {str(file)!r}, which is not in its folder")
    if file.is_symlink() and not Path(path).is_symlink():
        raise CorruptExample(f"its samples are in {file.name!r}, a link; copy the file")


def _unit(code: Any) -> str:
    from mne.io.constants import FIFF

    return next((unit for name, unit in UNITS.items() if getattr(FIFF, name, None) == code), "")
