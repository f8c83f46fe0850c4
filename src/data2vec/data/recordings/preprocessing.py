"""What happens to the samples of a channel before they are scaled: gaps are bridged, filtered, resampled, and made gaps again.

Filters are Butterworth filters of order 4, run forwards and backwards (zero phase), and a notch of quality 30. Resampling is
`scipy.signal.resample_poly` by a ratio of small integers. Both see what is before and after a span, `margin` seconds of it, so
that a span of a long recording is what it would be in the complete one."""

from fractions import Fraction
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data2vec.errors import UserError
from data2vec.settings import Settings

ORDER, QUALITY = 4, 30.0
MAX_DENOMINATOR = 1000
"""Rates are resampled by a ratio of integers up to this one."""
MAX_MARGIN = 60.0
"""Seconds beside a span that are read for a filter of a very low frequency."""
Hertz = Annotated[float, Field(gt=0, le=1e6)]


class FilterSettings(Settings):
    """Filters, in Hz; null: none."""

    low: Hertz | None = None
    """Frequencies below are removed (high-pass), as 0.5 for EEG or ECG."""
    high: Hertz | None = None
    """Frequencies above are removed (low-pass), as 75 for EEG."""
    notch: Literal[50, 60] | None = None
    """The power line."""

    @model_validator(mode="after")
    def _is_a_band(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low: {self.low:g} is not below high: {self.high:g}")
        return self

    @property
    def margin(self) -> float:
        """Seconds after which a filter has forgotten what was before."""
        return min(MAX_MARGIN, max(1.0, 3 / self.low if self.low else 0.0))


def preprocess(samples: np.ndarray, rate: float, filters: FilterSettings, new_rate: float) -> np.ndarray:
    """Filtered samples (S,) at another rate, float32; NaN where there were none.

    Short gaps are bridged by straight lines for the filters only. Raises UserError for a filter that the rate forbids."""
    missing = ~np.isfinite(samples)
    if missing.all():
        return np.full(resampled_length(len(samples), rate, new_rate), np.nan, np.float32)
    if missing.any():
        samples = samples.copy()
        samples[missing] = np.interp(np.flatnonzero(missing), np.flatnonzero(~missing), samples[~missing])
    for sos in _filters(rate, filters):
        samples = _filtered(samples, sos)
    if rate != new_rate:
        up, down = ratio(rate, new_rate)
        samples = _resample(samples, up, down)
        if missing.any():
            index = np.minimum((np.arange(len(samples)) * down / up).round().astype(int), len(missing) - 1)
            missing = missing[index]
    if missing.any():
        samples = np.where(missing, np.nan, samples)
    return samples.astype(np.float32)


def ratio(rate: float, new_rate: float) -> tuple[int, int]:
    """(up, down), the ratio of two rates."""
    found = (Fraction(new_rate).limit_denominator(10**6) / Fraction(rate).limit_denominator(10**6)).limit_denominator(
        MAX_DENOMINATOR
    )
    return found.numerator, found.denominator


def resampled_length(samples: int, rate: float, new_rate: float) -> int:
    """The number of samples after resampling."""
    up, down = ratio(rate, new_rate)
    return -(-samples * up // down)


def _resample(samples: np.ndarray, up: int, down: int) -> np.ndarray:
    from scipy.signal import resample_poly

    return resample_poly(samples, up, down, padtype="line")


@lru_cache(maxsize=64)
def _filters(rate: float, filters: FilterSettings) -> tuple[Any, ...]:
    """The second-order sections of each filter at this rate."""
    from scipy.signal import butter, iirnotch, tf2sos

    half = rate / 2
    for name in ("low", "notch"):
        if (value := getattr(filters, name)) is not None and value >= half:
            raise UserError(
                f"modality.filter.{name}: {value:g} Hz cannot be in a channel of {rate:g} Hz, whose limit is {half:g}"
            )
    found = []
    if filters.low is not None:
        found.append(butter(ORDER, filters.low, "highpass", fs=rate, output="sos"))
    if filters.high is not None and filters.high < half:  # otherwise there is nothing above
        found.append(butter(ORDER, filters.high, "lowpass", fs=rate, output="sos"))
    if filters.notch is not None:
        found.append(tf2sos(*iirnotch(filters.notch, QUALITY, fs=rate)))
    return tuple(found)


def _filtered(samples: np.ndarray, sos: np.ndarray) -> np.ndarray:
    from scipy.signal import sosfiltfilt

    most = 3 * (2 * len(sos) + 1)
    return sosfiltfilt(sos, samples, padlen=min(most, len(samples) - 1))
