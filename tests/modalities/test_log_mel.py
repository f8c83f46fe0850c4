"""Log-mel and MFCC features of speech against computations with scipy and numpy."""

import numpy as np
import pytest
import scipy.fft
import torch

from data2vec.batch import Batch
from data2vec.modalities.log_mel import CEPSTRA, FLOOR, MFCC_BANDS, differences, log_mel, mel_filters, mfcc
from data2vec.modalities.speech import Speech, SpeechSettings

CPU = torch.device("cpu")


def waveform(samples: int = 4000) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


def band_powers(frame: np.ndarray, bands: int) -> np.ndarray:
    """Mel band powers of 400 samples, filter by filter in hertz."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    power = np.abs(scipy.fft.rfft(frame.astype(np.float64) * window, 512)) ** 2
    to_mel, to_hertz = lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)
    edges = to_hertz(np.linspace(to_mel(20), to_mel(8000), bands + 2))
    result = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        points = to_mel(np.array([low, middle, high]))
        weights = np.interp(to_mel(np.arange(257) * 31.25), points, [0, 1, 0], left=0, right=0)
        result.append(weights @ power)
    return np.maximum(np.array(result), FLOOR)


@pytest.mark.parametrize("position", [0, 3, 7])
def test_log_mel_of_a_position_is_that_of_the_window_around_it(position: int) -> None:
    wave = waveform()
    computed = log_mel(torch.from_numpy(wave)[None], 8, 200, 320)[0, position]
    expected = np.log(band_powers(wave[320 * position : 320 * position + 400], 80))
    np.testing.assert_allclose(computed, expected, atol=2e-4)


def test_log_mel_beyond_the_ends_sees_zeros() -> None:
    wave = waveform(600)
    computed = log_mel(torch.from_numpy(wave)[None], 2, 100, 500)[0]
    for frame, row in zip((np.pad(wave[:300], (100, 0)), np.pad(wave[400:], (0, 200))), computed, strict=True):
        np.testing.assert_allclose(row, np.log(band_powers(frame, 80)), atol=2e-4)


def test_mfcc_is_a_cosine_transform_of_log_bands_with_slopes_over_five_windows() -> None:
    wave = waveform()
    computed = mfcc(torch.from_numpy(wave)[None], 8, 200, 320)[0, 4]
    centre = 200 + 4 * 320
    frames = [wave[start : start + 400] for start in (centre - 200 + 160 * np.arange(-4, 5)).tolist()]
    cepstra = np.stack([scipy.fft.dct(np.log(band_powers(frame, MFCC_BANDS)), norm="ortho")[:CEPSTRA] for frame in frames])
    slopes = np.stack([np.polyfit(np.arange(5), cepstra[i : i + 5], 1)[0] for i in range(5)])
    second = np.polyfit(np.arange(5), slopes, 1)[0]
    np.testing.assert_allclose(computed, np.concatenate([cepstra[4], slopes[2], second]), atol=2e-3)


def test_differences_of_a_line_are_its_slope() -> None:
    x = 3 * torch.arange(10.0)[None, :, None] + 1
    assert torch.allclose(differences(x), torch.full((1, 6, 1), 3.0))


def test_every_mel_filter_sees_a_frequency() -> None:
    assert mel_filters(80, CPU).sum(0).min() > 0 and mel_filters(MFCC_BANDS, CPU).sum(0).min() > 0


@pytest.mark.parametrize("layers", [((8, 10, 5), (8, 4, 4)), ((8, 10, 10), (8, 3, 3)), ((8, 4, 8),)])
@pytest.mark.parametrize("name", ["raw", "log_mel", "mfcc"])
def test_input_features_have_the_positions_of_any_feature_extractor(
    layers: tuple[tuple[int, int, int], ...], name: str
) -> None:
    speech = Speech(SpeechSettings(conv_layers=layers, position_groups=1), None)
    batch = Batch(torch.from_numpy(waveform(1003))[None].repeat(2, 1))
    features = speech.input_features()[name]
    positions = speech.build_local_encoder(16)(batch)[0].shape[1]
    assert features.compute(batch).shape == (2, positions, features.width)


def test_raw_samples_are_those_in_the_middle_of_the_receptive_field() -> None:
    speech = Speech(SpeechSettings(), None)
    batch = Batch(torch.arange(1200.0)[None])
    raw = speech.input_features()["raw"].compute(batch)
    assert raw[0, 1].tolist() == list(range(360, 680))  # the convolutions see 320 to 719
