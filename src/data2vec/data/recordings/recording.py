"""A recording: channels over time, each with a name, a unit and a sampling rate, of which any span can be read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from data2vec.data.recordings.channels import split_unit
from data2vec.errors import CorruptExample

MAX_CHANNELS = 4096
"""Of a recording."""
RATES = (1e-3, 1e6)
"""The lowest and highest sampling rate, in Hz."""
MAX_SECONDS = 366 * 86400.0
"""Of a recording."""
TimeUnit = Literal["s", "ms", "us", "ns"]
TimeAxis = Literal["first", "last"]
"""Of an array of two axes: (samples, channels) or (channels, samples)."""


class Event(NamedTuple):
    """An annotation of a span of a recording."""

    start: float
    """Seconds from the start of the recording."""
    seconds: float
    """Its duration; 0 if the file has none."""
    text: str


@dataclass(frozen=True)
class Description:
    """What a user knows of files that do not say it themselves."""

    time_axis: TimeAxis | None = None
    rate: float | None = None
    """Hz."""
    channels: tuple[str, ...] | None = None
    """Names, in the order of the file."""
    time_column: str | None = None
    """Of a table of samples."""
    time_unit: TimeUnit | None = None
    """Of the numbers in this column."""
    array: str | None = None
    """Of a file with several arrays."""
    known: int | None = None
    """How many channels the model takes: it may decide which axis of an array is which."""


class Recording(ABC):
    """Channels over time. Nothing but the header is in memory, unless the format leaves no choice."""

    channels: tuple[str, ...]
    """Names, as in the file."""
    units: tuple[str, ...]
    """Of each channel, as in the file; "" where it says none."""
    rates: tuple[float, ...]
    """Of each channel, in Hz."""
    seconds: float
    """The duration, gaps included."""
    events: Sequence[Event] = ()
    bad: Sequence[str] = ()
    """Channels that the file marks as bad; all their samples are missing."""

    @abstractmethod
    def read(self, channel: int, first: int, last: int) -> np.ndarray:
        """Samples `first` to `last` of a channel, float64, in its unit; NaN where there are none, such as in a gap."""

    def samples(self, channel: int) -> int:
        """The number of samples of a channel."""
        return round(self.seconds * self.rates[channel])


class ArrayRecording(Recording):
    """A recording in an array (samples, channels), which may be a memory-mapped file."""

    def __init__(self, array: np.ndarray, channels: Sequence[str], units: Sequence[str], rate: float):
        self.array = array
        self.channels = tuple(channels)
        self.units = tuple(unit or split_unit(name)[1] for name, unit in zip(channels, units, strict=True))
        self.rates = (checked_rate(rate),) * len(self.channels)
        self.seconds = len(array) / rate

    def read(self, channel: int, first: int, last: int) -> np.ndarray:
        return np.asarray(self.array[first:last, channel], np.float64)


def checked_rate(rate: float) -> float:
    """The same rate. Raises CorruptExample for one that no recording has."""
    if not (isinstance(rate, int | float | np.number) and RATES[0] <= float(rate) <= RATES[1]):
        raise CorruptExample(f"a sampling rate of {rate!r} Hz; it must be from {RATES[0]:g} to {RATES[1]:g}")
    return float(rate)


def checked(recording: Recording) -> Recording:
    """The same recording. Raises CorruptExample without samples or channels, or with too many."""
    if not recording.channels:
        raise CorruptExample("it has no channel")
    if len(recording.channels) > MAX_CHANNELS:
        raise CorruptExample(f"{len(recording.channels)} channels; at most {MAX_CHANNELS} are read")
    if not recording.seconds > 0:
        raise CorruptExample("it has no samples")
    if recording.seconds > MAX_SECONDS:
        raise CorruptExample(f"it lasts {recording.seconds:g} s; at most {MAX_SECONDS:g} s are read")
    return recording


def require_rate(rate: float | None) -> float:
    """Raises CorruptExample if nobody says what the rate is."""
    if rate is None:
        raise CorruptExample("its sampling rate is not in the file; set data.rate, in Hz, or add a column rate to the index")
    return checked_rate(rate)


def orient(array: np.ndarray, description: Description, channels: int | None = None) -> np.ndarray:
    """An array of two axes as (samples, channels); of one axis as one channel.

    `channels`: their number, if the file names them. Raises CorruptExample for other arrays, and where neither the setting nor
    the number of channels says which axis is time."""
    if array.dtype.kind not in "iuf":
        raise CorruptExample(f"an array of {array.dtype}; it must hold numbers")
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise CorruptExample(f"an array of shape {array.shape}; a recording has two axes, samples and channels")
    axis = description.time_axis
    if axis is None:
        number = channels or (None if description.channels is None else len(description.channels)) or description.known
        matches = [number == size for size in array.shape]
        if matches.count(True) != 1:
            raise CorruptExample(
                f"an array of shape {array.shape}, whose time axis is unknown: set data.time_axis to first for "
                "(samples, channels), or to last for (channels, samples)"
            )
        axis = "last" if matches[0] else "first"
    return array if axis == "first" else array.T


def name_channels(number: int, *names: Sequence[str] | None) -> tuple[str, ...]:
    """The first names that are given, or ch1, ch2, …. Raises CorruptExample if their number is another."""
    found = next((tuple(map(str, each)) for each in names if each is not None), None)
    if found is None:
        return tuple(f"ch{index + 1}" for index in range(number))
    if len(found) != number:
        raise CorruptExample(f"{number} channels, but {len(found)} names: {', '.join(found)}")
    return found
