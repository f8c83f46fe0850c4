"""Log-mel spectrograms as Kaldi computes them, which the models of sound events take (EAT, AST, SSAST, Audio-MAE, BEATs).

In float64, as the quiet bands of a loud frame would be rounding errors in float32. S samples, F frames.
"""

from functools import lru_cache
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data2vec.data.audio import SAMPLE_RATE
from data2vec.settings import Fraction, Settings

FLOOR = 1.1920928955078125e-07
"""The smallest power of a band, the epsilon of float32."""
POVEY = 0.85
"""The power of the Hann window that is Kaldi's own window."""
Milliseconds = Annotated[float, Field(gt=0, le=1000)]


class FbankSettings(Settings):
    """How a waveform becomes a log-mel spectrogram. Defaults: EAT, AST, SSAST and Audio-MAE."""

    rate: Annotated[int, Field(ge=1000, le=192_000)] = SAMPLE_RATE
    """Samples per second, to which audio is resampled."""
    window: Literal["hanning", "povey"] = "hanning"
    """The window of a frame, with zeros at both ends; povey, Kaldi's own, is the Hann window to the power 0.85 (BEATs)."""
    frame_ms: Milliseconds = 25.0
    """Length of a frame."""
    hop_ms: Milliseconds = 10.0
    """Distance of frames. No frame reaches over an end of the waveform."""
    bins: Annotated[int, Field(gt=0, le=1024)] = 128
    """Mel bands."""
    low: Annotated[float, Field(ge=0)] = 20.0
    """Hz, the lower edge of the first band."""
    high: Annotated[float, Field(gt=0)] = 8000.0
    """Hz, the upper edge of the last band."""
    preemphasis: Fraction = 0.97
    """The share of the sample before that is subtracted from each sample of a frame."""
    gain: Annotated[float, Field(gt=0)] = 1.0
    """The waveform is multiplied by this; 32768 for the range of 16 bits (BEATs)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.low < self.high <= self.rate / 2:
            raise ValueError(f"low: {self.low:g} and high: {self.high:g} Hz; low < high <= {self.rate / 2:g}, half of the rate")
        if self.frame < 2 or self.hop < 1:
            raise ValueError(
                f"frame_ms: {self.frame_ms:g} and hop_ms: {self.hop_ms:g} are less than a sample at {self.rate} Hz"
            )
        return self

    @property
    def frame(self) -> int:
        """Samples of a frame."""
        return round(self.rate * self.frame_ms / 1000)

    @property
    def hop(self) -> int:
        """Samples between frames."""
        return round(self.rate * self.hop_ms / 1000)

    @property
    def fft(self) -> int:
        """Samples of the Fourier transform: the next power of two of a frame."""
        return int(2 ** np.ceil(np.log2(self.frame)))

    def frames(self, samples: int) -> int:
        """Frames of a waveform of so many samples."""
        return max(0, 1 + (samples - self.frame) // self.hop)


def fbank(waveform: np.ndarray, settings: FbankSettings) -> np.ndarray:
    """The natural log of the power in mel bands, (F, bins) float32, of a waveform (S,), whose mean is subtracted."""
    s = settings
    wave = waveform.astype(np.float64) * s.gain
    count = s.frames(len(wave))
    if not count:
        return np.zeros((0, s.bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(wave - wave.mean(), s.frame)[:: s.hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - s.preemphasis * before) * _window(s.window, s.frame), n=s.fft)
    power = spectrum.real**2 + spectrum.imag**2
    bands = power @ mel_filters(s.bins, s.fft, s.rate, s.low, s.high)
    return np.asarray(np.log(np.maximum(bands, FLOOR)), np.float32)


@lru_cache
def _window(name: str, length: int) -> np.ndarray:
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))
    return np.asarray(hann**POVEY if name == "povey" else hann)


@lru_cache
def mel_filters(bins: int, fft: int, rate: int, low: float, high: float) -> np.ndarray:
    """(fft/2 + 1, bins): triangles of height 1 on the mel scale, 1127·ln(1 + f/700), at even distances."""
    low_mel, high_mel = (1127 * np.log1p(edge / 700) for edge in (low, high))
    edges = np.linspace(low_mel, high_mel, bins + 2)
    mel = 1127 * np.log1p(np.arange(fft // 2 + 1) * (rate / fft) / 700)[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(np.minimum(rising, falling), 0.0))
