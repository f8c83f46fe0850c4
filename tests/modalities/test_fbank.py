"""Log-mel spectrograms as Kaldi computes them, against the implementation in transformers."""

import numpy as np
import pytest

from data2vec.modalities.fbank import FLOOR, FbankSettings, fbank, mel_filters

transformers_audio = pytest.importorskip("transformers.audio_utils")


def sound(seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    """A sweep in noise, with an offset, and silence at its end."""
    time = np.arange(round(seconds * rate)) / rate
    rng = np.random.default_rng(0)
    wave = 0.3 * np.sin(2 * np.pi * (200 + 3000 * time) * time) + 0.01 * rng.standard_normal(len(time)) + 0.02
    wave[-rate // 10 :] = 0.0
    return wave.astype(np.float32)


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # of 128, as in EAT
@pytest.mark.parametrize("window", ["hanning", "povey"])
@pytest.mark.parametrize("bins", [64, 128])
def test_equals_the_kaldi_spectrogram_of_transformers(window: str, bins: int) -> None:
    wave = sound()
    filters = transformers_audio.mel_filter_bank(
        num_frequency_bins=257, num_mel_filters=bins, min_frequency=20, max_frequency=8000, sampling_rate=16000, norm=None,
        mel_scale="kaldi", triangularize_in_mel_space=True,
    )  # fmt: skip
    shape = transformers_audio.window_function(400, "hann" if window == "hanning" else "povey", periodic=False)
    theirs = transformers_audio.spectrogram(
        (wave - wave.mean(dtype=np.float64)), shape, frame_length=400, hop_length=160, fft_length=512, power=2.0, center=False,
        preemphasis=0.97, mel_filters=filters, log_mel="log", mel_floor=FLOOR, remove_dc_offset=True,
    ).T  # fmt: skip
    ours = fbank(wave, FbankSettings(window=window, bins=bins))
    assert ours.shape == theirs.shape == (98, bins) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


def test_ten_seconds_are_998_frames_and_none_reaches_over_the_end() -> None:
    settings = FbankSettings()
    assert settings.frames(160_000) == 998 and settings.frames(399) == 0 and settings.frames(400) == 1
    assert fbank(np.zeros(100, np.float32), settings).shape == (0, 128)
    assert (fbank(np.zeros(800, np.float32), settings) == np.log(np.float32(FLOOR))).all()


def test_gain_and_rate_scale_as_they_should() -> None:
    wave = sound(0.2)
    louder = fbank(wave, FbankSettings(gain=2.0**15)) - fbank(wave, FbankSettings())
    heard = fbank(wave, FbankSettings()) > np.log(FLOOR) + 1  # elsewhere the floor
    np.testing.assert_allclose(louder[heard], 2 * np.log(2.0**15), atol=1e-4)
    assert FbankSettings(rate=32000).frame == 800 and FbankSettings(rate=32000).fft == 1024
    assert mel_filters(128, 512, 16000, 20.0, 8000.0)[-1].max() == 0  # the bin at half the rate is not used


@pytest.mark.parametrize("wrong", [{"high": 9000.0}, {"low": 8000.0}, {"hop_ms": 0.01}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FbankSettings(**wrong)  # type: ignore[arg-type]
