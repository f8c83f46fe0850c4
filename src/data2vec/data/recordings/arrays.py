"""Recordings in numpy files, which are never unpickled: an array; or an npz with the signal, its rate, names and labels.

Of an array of three axes the first counts recordings."""

import io
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from data2vec.data.recordings.recording import (
    ArrayRecording,
    Description,
    Recording,
    name_channels,
    orient,
    require_rate,
)
from data2vec.errors import CorruptExample
from data2vec.untrusted import open_regular

SIGNALS = ("x", "signal", "signals", "data", "eeg", "ecg", "emg", "imu", "X")
RATE_NAMES = ("rate", "fs", "sampling_rate", "sfreq", "srate")
CHANNEL_NAMES = ("channels", "ch_names", "channel_names", "sig_name")
UNIT_NAMES = ("units", "unit")
MAX_ARRAY_BYTES = 2**32
"""Of an array in a compressed file, which is read as a whole."""


class Arrays(NamedTuple):
    """The content of a numpy file."""

    signal: np.ndarray
    """(T, C) or (C, T), or (N, …) of these."""
    rate: float | None
    channels: tuple[str, ...] | None
    units: tuple[str, ...] | None
    columns: Mapping[str, np.ndarray]
    """Arrays (N, …) with something about each recording, such as its label."""

    @property
    def recordings(self) -> int | None:
        """N; None for a single recording."""
        return len(self.signal) if self.signal.ndim == 3 else None


def read_arrays(path: str, name: str | None) -> Arrays:
    """The arrays of a .npy or .npz file; `name` is that of the signal. Raises CorruptExample for other content, as pickled
    objects."""
    if path.lower().endswith(".npy"):
        return Arrays(load_npy(path), None, None, None, {})
    with open_regular(path) as file, np.load(file, allow_pickle=False) as content:
        found: dict[str, np.ndarray] = {}
        for key in content.files:
            with content.zip.open(f"{key}.npy") as member:
                _check_npy_header(member, MAX_ARRAY_BYTES)
            found[key] = content[key]
    return select_arrays(found, name)


def select_arrays(found: Mapping[str, Any], name: str | None) -> Arrays:
    """Which array is what. Raises CorruptExample if it is unclear which is the signal."""
    numbers = [key for key, value in found.items() if value.ndim in (2, 3) and value.dtype.kind in "iuf"]
    if name is not None and name not in found:
        raise CorruptExample(f"no array {name!r}, only {', '.join(found)}; see data.array")
    signal = name or next((key for key in SIGNALS if key in found and found[key].ndim >= 1), None)
    if signal is None and len(numbers) == 1:
        signal = numbers[0]
    if signal is None:
        raise CorruptExample(f"arrays {', '.join(found) or 'none'}: which is the signal? Set data.array")
    array = found[signal]
    rate = next((value for key in RATE_NAMES if (value := found.get(key)) is not None and value.size == 1), None)
    columns = {}
    if array.ndim == 3:
        taken = {signal, *CHANNEL_NAMES, *UNIT_NAMES, *RATE_NAMES}
        columns = {key: value for key, value in found.items() if key not in taken and value.ndim == 1}
        columns = {key: value for key, value in columns.items() if len(value) == len(array)}
    return Arrays(
        array,
        None if rate is None else float(rate.reshape(-1)[0]),
        _texts(found, CHANNEL_NAMES),
        _texts(found, UNIT_NAMES),
        columns,
    )


def _texts(found: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...] | None:
    value = next((found[key] for key in names if key in found), None)
    return None if value is None else tuple(str(each) for each in value.reshape(-1).tolist())


def array_recording(arrays: Arrays, entry: int | None, description: Description) -> Recording:
    """One of the recordings of a file. Raises CorruptExample."""
    array = arrays.signal if entry is None else arrays.signal[entry]
    names = arrays.channels
    array = orient(array, description, None if names is None else len(names))
    rate = require_rate(description.rate if arrays.rate is None else arrays.rate)
    channels = name_channels(array.shape[1], names, description.channels)
    units = name_channels(array.shape[1], arrays.units or ("",) * array.shape[1])
    return ArrayRecording(array, channels, units, rate)


def load_npy(path: str, content: bytes | None = None) -> np.ndarray:
    """The array of a .npy file, read when it is used, or of its `content`. Raises CorruptExample for other content, as pickled
    objects."""
    if content is not None:
        _check_npy_header(io.BytesIO(content), min(len(content), MAX_ARRAY_BYTES))
        return np.load(io.BytesIO(content), allow_pickle=False)
    with open_regular(path) as file:
        _check_npy_header(file, os.fstat(file.fileno()).st_size)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _check_npy_header(file: Any, available: int) -> None:
    """Raises CorruptExample for objects, and for an array that is larger than what is there, before it is allocated."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise CorruptExample(f"npy format {version}; save it by numpy.save")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise CorruptExample("it holds pickled Python objects, which are never loaded: save arrays of numbers or texts")
    if math.prod(shape) * dtype.itemsize > available:
        raise CorruptExample(
            f"an array of {math.prod(shape) * dtype.itemsize} bytes, of which {available} are there or allowed"
        )
