"""Log-mel and MFCC features of waveforms, one vector per position of an encoder of speech.

Windows of 25 ms are centred on the positions, wherever the encoder's convolutions put these. PyTorch operations in float32,
which run where the waveform is. B clips, S samples at 16 kHz, T positions, F features.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from data2vec.data.audio import SAMPLE_RATE
from data2vec.nn.layer_norm import without_autocast

WINDOW, FFT = 400, 512
"""Samples of a window, 25 ms, and of its Fourier transform."""
HOP = 160
"""Samples between the windows of MFCCs and their differences, 10 ms, if the distance of the positions allows it."""
MEL_BANDS = 80
"""Bands of log-mel features."""
MFCC_BANDS, CEPSTRA = 23, 13
"""Bands of MFCCs and coefficients kept (Kaldi's, as in HuBERT); with first and second differences there are three times as
many."""
FLOOR = 1e-6
"""Smallest power of a band; that of a clip of unit variance is far above it."""


def log_mel(waveform: Tensor, positions: int, centre: float, stride: int, bands: int = MEL_BANDS) -> Tensor:
    """(B, positions, bands): natural log of the power in mel bands, of the window around sample `centre` + t·`stride` of
    `waveform` (B, S) for position t. Samples beyond the ends are zero."""
    frames = frame_signal(waveform.float(), positions, round(centre - WINDOW / 2), WINDOW, stride)
    window = torch.hann_window(WINDOW, device=waveform.device)
    power = torch.fft.rfft(frames * window, n=FFT).abs().square()  # (B, T, FFT/2 + 1)
    with without_autocast(waveform):
        powers: Tensor = power @ mel_filters(bands, waveform.device)
        return powers.clamp(min=FLOOR).log()


def mfcc(waveform: Tensor, positions: int, centre: float, stride: int) -> Tensor:
    """(B, positions, 39): MFCCs of the windows of `log_mel`, with their first and second differences over ±2 windows of about
    10 ms, as many as divide `stride` evenly."""
    per_position = min((n for n in range(1, stride + 1) if stride % n == 0), key=lambda n: abs(stride / n - HOP))
    hop, margin = stride // per_position, 4  # two differences over ±2 windows
    count = (positions - 1) * per_position + 1 + 2 * margin
    bands = log_mel(waveform, count, centre - margin * hop, hop, MFCC_BANDS)
    with without_autocast(waveform):
        cepstra = bands @ cosine_transform(MFCC_BANDS, CEPSTRA, waveform.device)
    first = differences(cepstra)
    second = differences(first)
    parts = [cepstra[:, 4:-4], first[:, 2:-2], second]
    return torch.cat(parts, dim=-1)[:, ::per_position]


def frame_signal(waveform: Tensor, count: int, first: int, length: int, stride: int) -> Tensor:
    """(B, count, length): the samples of `waveform` (B, S) from `first` + t·`stride` on; zero beyond its ends."""
    last = first + (count - 1) * stride + length
    padded = F.pad(waveform, (max(0, -first), max(0, last - waveform.shape[1])))
    return padded[:, max(0, first) :].unfold(1, length, stride)[:, :count]


def differences(x: Tensor) -> Tensor:
    """(B, T - 4, F): the slope of a line through five successive vectors of `x` (B, T, F), per step."""
    return (x[:, 3:-1] - x[:, 1:-3] + 2 * (x[:, 4:] - x[:, :-4])) / 10


@lru_cache
def mel_filters(bands: int, device: torch.device) -> Tensor:
    """(FFT/2 + 1, bands): triangles of height 1, evenly spaced on the mel scale, 2595·log10(1 + f/700), from 20 Hz to 8 kHz."""
    frequencies = torch.arange(FFT // 2 + 1, device=device) * (SAMPLE_RATE / FFT)
    low, high = (2595 * math.log10(1 + frequency / 700) for frequency in (20, SAMPLE_RATE / 2))
    edges = torch.linspace(low, high, bands + 2, device=device)
    mel = 2595 * torch.log10(1 + frequencies / 700)[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


@lru_cache
def cosine_transform(bands: int, kept: int, device: torch.device) -> Tensor:
    """(bands, kept): the first vectors of the orthonormal DCT-II."""
    n, k = torch.arange(bands, device=device)[:, None], torch.arange(kept, device=device)
    basis = torch.cos(math.pi * (n + 0.5) * k / bands) * math.sqrt(2 / bands)
    basis[:, 0] /= math.sqrt(2)
    return basis
