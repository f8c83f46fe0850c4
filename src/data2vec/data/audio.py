"""Audio files: headers, decoding, resampling to 16 kHz and normalization."""

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data2vec.console.progress import progress
from data2vec.data.cache import cached, column_paths, fingerprint
from data2vec.data.corrupt import decoding
from data2vec.data.dataset import Rows, Signal, array_of
from data2vec.data.loader import init_worker
from data2vec.data.sources.formats import MEDIA
from data2vec.errors import CorruptExample
from data2vec.untrusted import require_regular

SAMPLE_RATE = 16000
"""Samples per second after resampling."""
MAX_RECORDING_SECONDS = 4 * 3600.0
"""Longer recordings are refused, as a recording is decoded in one piece."""
RATES = (1000, 1_000_000)
"""The lowest and highest sampling rate, in Hz. A file of a few bytes at 1 Hz would be hours of samples after resampling."""
MAX_EXPANSION = 500
"""Bytes of samples for each byte of a file: speech at the lowest rates of Opus has 250, digital silence has any."""
SMALL_BYTES = 64 * 2**20
"""Bytes of samples that any file may have: 17 minutes at 16 kHz."""
BLOCK_SAMPLES = 2**20
"""Samples of a file, of all channels, that are decoded at a time."""
SILENCE = 1e-3
"""Below this peak, -60 dB, a clip is silent; relative to the channels, their mean is."""
MAX_PEAK = 1e15
"""Samples above this are scaled to 1 before they are squared, which would give inf and turn the clip into silence."""
_OTHER_THAN_MP3 = tuple(ending for ending in MEDIA["audio"] if ending != ".mp3")
TASK = 128
"""Headers that a process reads at a time."""
PROCESSES_FROM, MOST_PROCESSES = 2000, 16
"""Headers of at least this many rows are read by one process per core, at most so many."""
CACHE_DURATIONS_FROM = 10_000
"""Durations of datasets with at least this many rows are cached."""


class AudioHeader(NamedTuple):
    """The header of an audio file."""

    seconds: float
    rate: int
    channels: int
    frames: int
    format: str
    """Container and encoding, such as "WAV PCM_16"; "" where only the duration is wanted."""


def read_audio_header(audio: Signal) -> AudioHeader:
    """The header of a signal. Raises CorruptExample."""
    with decoding(audio, _unnamed(audio)):
        if audio.get("array") is not None:
            return _read_array(audio)[1]
        with _open(audio) as file:
            return _header(file)._replace(format=f"{file.format} {file.subtype}")


def decode_audio(audio: Signal, rate: int = SAMPLE_RATE) -> np.ndarray:
    """A signal as (S,) float32 samples, `rate` per second, the mean of the channels.

    Raises CorruptExample, also for a file with fewer samples than its header says, and for channels that cancel each other."""
    with decoding(audio, _unnamed(audio)), np.errstate(over="ignore", invalid="ignore"):
        if audio.get("array") is not None:
            waveform, header = _read_array(audio)
        else:
            waveform, header = _read_file(audio)
        waveform = _resample(waveform, header.rate, rate)
        if not np.isfinite(waveform).all():
            raise CorruptExample("contains NaN or inf samples, or samples beyond the range of float32")
        return waveform


def _open(audio: Signal) -> Any:
    """The `soundfile.SoundFile` of bytes or of a path."""
    import soundfile

    content, name = audio.get("bytes"), str(audio.get("path") or "")
    if content is None:
        require_regular(name)
    try:
        return soundfile.SoundFile(name if content is None else io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        # An MP3 file with something else before its first frame is only recognised by its name, which content may lack.
        if content is not None and not name.lower().endswith(_OTHER_THAN_MP3):
            with NamedTemporaryFile(suffix=".mp3") as file, suppress(soundfile.LibsndfileError):
                file.write(content)
                file.flush()
                return soundfile.SoundFile(file.name)
        if content is None and name.lower().endswith(".mp3") and os.path.isfile(name):
            # The library says that there is no such file.
            raise CorruptExample("not MP3: there is no frame in its first 64 kB") from None
        raise error


def _header(file: Any) -> AudioHeader:
    """Raises CorruptExample without samples, or with too many."""
    return _checked(AudioHeader(file.frames / file.samplerate, file.samplerate, file.channels, file.frames, ""))


def _read_array(audio: Signal) -> tuple[np.ndarray, AudioHeader]:
    samples, rate = samples_from_array(audio["array"]), audio.get("sampling_rate")
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not rate > 0 or rate != int(rate):
        raise CorruptExample(f"a sampling rate of {rate!r}; it must be a number of samples per second, such as 16000")
    return samples, _checked(AudioHeader(len(samples) / int(rate), int(rate), 1, len(samples), "array"))


def samples_from_array(array: Any) -> np.ndarray:
    """(S,) float32 samples of an array of any byte order and stride, a tensor or a list; integers are scaled to -1..1 by their
    type, those of lists and of 64 bits as 16 bits.

    Raises CorruptExample with what is wanted, for several channels and for other content."""
    samples = array_of(array)
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    if samples.ndim != 1:
        channels = "; average the channels, or pick one" if samples.ndim == 2 else ""
        raise CorruptExample(f"audio of shape {samples.shape}; it must be (S,), the samples of one channel{channels}")
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if not samples.size:
        return np.zeros(0, np.float32)
    if kind == "f":
        return np.ascontiguousarray(samples, np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if kind != "i":
        raise CorruptExample(f"{samples.dtype} samples; give floats from -1 to 1, int16 or int32")
    if size == 8 and not (samples.min() >= -(2**15) and samples.max() < 2**15):
        values = f"{samples.dtype} samples from {samples.min()} to {samples.max()}"
        raise CorruptExample(f"{values}, whose full scale is unknown; give floats from -1 to 1, int16 or int32")
    return samples.astype(np.float32) / np.float32(2**15 if size == 8 else 2 ** (8 * size - 1))


def _read_file(audio: Signal) -> tuple[np.ndarray, AudioHeader]:
    """(S,) samples of a file, the mean of its channels, and its header."""
    with _open(audio) as file:
        header = _header(file)
        content = audio.get("bytes")
        size = len(content) if content is not None else os.stat(str(audio["path"])).st_size
        decoded = 4 * header.seconds * max(header.rate, SAMPLE_RATE)
        if decoded > SMALL_BYTES + MAX_EXPANSION * size:
            raise CorruptExample(
                f"a file of {size} bytes that claims {header.seconds:g} s at {header.rate} Hz, {decoded / size:.0f} times as "
                f"much; at most {MAX_EXPANSION} times are decoded"
            )
        parts, loudest = list[np.ndarray](), 0.0
        # In blocks, as every channel takes memory; and not by `file.read()`, which refuses encodings that cannot be searched.
        while len(block := file.read(max(1, BLOCK_SAMPLES // header.channels), "float32", always_2d=True)):
            parts.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
            if block.shape[1] > 1:
                loudest = max(loudest, float(np.abs(block).max()))
    waveform = parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.float32)])
    if len(waveform) < 0.98 * header.frames:
        raise CorruptExample(f"truncated, only {len(waveform)} of {header.frames} samples can be decoded")
    if loudest > SILENCE and float(np.abs(waveform).max()) < SILENCE * loudest:
        raise CorruptExample("its channels cancel each other (opposite phase), so their mean is silent; keep one of them")
    return waveform, header


def _resample(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return waveform
    import soxr

    if round(len(waveform) * wanted / rate) < 1:
        raise CorruptExample(f"{len(waveform)} samples at {rate} Hz are too short for one at {wanted} Hz")
    return soxr.resample(waveform, rate, wanted)


def normalize_waveform(waveform: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the full clip; silence stays zero."""
    if (peak := np.abs(waveform).max(initial=0)) > MAX_PEAK:
        waveform = waveform / peak
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
    """As `read_durations`; of many rows in processes, as Python is busy for most of a header's fifth of a millisecond."""
    views = rows if isinstance(rows, list) else rows.select_columns("audio")
    tasks = [range(start, min(start + TASK, len(views))) for start in range(0, len(views), TASK)]
    workers = 0 if isinstance(rows, list) or len(views) < PROCESSES_FROM else min(MOST_PROCESSES, os.cpu_count() or 1)
    loader = DataLoader(
        _Headers(views),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        collate_fn=tuple,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # else creating the iterator would advance the global random state
    )
    seconds, corrupt = list[float](), list[str]()
    with progress(desc="reading headers", total=len(views), unit="clip", delay=3, hidden=isinstance(rows, list)) as bar:
        for measured, reasons in loader:
            seconds += measured
            corrupt += reasons
            bar.update(len(measured))
    return np.array(seconds, dtype=np.float64), corrupt


class _Headers(Dataset[tuple[list[float], list[str]]]):
    """The seconds of a range of rows, NaN where a header cannot be read, and why."""

    def __init__(self, views: Rows):
        self.views = views
        # Rows are slow to read one at a time, and many with their content would not fit into memory.
        self.step = TASK if not isinstance(views, list) and column_paths(views, "audio") else 1

    def __getitem__(self, indices: range) -> tuple[list[float], list[str]]:
        seconds, reasons = list[float](), list[str]()
        for signal in self._signals(indices):
            try:
                seconds.append(_seconds(signal))
            except CorruptExample as error:
                seconds.append(np.nan)
                reasons.append(str(error))
        return seconds, reasons

    def _signals(self, indices: range) -> Iterator[Signal]:
        if isinstance(self.views, list):
            yield from (self.views[index]["audio"] for index in indices)
        else:
            for start in indices[:: self.step]:
                yield from self.views[start : min(start + self.step, indices.stop)]["audio"]


def _seconds(audio: Signal) -> float:
    with decoding(audio, _unnamed(audio)):
        if audio.get("array") is not None:
            return _read_array(audio)[1].seconds
        with _open(audio) as file:
            return _header(file).seconds


def _checked(header: AudioHeader) -> AudioHeader:
    """The same header. Raises CorruptExample without samples, or with too many."""
    if not RATES[0] <= header.rate <= RATES[1]:
        raise CorruptExample(f"a sampling rate of {header.rate} Hz; it must be from {RATES[0]} to {RATES[1]}")
    if not header.seconds > 0:
        raise CorruptExample("it lasts 0 s: it is empty, or its end is missing")
    if header.seconds > MAX_RECORDING_SECONDS:
        raise CorruptExample(
            f"it lasts {header.seconds:g} s, at most {MAX_RECORDING_SECONDS:g} s are allowed; split it into pieces of a few "
            "minutes"
        )
    return header


def _unnamed(audio: Signal | None) -> str:
    content = (audio or {}).get("bytes")
    return "an unnamed clip" if content is None else f"an unnamed clip of {len(content)} bytes"
