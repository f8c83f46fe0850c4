"""Recordings in HDF5 files, read in parts: data sets of two axes, or of three, the first of which counts recordings.

Rate, names and units of channels are attributes of a data set, of its group or of the file. Links to other files, and data that
is stored in other files, are not followed."""

from typing import Any

import numpy as np

from data2vec.data.recordings.arrays import CHANNEL_NAMES, RATE_NAMES, UNIT_NAMES
from data2vec.data.recordings.recording import ArrayRecording, Description, Recording, name_channels, orient, require_rate
from data2vec.errors import CorruptExample, MissingPackage
from data2vec.untrusted import require_regular

RATES = (*RATE_NAMES, "rsFreq")
CHANNELS = (*CHANNEL_NAMES, "chOrder")
MAX_DATA_SETS = 1_000_000
MAX_NUMBERS = 2**30
"""Of a recording, which is read as a whole if its axes are (channels, samples)."""


def hdf5_recording(path: str, entry: str | None, description: Description) -> Recording:
    """One of the recordings of a file; its only one if `entry` is None.

    Raises CorruptExample, and MissingPackage without h5py."""
    file = _open(path)
    entries, _ = _entries(file, description)
    if entry is None and len(entries) > 1:
        raise CorruptExample(f"{len(entries)} recordings; name one")
    name, _, index = (entry or entries[0]).partition("[")
    stored = file[name]
    _refuse_elsewhere(stored)
    shape = stored.shape[1:] if index else stored.shape
    if int(np.prod(shape)) > MAX_NUMBERS:
        raise CorruptExample(f"an array of shape {shape} is too large")
    array = stored[int(index.rstrip("]"))] if index else stored[()]
    holders = (stored, stored.parent, file)
    names = _texts(holders, CHANNELS)
    array = orient(np.asarray(array), description, None if names is None else len(names))
    rate = next((float(np.ravel(each.attrs[key])[0]) for each in holders for key in RATES if key in each.attrs), None)
    units = _texts(holders, UNIT_NAMES) or ("",) * array.shape[1]
    units = units * array.shape[1] if len(units) == 1 else units
    return ArrayRecording(
        array,
        name_channels(array.shape[1], names, description.channels),
        name_channels(array.shape[1], units),
        require_rate(description.rate if rate is None else rate),
    )


def hdf5_entries(path: str, description: Description) -> tuple[list[str | None], dict[str, list[Any]]]:
    """The recordings of a file, and the arrays of as many numbers or texts."""
    entries, columns = _entries(_open(path), description)
    return list(entries), columns


def _open(path: str) -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingPackage("reading HDF5 files needs h5py: pip install 'data2vec[hdf5]'") from None
    require_regular(path)
    try:
        return h5py.File(path, "r", swmr=False)
    except OSError as error:
        raise CorruptExample(f"not a complete HDF5 file: {' '.join(str(error).split())[:200]}") from None


def _entries(file: Any, description: Description) -> tuple[list[str], dict[str, list[Any]]]:
    import h5py

    found: dict[str, Any] = {}
    file.visititems(lambda name, each: found.update({name: each}) if isinstance(each, h5py.Dataset) else None)
    if len(found) > MAX_DATA_SETS:
        raise CorruptExample(f"{len(found)} data sets; at most {MAX_DATA_SETS} are read")
    signals = {name: each for name, each in found.items() if each.ndim in (2, 3) and each.dtype.kind in "iuf"}
    if description.array is not None:
        signals = {name: each for name, each in signals.items() if description.array in (name, name.rpartition("/")[2])}
    names = {name.rpartition("/")[2] for name in signals}
    if len(names) > 1 and description.array is None and any("/" not in name for name in signals):
        raise CorruptExample(f"data sets {', '.join(list(signals)[:10])}: which is the signal? Set data.array")
    if not signals:
        raise CorruptExample(f"no data set of two or three axes of numbers, only {', '.join(list(found)[:10]) or 'none'}")
    entries = [
        entry
        for name, each in signals.items()
        for entry in ([name] if each.ndim == 2 else [f"{name}[{index}]" for index in range(len(each))])
    ]
    columns = {}
    for name, each in found.items():
        if each.ndim == 1 and len(each) == len(entries) and len(entries) > 1:
            _refuse_elsewhere(each)
            values = each.asstr()[()] if each.dtype.kind == "O" and h5py.check_string_dtype(each.dtype) else each[()]
            if values.dtype.kind in "iufUO":
                columns[name.rpartition("/")[2]] = values.tolist()
    return entries, columns


def _refuse_elsewhere(stored: Any) -> None:
    if stored.external or stored.is_virtual:
        raise CorruptExample(f"data set {stored.name} is stored in other files, which are not read")


def _texts(holders: tuple[Any, ...], keys: tuple[str, ...]) -> tuple[str, ...] | None:
    for each in holders:
        for key in keys:
            if key in each.attrs:
                values = np.ravel(each.attrs[key]).tolist()
                return tuple(value.decode() if isinstance(value, bytes) else str(value) for value in values)
    return None
