"""Clips of audio as examples, by their duration: what speech and sound share.

Shapes: S samples.
"""

import math
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from data2vec.data.audio import read_durations
from data2vec.data.dataset import DataSettings, ExampleDataset, Rows, column_value
from data2vec.errors import UserError, get_logger

log = get_logger(__name__)

Seconds = Annotated[float, Field(gt=0)]


class ClipData(DataSettings):
    """The `data:` section of audio. Defaults: data2vec 1 Base on LibriSpeech."""

    min_seconds: Seconds = 2.0
    """Shorter clips are left out (fairseq: min_sample_size)."""
    max_seconds: Seconds = 20.0
    """Longer clips are cropped at random (fairseq: max_sample_size)."""
    batch_seconds: Seconds = 3800.0
    """The global batch in seconds of audio (fairseq: max_tokens × GPUs × update_freq)."""
    micro_batch_seconds: Seconds = 237.5
    """The per-device micro-batch in seconds of audio; auto: the largest that fits, measured before the run."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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


class ClipExamples(ExampleDataset):
    """Clips of at least `shortest` seconds; in training, of at least `data.min_seconds`. With `full`, for evaluation, costs are
    not capped.

    `num_short` counts the clips that were left out. Raises UserError when none remains."""

    def __init__(self, rows: Rows, settings: ClipData, shortest: float, full: bool = False):
        self.rows = rows
        min_seconds = shortest if full else max(shortest, settings.min_seconds)
        seconds, self.corrupt = read_durations(rows)
        usable = seconds >= min_seconds
        self.keys = np.flatnonzero(usable)
        self.num_short = int((seconds < min_seconds).sum())  # corrupt clips have NaN seconds, so they are not counted
        self.costs = seconds[usable] if full else np.minimum(seconds[usable], settings.max_seconds)
        self.num_cropped = 0 if full else int((seconds > settings.max_seconds).sum())
        if isinstance(rows, list):  # one window of a stream: the next one may have longer clips
            return
        if self.num_short:
            log.warning("%d of %d clips are shorter than %g s and are left out", self.num_short, len(rows), min_seconds)
        if not len(self.keys):
            if self.num_short:
                raise UserError(
                    f"all {len(rows)} clips are shorter than data.min_seconds: {min_seconds:g} (the longest has "
                    f"{np.nanmax(seconds):.2f} s): lower data.min_seconds or use longer clips"
                )
            raise UserError(f"none of the {len(rows)} clips can be read (such as {self.corrupt[0]}): use other data")

    @property
    def total(self) -> int:
        return len(self.rows)

    def label(self, index: int, column: str) -> Any:
        return column_value(self.rows, int(self.keys[index]), column)


def crop_waveform(waveform: np.ndarray, seconds: float, rate: int, rng: np.random.Generator | None) -> np.ndarray:
    """`seconds` of `waveform` (S,), from a random place, or from the start without `rng`; zeros where it is too short."""
    length = math.floor(seconds * rate + 1e-3)
    spare = max(0, len(waveform) - length)
    start = int(rng.integers(spare + 1)) if rng is not None else 0
    waveform = waveform[start : start + length]
    if len(waveform) < length:  # rounding in the resampler, or an inexact header
        waveform = np.pad(waveform, (0, length - len(waveform)))
    return waveform
