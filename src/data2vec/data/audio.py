"""Audio files: headers, decoding, resampling to 16 kHz and normalization."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np

from data2vec.data.cache import cached, fingerprint
from data2vec.data.dataset import Rows, Signal
from data2vec.errors import CorruptExample

SAMPLE_RATE = 16000
"""Samples per second after resampling."""
MAX_RECORDING_SECONDS = 4 * 3600.0
"""Longer recordings are refused, as a recording is decoded in one piece."""
CACHE_DURATIONS_FROM = 10_000
"""Durations of datasets with at least this many rows are cached."""


class AudioHeader(NamedTuple):
    """The header of an audio file."""

    seconds: float
    rate: int
    channels: int
    frames: int


def read_audio_header(audio: Signal) -> AudioHeader:
    """The header of {"bytes", "path"}. Raises CorruptExample."""
    import soundfile

    try:
        info = soundfile.info(_source(audio))
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise CorruptExample(f"{_name(audio)}: {_reason(error)}") from None
    _check_duration(audio, info.frames / info.samplerate)
    return AudioHeader(info.frames / info.samplerate, info.samplerate, info.channels, info.frames)


def decode_audio(audio: Signal) -> np.ndarray:
    """{"bytes", "path"} as (S,) float32 samples at 16 kHz, the mean of the channels.

    Raises CorruptExample, also for a file with fewer samples than its header says."""
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(_source(audio)) as file:
            rate, frames = file.samplerate, file.frames
            _check_duration(audio, frames / rate)
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        raise CorruptExample(f"{_name(audio)}: {_reason(error)}") from None
    if len(samples) < 0.98 * frames:
        raise CorruptExample(f"{_name(audio)}: truncated, only {len(samples)} of {frames} samples can be decoded")
    waveform = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(waveform).all():
        raise CorruptExample(f"{_name(audio)}: contains NaN or inf samples")
    return waveform if rate == SAMPLE_RATE else soxr.resample(waveform, rate, SAMPLE_RATE)


def normalize_waveform(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the full clip; silence stays zero."""
    waveform = waveform - waveform.mean()
    waveform /= np.sqrt(np.square(waveform).mean() + np.float32(1e-5))  # waveform.var() would compute the mean again
    return waveform


def read_durations(rows: Rows) -> tuple[np.ndarray, list[str]]:
    """(n,) seconds of each row's audio, NaN where the header cannot be read, and "name: reason" for those.

    Those of large datasets are cached."""
    if isinstance(rows, list) or len(rows) < CACHE_DURATIONS_FROM:
        return _measure_durations(rows)

    def write(file: BinaryIO) -> None:
        seconds, corrupt = _measure_durations(rows)
        np.savez(file, seconds=seconds, corrupt=np.array(corrupt, dtype=str))

    with np.load(cached(f"audio-durations-{fingerprint(rows, 'audio')}.npz", write)) as content:
        return content["seconds"], content["corrupt"].tolist()


def _measure_durations(rows: Rows) -> tuple[np.ndarray, list[str]]:
    from tqdm import tqdm

    views = rows if isinstance(rows, list) else rows.select_columns("audio")

    def measure(index: int) -> float | str:
        try:
            return read_audio_header(views[index]["audio"]).seconds
        except CorruptExample as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        results: Iterable[float | str] = threads.map(measure, range(len(views)), chunksize=64)
        hidden = isinstance(rows, list)
        results = list(tqdm(results, "reading headers", len(views), unit="clip", delay=3, leave=False, disable=hidden))
    seconds = np.array([np.nan if isinstance(item, str) else item for item in results], dtype=np.float64)
    return seconds, [item for item in results if isinstance(item, str)]


def _check_duration(audio: Signal, seconds: float) -> None:
    if not seconds > 0:
        raise CorruptExample(f"{_name(audio)}: it lasts 0 s")
    if seconds > MAX_RECORDING_SECONDS:
        raise CorruptExample(
            f"{_name(audio)}: it lasts {seconds:g} s, at most {MAX_RECORDING_SECONDS:g} s are allowed; split it into pieces of "
            "a few minutes"
        )


def _name(audio: Signal) -> str:
    return audio["path"] or f"an unnamed clip of {len(audio['bytes'] or b'')} bytes"


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", None) or getattr(error, "strerror", None) or error).rstrip(".")


def _source(audio: Signal) -> str | BinaryIO:
    return io.BytesIO(audio["bytes"]) if audio["bytes"] is not None else audio["path"]
