import numpy as np
import pytest

from data2vec.data.recordings.scaling import ScaleSettings, scale, statistics

SAMPLES = np.random.default_rng(0).normal([1, -2, 0], [1, 10, 3], (1000, 3))


def scaled(samples: np.ndarray, **settings: object) -> np.ndarray:
    found = ScaleSettings(**settings)
    return scale(samples.astype(np.float32), *statistics(samples, found), found)


def test_each_channel_has_mean_0_and_standard_deviation_1() -> None:
    found = scaled(SAMPLES, by="channel")
    assert found.mean(0) == pytest.approx(0, abs=1e-4) and found.std(0) == pytest.approx(1, abs=1e-3)


def test_one_scale_for_a_recording_keeps_the_ratios_of_its_channels() -> None:
    found = scaled(SAMPLES, by="recording")
    assert found.std(0) / found.std(0)[0] == pytest.approx(SAMPLES.std(0) / SAMPLES.std(0)[0], rel=1e-3)


def test_flat_channel_becomes_0_not_noise() -> None:
    flat = SAMPLES.copy()
    flat[:, 1] = 7 + 1e-9 * flat[:, 1]
    found = scaled(flat, by="channel")
    assert np.abs(found[:, 1]).max() < 1e-3 and found[:, 0].std() == pytest.approx(1, abs=1e-3)
    assert np.array_equal(scaled(np.full((9, 2), 3.0), by="channel"), np.zeros((9, 2)))


def test_artefact_is_clipped_and_does_not_count_in_robust_scaling() -> None:
    spiked = SAMPLES.copy()
    spiked[5, 0] = 1e6
    assert scaled(spiked, by="channel", robust=True)[:, 0].std() == pytest.approx(1, abs=0.1)
    assert scaled(spiked, by="channel", robust=True)[5, 0] == 8
    assert scaled(spiked, by="channel")[:, 0].std() < 0.3  # what robust avoids


def test_missing_samples_stay_missing_and_do_not_count() -> None:
    holes = SAMPLES.copy()
    holes[::2, 0], holes[:, 2] = np.nan, np.nan
    found = scaled(holes, by="channel")
    assert np.isnan(found[::2, 0]).all() and np.isnan(found[:, 2]).all()
    assert found[1::2, 0].std() == pytest.approx(1, abs=1e-3)


def test_unit_size_alone_keeps_amplitudes() -> None:
    assert scaled(SAMPLES, by="none", unit_size=100.0) == pytest.approx(SAMPLES / 100, rel=1e-5)
