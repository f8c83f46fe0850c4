"""Scaling of channels: how readings in volts or g become numbers around 1, the same in training and in use."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data2vec.settings import Settings

Numbers = Annotated[tuple[float, ...], Field(strict=False)]


class ScaleSettings(Settings):
    """The `modality.scale:` section."""

    by: Literal["training", "recording", "channel", "none"] = "training"
    """Whose mean and standard deviation become 0 and 1. training: those of each channel in the training data, which keep how
    strong a recording is; recording: one for all channels of a recording, which keep the ratios of its channels; channel: those
    of each channel of a recording; none: readings are only divided by `unit_size`."""
    robust: bool = False
    """Median and interquartile range / 1.349 instead of mean and standard deviation: artefacts do not count."""
    unit_size: Annotated[float, Field(gt=0)] = 1.0
    """With by: none, what readings are divided by, as 100 for EEG in µV."""
    clip: Annotated[float, Field(gt=0)] = 8.0
    """Scaled readings beyond ± this are set to it: an artefact does not outweigh all else."""
    floor: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """The smallest standard deviation, relative to the median of those of all channels: a flat channel becomes 0, not noise."""
    mean: Numbers | None = None
    """Of each channel in the training data; measured before training if null."""
    std: Numbers | None = None
    """Of each channel in the training data; measured before training if null."""


def statistics(samples: np.ndarray, settings: ScaleSettings) -> tuple[np.ndarray, np.ndarray]:
    """(C,) centre and width of each channel of `samples` (T, C), without NaN; 0 and 1 for a channel without samples."""
    centre, width = np.zeros(samples.shape[1]), np.ones(samples.shape[1])
    groups = [(np.arange(samples.shape[1]), samples.ravel())] if settings.by == "recording" else []
    groups = groups or [(np.array([index]), samples[:, index]) for index in range(samples.shape[1])]
    for channels, values in groups:
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            continue
        if settings.robust:
            low, middle, high = np.percentile(values, (25, 50, 75))
            centre[channels], width[channels] = middle, (high - low) / 1.349
        else:
            centre[channels], width[channels] = values.mean(), values.std()
    return centre, width


def divisors(width: np.ndarray, settings: ScaleSettings) -> np.ndarray:
    """(C,) what each channel is divided by: its width, but no less than `floor` of the median one."""
    typical = float(np.median(width[width > 0])) if (width > 0).any() else 1.0
    return np.maximum(width, max(settings.floor * typical, 1e-30)).astype(np.float32)


def scale(samples: np.ndarray, centre: np.ndarray, width: np.ndarray, settings: ScaleSettings) -> np.ndarray:
    """Scaled `samples` (T, C), float32; NaN stays NaN."""
    if settings.by == "none":
        scaled = samples / np.float32(settings.unit_size)
    else:
        scaled = (samples - centre.astype(np.float32)) / divisors(width, settings)
    return np.clip(scaled, -settings.clip, settings.clip).astype(np.float32)
