"""Augmentation of audio for fine-tuning: shifted and louder or softer waveforms, noisy and masked spectrograms.

All randomness comes from the generator in the arguments. S samples, F frames, N mel bands."""

import numpy as np


def vary_waveform(waveform: np.ndarray, roll: bool, gain_db: float, rng: np.random.Generator) -> np.ndarray:
    """`waveform` (S,), with `roll` shifted in a circle by a random time, and louder or softer by up to `gain_db` decibels."""
    if roll:
        waveform = np.roll(waveform, int(rng.integers(len(waveform))))
    if gain_db:
        waveform = waveform * np.float32(10 ** (rng.uniform(-gain_db, gain_db) / 20))
    return waveform


def add_noise(spectrogram: np.ndarray, strength: float, std: float, rng: np.random.Generator) -> np.ndarray:
    """`spectrogram` (F, N) with Gaussian noise, whose standard deviation is up to `strength` times `std`."""
    if not strength:
        return spectrogram
    scale = rng.uniform(0, strength) * std
    return spectrogram + (scale * rng.standard_normal(spectrogram.shape)).astype(np.float32)


def mask_spectrogram(
    spectrogram: np.ndarray, time: float, frequency: float, fill: float, rng: np.random.Generator
) -> np.ndarray:
    """`spectrogram` (F, N) with `fill` in a span of up to the share `time` of the frames, and in one of up to `frequency` of
    the bands (SpecAugment, arXiv:1904.08779); their lengths and places are random."""
    if not time and not frequency:
        return spectrogram
    masked = spectrogram.copy()
    for axis, share in enumerate((time, frequency)):
        size = masked.shape[axis]
        length = int(rng.integers(int(share * size) + 1))
        start = int(rng.integers(size - length + 1))
        masked[(slice(None),) * axis + (slice(start, start + length),)] = fill
    return masked
