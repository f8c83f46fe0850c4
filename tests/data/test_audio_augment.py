"""Augmentation of audio: shifts, loudness, noise and masks."""

import numpy as np

from data2vec.data.audio_augment import add_noise, mask_spectrogram, vary_waveform


def test_augmentation_keeps_what_it_should() -> None:
    wave = np.arange(1, 101, dtype=np.float32)
    rolled = vary_waveform(wave, True, 0.0, np.random.default_rng(1))
    assert sorted(rolled) == sorted(wave) and (rolled != wave).any() and (np.diff(rolled) == 1).sum() == 98
    gains = [vary_waveform(wave, False, 6.0, np.random.default_rng(seed))[0] for seed in range(200)]
    assert 0.5 < min(gains) < 0.6 and 1.8 < max(gains) < 2.0
    spectrogram = np.ones((100, 10), np.float32)
    masks = [mask_spectrogram(spectrogram, 0.2, 0.5, 0.0, np.random.default_rng(seed)) == 0 for seed in range(200)]
    assert max(mask.all(1).sum() for mask in masks) == 20 and max(mask.all(0).sum() for mask in masks) == 5
    assert (spectrogram == 1).all()
    noisy = add_noise(np.zeros((100, 10), np.float32), 0.1, 2.0, np.random.default_rng(0))
    assert 0 < noisy.std() < 0.21 and noisy.dtype == np.float32
