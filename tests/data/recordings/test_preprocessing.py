import numpy as np
import pytest

from data2vec.data.recordings.preprocessing import FilterSettings, preprocess
from data2vec.errors import UserError

RATE = 200.0
TIME = np.arange(int(10 * RATE)) / RATE


def power(samples: np.ndarray, rate: float, hertz: float) -> float:
    """The amplitude of a sine of this frequency, away from the ends."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    time = np.arange(len(middle)) / rate
    return 2 * abs(np.mean(middle * np.exp(-2j * np.pi * hertz * time)))


def test_band_and_notch_keep_what_is_inside_and_remove_what_is_outside() -> None:
    samples = sum(np.sin(2 * np.pi * hertz * TIME) for hertz in (0.2, 10, 50, 90)) + 5
    found = preprocess(samples, RATE, FilterSettings(low=2.0, high=70.0, notch=50), RATE)
    kept = {hertz: power(found, RATE, hertz) for hertz in (0.2, 10, 50, 90)}
    assert kept[10] == pytest.approx(1, abs=0.02) and max(kept[0.2], kept[50], kept[90]) < 0.03
    assert abs(found.mean()) < 0.01


def test_resampling_keeps_frequencies_and_removes_those_that_the_new_rate_cannot_hold() -> None:
    samples = np.sin(2 * np.pi * 10 * TIME) + np.sin(2 * np.pi * 80 * TIME)
    found = preprocess(samples, RATE, FilterSettings(), 100.0)
    assert len(found) == 1000 and power(found, 100, 10) == pytest.approx(1, abs=0.02) and power(found, 100, 20) < 0.02


def test_gap_is_a_gap_after_filtering_and_resampling_and_changes_little_beside_it() -> None:
    samples = np.sin(2 * np.pi * TIME)
    whole = preprocess(samples, RATE, FilterSettings(high=40.0), 100.0)
    samples[1000:1100] = np.nan
    found = preprocess(samples, RATE, FilterSettings(high=40.0), 100.0)
    assert np.flatnonzero(np.isnan(found)).tolist() == list(range(500, 550))
    assert np.nanmax(np.abs(found - whole)[:450]) < 1e-3


def test_nothing_but_gaps_and_a_single_sample_are_handled() -> None:
    assert np.isnan(preprocess(np.full(40, np.nan), RATE, FilterSettings(), 100.0)).tolist() == [True] * 20
    assert preprocess(np.ones(1), RATE, FilterSettings(low=1.0), RATE).shape == (1,)


def test_filter_above_half_the_rate_is_refused_where_it_would_remove_all() -> None:
    with pytest.raises(UserError, match=r"modality.filter.notch: 60 Hz cannot be in a channel of 100 Hz"):
        preprocess(np.ones(100), 100.0, FilterSettings(notch=60), 100.0)
    assert len(preprocess(np.ones(100), 100.0, FilterSettings(high=75.0), 100.0)) == 100  # nothing is there to be removed
    with pytest.raises(ValueError, match="low: 5 is not below high: 3"):
        FilterSettings(low=5.0, high=3.0)
