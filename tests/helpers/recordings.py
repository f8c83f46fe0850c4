"""Small recordings for tests: sines of known frequencies, one for each channel."""

from pathlib import Path
from typing import Any

import numpy as np

from data2vec.modalities.signal import SignalData, Signals, SignalSettings

CHANNELS = ("ax", "ay", "az")
RATE = 50.0


def waves(seconds: float = 8.0, rate: float = RATE, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(T, C): channel c is a sine of c + 1 Hz with some noise."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.1, (len(time), channels))
    return np.sin(2 * np.pi * np.outer(time, np.arange(channels) + 1)) + noise


def write_npz(path: Path, array: np.ndarray, channels: Any = CHANNELS, rate: float = RATE, **more: Any) -> Path:
    np.savez(path, x=array, fs=rate, channels=np.array(channels), **more)
    return path


def write_folder(folder: Path, classes: int = 2, each: int = 6, seconds: float = 8.0) -> Path:
    """A folder for each class, whose recordings differ in frequency."""
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(each):
            array = waves(seconds, seed=10 * label + index) * (1 + label)
            write_npz(folder / f"class{label}" / f"{index}.npz", array)
    return folder


def signals(data: dict[str, Any] | None = None, **settings: Any) -> Signals:
    """The modality for three channels at 50 Hz, windows of 4 s and patches of 0.2 s, scaled by nothing."""
    plain = {"channels": CHANNELS, "rate": RATE, "window_seconds": 4.0, "patch": 10, "scale": {"by": "none"}, "filter": {}}
    return Signals(SignalSettings(**plain | settings), SignalData(**data or {}))
