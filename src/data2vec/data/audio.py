"""Speech: audio files to normalised 16 kHz waveforms, cropped and batched."""

import io
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import floor
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.data.cache import cached, fingerprint
from data2vec.data.sources.rows import label
from data2vec.errors import BadExample, UserError
from data2vec.modalities.base import DataSettings

log = logging.getLogger(__name__)

RATE = 16000
"""Samples a second, after resampling."""
SHORTEST = 0.025
"""Seconds that the convolutional front-end needs for one vector."""
LONGEST = 4 * 3600.0
"""Seconds; longer recordings are refused, as each is decoded whole."""
CACHE_FROM = 10_000
"""Rows from which on durations are kept in the cache."""

Seconds = Annotated[float, Field(gt=0)]


class SpeechData(DataSettings):
    """The `data:` section for speech. Defaults: data2vec 1 Base on LibriSpeech."""

    min_seconds: Seconds = 2.0
    """Shorter clips are left out (fairseq: min_sample_size)."""
    max_seconds: Seconds = 20.0
    """Longer clips are cropped at random (fairseq: max_sample_size)."""
    batch_seconds: Seconds = 3800.0
    """The global batch in seconds of audio, padding never needed (fairseq: max_tokens, GPUs and update_freq together)."""
    micro_batch_seconds: Seconds = 237.5
    """At most so many seconds on a device at a time."""

    @model_validator(mode="after")
    def _consistent(self) -> "SpeechData":
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds: {self.min_seconds:g} is more than max_seconds: {self.max_seconds:g}")
        if self.max_seconds > self.micro_batch_seconds:
            raise ValueError(
                f"max_seconds: {self.max_seconds:g} does not fit into micro_batch_seconds: {self.micro_batch_seconds:g}"
            )
        return self

    @property
    def batch(self) -> float:
        return self.batch_seconds

    @property
    def micro_batch(self) -> float:
        return self.micro_batch_seconds


class Header(NamedTuple):
    """What an audio file says about itself."""

    seconds: float
    rate: int
    channels: int
    frames: int


class SpeechExamples:
    """Clips of a data set. With `whole`, for evaluation, none is left out for its length and costs are not capped.

    `bad` names what cannot be read, `short` counts what was left out. Raises UserError when nothing remains."""

    def __init__(self, rows: Any, settings: SpeechData, whole: bool = False):
        self.rows = rows
        least = SHORTEST if whole else settings.min_seconds
        seconds, self.bad = _durations(rows)
        fits = seconds >= least
        self.keys = np.flatnonzero(fits)
        self.short = int((seconds < least).sum())  # what is bad is NaN, and neither
        self.costs = seconds[fits] if whole else np.minimum(seconds[fits], settings.max_seconds)
        if isinstance(rows, list):  # one window of a stream: another one may have longer clips
            return
        if self.short:
            log.warning("%d of %d clips are shorter than %g s and left out", self.short, len(rows), least)
        if not len(self.keys):
            longest = f"the longest has {np.nanmax(seconds):.2f} s" if self.short else f"such as {self.bad[0]}"
            trouble = f"shorter than data.min_seconds: {least:g}" if self.short else "unreadable"
            raise UserError(f"all {len(rows)} clips are {trouble} ({longest}): lower it or take other data")

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(S,) samples at 16 kHz: the whole clip normalised, then `limit` seconds of it from a random place (`rng`), or
        from the start; without a limit all of it."""
        wave = normalise(decode(self.rows[int(self.keys[index])]["audio"]))
        if limit is not None:
            length = floor(limit * RATE + 1e-3)
            spare = max(0, len(wave) - length)
            start = int(rng.integers(spare + 1)) if rng is not None else 0
            wave = wave[start : start + length]
            if len(wave) < length:  # resampling, or a header that is a little off
                wave = np.pad(wave, (0, length - len(wave)))
        return torch.from_numpy(np.ascontiguousarray(wave))

    def label(self, index: int, column: str) -> Any:
        return label(self.rows, int(self.keys[index]), column)

    def __len__(self) -> int:
        return len(self.keys)


def header(audio: dict[str, Any]) -> Header:
    """Read the header of {"bytes", "path"}. Raises BadExample."""
    import soundfile

    try:
        info = soundfile.info(_source(audio))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise BadExample(f"{name(audio)}: {_plain(error)}") from None
    _check_length(audio, info.frames / info.samplerate)
    return Header(info.frames / info.samplerate, info.samplerate, info.channels, info.frames)


def decode(audio: dict[str, Any]) -> np.ndarray:
    """(S,) float32 at 16 kHz, the mean of the channels. Raises BadExample, also when the file ends before its header says."""
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(_source(audio)) as file:
            rate, frames = file.samplerate, file.frames
            _check_length(audio, frames / rate)
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise BadExample(f"{name(audio)}: {_plain(error)}") from None
    if len(samples) < 0.98 * frames:
        raise BadExample(f"{name(audio)}: truncated, {len(samples)} of {frames} samples can be decoded")
    wave = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(wave).all():
        raise BadExample(f"{name(audio)}: has samples that are not numbers")
    return wave if rate == RATE else soxr.resample(wave, rate, RATE)


def normalise(wave: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole clip; silence stays zero."""
    wave = wave - wave.mean()
    wave /= np.sqrt(np.square(wave).mean() + np.float32(1e-5))  # wave.var() would take the mean again
    return wave


def collate(items: Sequence[Tensor]) -> Batch:
    """`input` (B, S); rows of unlike length are padded with zeros and `padding` (B, S) is True there."""
    if len({len(item) for item in items}) == 1:
        return Batch(default_collate(list(items)))  # in a worker: straight into memory shared with the training process
    lengths = torch.tensor([len(item) for item in items])
    padded = torch.nn.utils.rnn.pad_sequence(list(items), batch_first=True)
    return Batch(padded, padding=torch.arange(int(lengths.max())) >= lengths[:, None])


def name(signal: dict[str, Any]) -> str:
    """What to call it in a message."""
    return signal["path"] or f"an unnamed clip of {len(signal['bytes'] or b'')} bytes"


def _check_length(audio: dict[str, Any], seconds: float) -> None:
    if not 0 < seconds <= LONGEST:
        raise BadExample(f"{name(audio)}: it lasts {seconds:g} s" + (", cut it into pieces of some minutes" if seconds else ""))


def _plain(error: Exception) -> str:
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error).rstrip(".")


def _source(audio: dict[str, Any]) -> str | BinaryIO:
    return io.BytesIO(audio["bytes"]) if audio["bytes"] is not None else audio["path"]


def _durations(rows: Any) -> tuple[np.ndarray, list[str]]:
    """(n,) seconds, NaN where the header cannot be read, and the names of those. Kept in the cache for large data."""
    if isinstance(rows, list) or len(rows) < CACHE_FROM:
        return _measure(rows)

    def write(file: BinaryIO) -> None:
        seconds, bad = _measure(rows)
        np.savez(file, seconds=seconds, bad=np.array(bad, dtype=str))

    with np.load(cached(f"durations-{fingerprint(rows, 'audio')}.npz", write)) as kept:
        return kept["seconds"], kept["bad"].tolist()


def _measure(rows: Any) -> tuple[np.ndarray, list[str]]:
    from tqdm import tqdm

    views = rows if isinstance(rows, list) else rows.select_columns("audio")

    def measure(index: int) -> float | str:
        try:
            return header(views[index]["audio"]).seconds
        except BadExample as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        every = threads.map(measure, range(len(views)), chunksize=64)
        bar = tqdm(every, "reading headers", len(views), unit="clip", delay=3, leave=False, disable=isinstance(rows, list))
        found = list(bar)
    seconds = np.array([np.nan if isinstance(item, str) else item for item in found], dtype=np.float64)
    return seconds, [item for item in found if isinstance(item, str)]
