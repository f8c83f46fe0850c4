"""Spans of recordings as a model takes them: channels by name, in its units, filtered, at its rate, scaled.

A recording that fits is preprocessed once as a whole and kept for the next span. Of a longer one only the span is read, with a
margin for the filters, so memory does not grow with its length."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data2vec.data.corrupt import decoding
from data2vec.data.dataset import Signal, array_of
from data2vec.data.recordings.channels import canonical, match_channels, unit_factor
from data2vec.data.recordings.open import open_recording
from data2vec.data.recordings.preprocessing import FilterSettings, preprocess
from data2vec.data.recordings.recording import Description, Event, Recording
from data2vec.data.recordings.scaling import ScaleSettings, scale, statistics
from data2vec.errors import UserError, get_logger

log = get_logger(__name__)

WHOLE_SAMPLES = 2**23
"""Samples of all channels, up to which a recording is preprocessed as a whole."""
KEPT_SAMPLES = 2**26
"""Samples of all kept recordings of a process."""
STATISTICS_SPANS = 64
"""Spans of a long recording from which its own mean and standard deviation are taken."""
SPAN_SECONDS = 30.0
"""Seconds of each of them."""
MIN_RATE = 0.5
"""The lowest rate of a channel, relative to that of the model: it has nothing above half of it."""


@dataclass(frozen=True)
class Montage:
    """What a model takes of a recording."""

    channels: tuple[str, ...]
    units: tuple[str, ...]
    """Of each channel; "" if not known."""
    rate: float
    """Hz."""
    filters: FilterSettings
    scaling: ScaleSettings
    aliases: Mapping[str, str]
    allow_missing: bool
    """Whether a recording may lack channels, which are then padding."""


class WindowReader:
    """Reads spans of recordings."""

    def __init__(self, montage: Montage, description: Description):
        self.montage, self.description = montage, description
        self._kept = OrderedDict[tuple[str, str | None], _Source]()
        self._size = 0
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        """Without what it keeps, for the loader's workers."""
        return self.__dict__ | {"_kept": OrderedDict(), "_size": 0}

    def seconds(self, signal: Signal) -> float:
        """The duration of a recording. Raises CorruptExample, and UserError for other channels than the model takes."""
        with self._decoding(signal):
            return self._open(signal).recording.seconds

    def read(self, signal: Signal, first: int, samples: int) -> np.ndarray:
        """Scaled samples (samples, C) from sample `first` on, at the rate of the model, float32; NaN where there are none.

        Raises CorruptExample, and UserError for other channels than the model takes."""
        with self._decoding(signal):
            return self._open(signal).read(first, samples)

    def events(self, signal: Signal) -> Sequence[Event]:
        """The annotations of a recording. Raises CorruptExample."""
        with self._decoding(signal):
            return self._open(signal).recording.events

    def channels(self, signal: Signal) -> tuple[int, ...]:
        """Which channels of the model a recording has. Raises as `seconds`."""
        with self._decoding(signal):
            return tuple(number for number, index in enumerate(self._open(signal).indices) if index is not None)

    def length(self, signal: Signal) -> int:
        """The number of samples of a recording at the rate of the model."""
        return int(self.seconds(signal) * self.montage.rate + 1e-6)

    def _decoding(self, signal: Signal) -> "_Decoding":
        return _Decoding(signal)

    def _named(self, signal: Signal) -> Signal:
        """An array in memory; without names and rate it has the channels of the model, in their order, at its rate."""
        channels, shape = self.montage.channels, array_of(signal["array"]).shape
        named = (
            {}
            if self.description.channels is not None or len(channels) not in (*shape, *[1] * (len(shape) == 1))
            else {"channels": channels}
        )
        return {"sampling_rate": self.montage.rate} | named | {key: value for key, value in signal.items() if value is not None}

    def _open(self, signal: Signal) -> "_Source":
        if signal.get("array") is not None:
            source = _Source(open_recording(self._named(signal), self.description), self.montage)
            if signal.get("channels") is not None:  # else it is as the model takes it
                self._warn_of_unknown_units(signal, source)
            return source
        key = str(signal.get("path")), signal.get("entry")
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        source = _Source(open_recording(signal, self.description), self.montage)
        self._warn_of_unknown_units(signal, source)
        self._kept[key] = source
        self._size += source.size
        while self._size > KEPT_SAMPLES or len(self._kept) > 4096:
            _, oldest = self._kept.popitem(last=False)
            self._size -= oldest.size
        return source

    def _warn_of_unknown_units(self, signal: Signal, source: "_Source") -> None:
        """Name the first recording whose readings are taken as they are, since one unit is not known."""
        if self._warned:
            return
        given, wanted = source.recording.units, self.montage.units
        unknown = [
            f"{name} ({given[index] or 'unknown'}, of the model {wanted[number] or 'unknown'})"
            for number, (name, index) in enumerate(zip(self.montage.channels, source.indices, strict=True))
            if index is not None and bool(given[index].strip()) != bool(wanted[number].strip())
        ]
        if unknown:
            self._warned = True
            message = (
                "%s: units are not known on both sides, so readings are taken as they are: %s; other recordings are not named"
            )
            log.warning(message, recording_name(signal), _listed([*unknown[:8], *["…"] * (len(unknown) > 8)]))


class _Decoding:
    """`decoding` of a recording, named by its file and entry, that lets errors of a user pass."""

    def __init__(self, signal: Signal):
        self.name = recording_name(signal)
        self.block = decoding({**signal, "path": self.name, "array": 0}, self.name)

    def __enter__(self) -> None:
        self.block.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool | None:
        if isinstance(error, UserError):
            raise UserError(f"{self.name}: {error}") from None
        return self.block.__exit__(kind, error, trace)  # type: ignore[arg-type]


def recording_name(signal: Signal) -> str:
    """The file of a recording, and which of those in it."""
    entry = signal.get("entry")
    return f"{signal.get('path') or 'an unnamed recording'}{'' if entry is None else f'#{entry}'}"


class _Source:
    """One recording, and what was computed of it."""

    def __init__(self, recording: Recording, montage: Montage):
        self.recording, self.montage = recording, montage
        self.indices = _channel_indices(recording, montage)
        self.factors = [1.0 if i is None else _factor(recording, i, montage, number) for number, i in enumerate(self.indices)]
        self.length = int(recording.seconds * montage.rate + 1e-6)
        self.is_short = self.length * len(self.indices) <= WHOLE_SAMPLES
        self.size = self.length * len(self.indices) if self.is_short else 0
        self._whole: np.ndarray | None = None
        self._statistics: tuple[np.ndarray, np.ndarray] | None = None

    def read(self, first: int, samples: int) -> np.ndarray:
        if not self.is_short:
            return self._scaled(self._span(first, samples))
        if self._whole is None:
            self._whole = self._scaled(self._span(0, self.length))
        part = self._whole[max(first, 0) : first + samples]
        before = min(samples, max(-first, 0))
        return _padded(part, before, samples)

    def _scaled(self, samples: np.ndarray) -> np.ndarray:
        by = self.montage.scaling
        if by.by == "training":
            assert by.mean is not None and by.std is not None
            centre, width = np.array(by.mean), np.array(by.std)
        elif by.by == "none":
            centre, width = np.zeros(1), np.ones(1)
        else:
            centre, width = self._own_statistics(samples)
        return scale(samples, centre, width, by)

    def _own_statistics(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._statistics is None:
            if not self.is_short:
                span = int(SPAN_SECONDS * self.montage.rate)
                starts = np.linspace(0, max(self.length - span, 0), STATISTICS_SPANS).astype(int)
                samples = np.concatenate([self._span(int(start), span) for start in starts])
            self._statistics = statistics(samples, self.montage.scaling)
        return self._statistics

    def _span(self, first: int, samples: int) -> np.ndarray:
        """Samples (samples, C) that are not scaled yet."""
        montage = self.montage
        columns = [
            np.full(samples, np.nan, np.float32) if index is None else self._channel(index, first, samples) * np.float32(factor)
            for index, factor in zip(self.indices, self.factors, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.empty((samples, len(montage.channels)), np.float32)

    def _channel(self, index: int, first: int, samples: int) -> np.ndarray:
        recording, rate, new_rate = self.recording, self.recording.rates[index], self.montage.rate
        total, margin = recording.samples(index), self.montage.filters.margin
        # The span starts at a sample of the file that is also one of the new rate, so that it does not depend on the margin.
        start = max(0, int(first / new_rate - margin))
        begin = min(total, round(start * rate))
        end = min(total, int(np.ceil(((first + samples) / new_rate + margin) * rate)))
        if end <= begin:
            return np.full(samples, np.nan, np.float32)
        values = preprocess(recording.read(index, begin, end), rate, self.montage.filters, new_rate)
        offset = first - round(start * new_rate)
        return _padded(values[max(offset, 0) : offset + samples, None], max(-offset, 0), samples)[:, 0]


def _padded(part: np.ndarray, before: int, samples: int) -> np.ndarray:
    """`part` (S, C) with NaN before and after it, (samples, C)."""
    if before == 0 and len(part) == samples:
        return part
    full = np.full((samples, part.shape[1]), np.nan, np.float32)
    full[before : before + len(part)] = part[: samples - before]
    return full


def _channel_indices(recording: Recording, montage: Montage) -> list[int | None]:
    indices = match_channels(recording.channels, montage.channels, montage.aliases)
    missing = [name for name, index in zip(montage.channels, indices, strict=True) if index is None]
    if len(missing) == len(indices) or (missing and not montage.allow_missing):
        raise UserError(
            f"lacks {_listed(missing)} of the channels of the model; it has {_listed(recording.channels)}; the model takes "
            f"{_listed(montage.channels)}: name them by modality.aliases, or those of files without names by data.channels"
            + (
                ""
                if montage.allow_missing or len(missing) == len(indices)
                else ", or let them be missing by data.missing_channels=pad"
            )
        )
    for name, index in zip(montage.channels, indices, strict=True):
        if index is not None and recording.rates[index] < MIN_RATE * montage.rate:
            raise UserError(
                f"channel {name} has {recording.rates[index]:g} Hz, but the model {montage.rate:g}: it has nothing of the "
                "upper half of the model's frequencies; use other recordings, or train without it or with a lower modality.rate"
            )
    return indices


def _factor(recording: Recording, index: int, montage: Montage, number: int) -> float:
    unit, wanted = recording.units[index], montage.units[number]
    factor = unit_factor(unit, wanted)
    if factor is None:
        raise UserError(
            f"channel {montage.channels[number]} is in {unit!r}, but the model takes {wanted!r}: units are "
            f"{_listed(recording.units)} in the file and {_listed(montage.units)} in the model"
        )
    return factor


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "''" for name in names) or "none"


def same_channels(one: Sequence[str], other: Sequence[str], aliases: Mapping[str, str]) -> bool:
    """Whether both name the same channels, in any order."""
    return {canonical(name, aliases) for name in one} == {canonical(name, aliases) for name in other}
