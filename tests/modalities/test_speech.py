import io

import numpy as np
import pytest
import soundfile
import soxr
import torch
from pydantic import ValidationError

from data2vec.batch import Batch
from data2vec.data.audio import decode_audio, normalize_waveform, read_audio_header
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.speech import SpeechData, SpeechExamples

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
SHORT = SpeechData(min_seconds=1.0, max_seconds=1.5, batch_seconds=8.0, micro_batch_seconds=4.0)


def encode(samples, rate=16000, form="flac"):
    file = io.BytesIO()
    container, subtype = FORMATS[form]
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return {"bytes": file.getvalue(), "path": None}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (48000, 2), (8000, 1)])
def test_decode_audio_of_every_format_rate_and_channel_count(wave, form, rate, channels):
    samples = wave(1.0, rate, channels)
    got = decode_audio(encode(samples, rate, form))
    expected = soxr.resample(samples.mean(1), rate, 16000)
    assert got.dtype == np.float32
    assert abs(len(got) - 16000) < 1200  # MP3 and Opus pad
    n = min(len(got), len(expected))
    lag = int(np.argmax(np.correlate(got[:4000], expected[:2000], "valid"))) if form == "mp3" else 0
    n = min(n, len(got) - lag)
    assert np.corrcoef(got[lag : lag + n], expected[:n])[0, 1] > 0.95


def test_decode_audio_of_wav_is_exact(wave):
    samples = (wave(0.5)[:, 0] * 32767).astype(np.int16)
    assert np.array_equal(decode_audio(encode(samples, form="wav")), samples.astype(np.float32) / 32768)


def test_clip_is_normalized_before_cropping(clips, wave):
    examples = SpeechExamples(open_dataset(str(clips(3)), "audio"), SHORT)
    whole = examples.load(2)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(decode_audio(examples.rows[2]["audio"])), whole.shape)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
    crops = [examples.load(2, 1.0, np.random.default_rng(seed)) for seed in range(5)]
    windows = whole.unfold(0, 16000, 1)
    starts = [int((windows == crop).all(1).nonzero().item()) for crop in crops]
    assert len(set(starts)) == 5
    assert torch.equal(examples.load(2, 1.0), whole[:16000])


def test_short_clips_are_left_out_and_costs_of_long_ones_capped(clips):
    folder = clips(10, first=0.8)
    examples = SpeechExamples(open_dataset(str(folder), "audio"), SHORT)
    assert examples.num_short == 2
    np.testing.assert_allclose(examples.costs, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.5, 1.5])
    whole = SpeechExamples(open_dataset(str(folder), "audio"), SHORT, full=True)
    assert len(whole) == 10
    assert whole.costs.max() == pytest.approx(1.7)


def test_only_short_clips_are_a_user_error(clips):
    with pytest.raises(UserError, match=r"all 2 clips are shorter than data.min_seconds: 1 \(the longest has 0.60 s\)"):
        SpeechExamples(open_dataset(str(clips(2, first=0.5)), "audio"), SHORT)


@pytest.mark.parametrize("form", ["flac", "mp3"])
def test_truncated_audio_raises_corrupt_example(tmp_path, wave, form):
    whole = encode(wave(3.0), form=form)["bytes"]
    path = tmp_path / f"cut.{form}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptExample, match=rf"cut\.{form}: "):
        decode_audio({"bytes": None, "path": str(path)})


def test_files_that_are_not_audio_are_corrupt(tmp_path, clips, caplog):
    folder = clips(3)
    (folder / "not-audio.wav").write_text("hello")
    (folder / "empty.flac").write_bytes(b"")
    examples = SpeechExamples(open_dataset(str(folder), "audio"), SHORT)
    assert len(examples) == 3
    assert len(examples.corrupt) == 2
    assert "not-audio.wav" in examples.corrupt[1]
    with pytest.raises(CorruptExample, match=r"gone\.wav"):
        read_audio_header({"bytes": None, "path": str(tmp_path / "gone.wav")})


def test_silence_stays_zero_and_nan_is_corrupt():
    silent = encode(np.zeros(8000, dtype=np.float32))
    assert not normalize_waveform(decode_audio(silent)).any()
    file = io.BytesIO()
    soundfile.write(file, np.full(8000, np.nan, dtype=np.float32), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(CorruptExample, match="contains NaN or inf samples"):
        decode_audio({"bytes": file.getvalue(), "path": "nan.wav"})


def test_batch_stack_pads_only_different_lengths():
    assert Batch.stack([torch.ones(5), torch.ones(5)]).padding is None
    batch = Batch.stack([torch.ones(5), torch.ones(3)])
    assert batch.input.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch.padding.tolist() == [[False] * 5, [False] * 3 + [True] * 2]


def test_contradicting_speech_settings_are_rejected():
    with pytest.raises(ValidationError, match="does not fit into micro_batch_seconds"):
        SpeechData(micro_batch_seconds=10.0)
    with pytest.raises(ValidationError, match="is more than max_seconds"):
        SpeechData(min_seconds=30.0)


def test_processes_read_the_headers_of_many_files_in_order(clips, monkeypatch):
    from data2vec.data import audio

    folder = clips(5)
    (folder / "b.wav").write_text("hello")
    rows = open_dataset(str(folder), "audio")
    seconds, corrupt = audio.read_durations(rows)
    assert np.isnan(seconds).sum() == len(corrupt) == 1
    monkeypatch.setattr(audio, "PROCESSES_FROM", 1)
    monkeypatch.setattr(audio, "TASK", 2)
    again, reasons = audio.read_durations(rows)
    assert np.array_equal(again, seconds, equal_nan=True)
    assert reasons == corrupt


def test_durations_of_large_datasets_are_cached(clips, monkeypatch):
    from data2vec.data import audio

    rows = open_dataset(str(clips(3)), "audio")
    monkeypatch.setattr(audio, "CACHE_DURATIONS_FROM", 1)
    first = SpeechExamples(rows, SHORT)
    monkeypatch.setattr(audio, "_measure_durations", lambda rows: pytest.fail("measured again"))
    assert np.array_equal(SpeechExamples(rows, SHORT).costs, first.costs)
