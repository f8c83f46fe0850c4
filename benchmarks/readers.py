"""Throughput of reading recordings, per second of CPU time of one core.

    python benchmarks/readers.py [seconds per figure] [format…]

An hour of 12 channels at 500 Hz in each format, in a random order of windows of 10 s, as training reads a recording that is too
long to be kept in memory: what the format decodes; then filtered (0.5 to 40 Hz, with a margin); or resampled to 250 Hz. At last
the time to open a file, which reads a whole csv, npz, parquet or HDF5 file.
"""

import csv
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import edfio
import h5py
import numpy as np

from data2vec.data.dataset import Signal
from data2vec.data.recordings.open import open_recording
from data2vec.data.recordings.preprocessing import FilterSettings
from data2vec.data.recordings.recording import Description
from data2vec.data.recordings.scaling import ScaleSettings
from data2vec.data.recordings.windows import Montage, WindowReader

CHANNELS, RATE, SECONDS, WINDOW = tuple(f"ch{index + 1}" for index in range(12)), 500, 3600, 10
FORMATS = ("edf", "bdf", "hea", "npy", "npz", "h5", "parquet", "csv")


def write(folder: Path, ending: str) -> Path:
    """A file of noise."""
    samples = np.random.default_rng(0).standard_normal((SECONDS * RATE, len(CHANNELS))).astype(np.float32)
    path = folder / f"a.{ending}"
    if ending in ("edf", "bdf"):
        kind = edfio.EdfSignal if ending == "edf" else edfio.BdfSignal
        signals = [kind(row, RATE, label=name, physical_range=(-8, 8)) for name, row in zip(CHANNELS, samples.T, strict=True)]
        (edfio.Edf if ending == "edf" else edfio.Bdf)(signals).write(path)
    elif ending == "hea":
        (samples * 1000).astype("<i2").tofile(folder / "a.dat")
        lines = [f"a.dat 16 1000/mV 16 0 0 0 0 {name}" for name in CHANNELS]
        path.write_text("\n".join([f"a {len(CHANNELS)} {RATE} {len(samples)}", *lines]) + "\n")
    elif ending == "npy":
        np.save(path, samples)
    elif ending == "npz":
        np.savez(path, x=samples, fs=RATE, channels=CHANNELS)
    elif ending == "h5":
        with h5py.File(path, "w") as file:
            file["x"] = samples
            file["x"].attrs.update({"fs": RATE, "channels": CHANNELS})
    elif ending == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(dict(zip(CHANNELS, samples.T, strict=True))), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([CHANNELS, *samples.round(4).tolist()])
    return path


def rate(work: Callable[[int], object], seconds: float) -> float:
    """Windows per second of CPU time, after the first."""
    work(0)
    done, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        done += 1
        work(done)
    return done / spent


def read(reader: WindowReader, signal: Signal, starts: np.ndarray, index: int) -> None:
    """Read a window."""
    reader.read(signal, int(starts[index % len(starts)]), round(WINDOW * reader.montage.rate))


def main() -> None:
    """Print a line for each format."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    description = Description("first", RATE, CHANNELS)
    starts = np.random.default_rng(0).integers(0, SECONDS - WINDOW, 4096)
    print(
        f"windows of {WINDOW} s, {len(CHANNELS)} channels, {RATE} Hz, per second of CPU time: read, filtered, resampled; "
        "and opening in seconds"
    )
    for ending in sys.argv[2:] or FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            signal: Signal = {"path": str(write(Path(folder), ending))}
            begin = time.process_time()
            open_recording(signal, description).read(0, 0, RATE)
            opening, rates = time.process_time() - begin, []
            for filters, hertz in ((FilterSettings(), RATE), (FilterSettings(low=0.5, high=40), RATE), (FilterSettings(), 250)):
                montage = Montage(CHANNELS, ("",) * len(CHANNELS), hertz, filters, ScaleSettings(by="none"), {}, False)
                rates.append(rate(partial(read, WindowReader(montage, description), signal, starts * hertz), seconds))
            print(f"{ending:10}" + "".join(f"{each:10.0f}" for each in rates) + f"{opening:10.3f}", flush=True)


if __name__ == "__main__":
    main()
