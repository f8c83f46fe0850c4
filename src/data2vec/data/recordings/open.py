"""Opening the recording of a signal, in any format; and the recordings of a file that holds several."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from data2vec.data.dataset import Signal, array_of
from data2vec.data.recordings.arrays import array_recording, read_arrays
from data2vec.data.recordings.edf import EdfRecording
from data2vec.data.recordings.hdf5 import hdf5_entries, hdf5_recording
from data2vec.data.recordings.mne import ENDINGS, MneRecording
from data2vec.data.recordings.parquet import parquet_entries, parquet_recording
from data2vec.data.recordings.recording import (
    ArrayRecording,
    Description,
    Recording,
    checked,
    name_channels,
    orient,
    require_rate,
)
from data2vec.data.recordings.tables import table_recording
from data2vec.data.recordings.wfdb import WfdbRecording
from data2vec.errors import CorruptExample

Reader = Callable[[str, str | None, Description], Recording]
"""From the path of a file, which of its recordings, and what the user says about it."""

Entries = tuple[list[str | None], dict[str, list[Any]]]
"""The recordings of a file, by `entry` of a signal, [None] for a single one; and columns with something about each of them."""


def _read_arrays(path: str, entry: str | None, description: Description) -> Recording:
    return array_recording(read_arrays(path, description.array), None if entry is None else int(entry), description)


def _read_table(path: str, entry: str | None, description: Description) -> Recording:
    return table_recording(path, description)


READERS: Mapping[str, Reader] = {
    ".npy": _read_arrays,
    ".npz": _read_arrays,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": parquet_recording,
    **{ending: lambda path, entry, description: EdfRecording(path) for ending in (".edf", ".bdf", ".rec")},
    ".hea": lambda path, entry, description: WfdbRecording(path),
    **dict.fromkeys((".h5", ".hdf5"), hdf5_recording),
    **{ending: lambda path, entry, description: MneRecording(path) for ending in ENDINGS},
}
"""By the ending of a file."""


def _array_entries(path: str, description: Description) -> Entries:
    arrays = read_arrays(path, description.array)
    if arrays.recordings is None:
        return [None], {}
    columns = {name: _plain(values) for name, values in arrays.columns.items()}
    return [str(index) for index in range(arrays.recordings)], columns


SEVERAL: Mapping[str, Callable[[str, Description], Entries]] = {
    **dict.fromkeys((".npy", ".npz"), _array_entries),
    ".parquet": parquet_entries,
    **dict.fromkeys((".h5", ".hdf5"), hdf5_entries),
}
"""What lists the recordings of files that may hold several, by their ending."""


def open_recording(signal: Signal, description: Description) -> Recording:
    """The recording of a signal: {"path", "entry", "rate"}; or in memory, {"array", "sampling_rate", "channels", "units"}.

    Raises CorruptExample, without the name of the file."""
    if signal.get("rate") is not None:
        description = replace(description, rate=float(signal["rate"]))
    if signal.get("array") is not None:
        return checked(_in_memory(signal, description))
    if signal.get("bytes") is not None:
        raise CorruptExample("a recording must be a file or an array; bytes of files cannot be read in parts")
    path = str(signal.get("path") or "")
    reader = next((reader for ending, reader in READERS.items() if path.lower().endswith(ending)), None)
    if reader is None:
        raise CorruptExample(f"no recording: the name ends in none of {' '.join(READERS)}")
    return checked(reader(path, signal.get("entry"), description))


def _in_memory(signal: Signal, description: Description) -> Recording:
    array = array_of(signal["array"])
    names = signal.get("channels")
    array = orient(array, description, None if names is None else len(names))
    rate = signal.get("sampling_rate")
    units = signal.get("units") or ("",) * array.shape[1]
    channels = name_channels(array.shape[1], names, description.channels)
    return ArrayRecording(
        array, channels, name_channels(array.shape[1], units), require_rate(description.rate if rate is None else float(rate))
    )


def list_entries(path: str, description: Description) -> Entries:
    """The recordings of a file. Raises CorruptExample."""
    found = next((entries for ending, entries in SEVERAL.items() if path.lower().endswith(ending)), None)
    return ([None], {}) if found is None else found(path, description)


def _plain(values: np.ndarray) -> list[Any]:
    return values.tolist() if values.dtype.kind in "iufU" else [str(value) for value in values.tolist()]
