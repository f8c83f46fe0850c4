import contextlib
import io
import os

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from data2vec.data.audio import decode_audio, normalize_waveform, read_audio_header, samples_from_array
from data2vec.errors import CorruptExample

ENCODINGS = [
    *(("WAV", each) for each in ("PCM_U8", "PCM_24", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32")),
    *(
        ("WAV", "NMS_ADPCM_32"),
        ("WAVEX", "PCM_16"),
        ("W64", "PCM_16"),
        ("RF64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
    ),
    *(("FLAC", "PCM_24"), ("CAF", "ALAC_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
]


def encode(samples, rate=16000, container="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def tone(seconds=1.0, rate=16000):
    return (0.3 * np.sin(np.arange(int(seconds * rate)) * (2 * np.pi * 440 / rate))).astype(np.float32)


@pytest.mark.parametrize(("container", "subtype"), ENCODINGS)
def test_every_encoding_of_libsndfile_is_read_from_bytes_and_from_a_file(tmp_path, container, subtype):
    """Also those that cannot be searched, such as GSM."""
    content = encode(tone(2.0, 8000), 8000, container, subtype)
    (tmp_path / "a.wav").write_bytes(content)
    found = decode_audio({"bytes": content, "path": None})
    assert np.array_equal(decode_audio({"bytes": None, "path": str(tmp_path / "a.wav")}), found)
    seconds = read_audio_header({"bytes": content, "path": None}).seconds
    assert len(found) == round(16000 * seconds) and 2.0 <= seconds < 2.2
    expected = tone(2.0, 16000)
    best = max(np.corrcoef(found[lag : lag + 16000], expected[:16000])[0, 1] for lag in range(0, 2000, 2))
    assert best > 0.98


def test_mp3_with_other_bytes_before_its_first_frame_is_read_by_its_name():
    content = b"a text of another program" * 100 + encode(tone(), container="MP3", subtype="MPEG_LAYER_III")
    whole = decode_audio({"bytes": content, "path": "a.mp3"})
    assert len(whole) == 16000 and np.abs(whole).max() > 0.2
    with pytest.raises(CorruptExample, match=r"a\.wav: Format not recognised"):
        decode_audio({"bytes": content, "path": "a.wav"})


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        ({"bytes": None, "path": "nowhere/a.wav"}, r"nowhere/a\.wav: no such file"),
        ({"bytes": None, "path": "/"}, "/: a folder, not a file"),
        (None, "an unnamed clip: neither content nor a path is given"),
        ({"bytes": None, "path": None}, "an unnamed clip: neither content nor a path is given"),
        ({"bytes": b"", "path": None}, "an unnamed clip of 0 bytes: Format not recognised"),
        ({"bytes": encode(tone()[:20], 1_000_000), "path": "a"}, "a: 20 samples at 1000000 Hz are too short"),
        (
            {"bytes": encode(tone(), 2**31 - 1), "path": "a"},
            "a: a sampling rate of 2147483647 Hz; it must be from 1000 to 1000000",
        ),
        ({"bytes": encode(tone(), 1), "path": "a"}, "a: a sampling rate of 1 Hz; it must be from 1000 to 1000000"),
        ({"bytes": encode(tone()[:0]), "path": "a"}, "a: it lasts 0 s"),
        ({"bytes": encode(3e38 * tone(), 44100), "path": "a"}, "a: contains NaN or inf samples, or samples beyond"),
        ({"bytes": encode(1e40 * tone().astype(np.float64), subtype="DOUBLE"), "path": "a"}, "a: contains NaN or inf samples"),
        ({"bytes": encode(np.stack([tone(), -tone()], 1)), "path": "a"}, "a: its channels cancel each other"),
    ],
)
def test_what_cannot_be_decoded_is_corrupt_with_a_reason(signal, reason):
    with pytest.raises(CorruptExample, match=f"^{reason}"):
        decode_audio(signal)


@given(st.data())
def test_damaged_content_is_read_or_corrupt_but_raises_nothing_else(data):
    container, subtype = data.draw(st.sampled_from([each for each in ENCODINGS if each[0] != "MP3"]))
    content = bytearray(encode(tone(0.1, 8000), 8000, container, subtype))
    for _ in range(3):
        content[data.draw(st.integers(0, min(len(content), 200) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptExample):
        found = decode_audio({"bytes": bytes(content), "path": "a"})
        assert found.ndim == 1 and len(found) and np.isfinite(found).all()


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_that_differ_are_averaged_in_blocks(monkeypatch, channels):
    rng = np.random.default_rng(0)
    samples = rng.uniform(-1, 1, (5000, channels)).astype(np.float32)
    whole = decode_audio({"bytes": encode(samples), "path": None})
    np.testing.assert_allclose(whole, samples.mean(1), atol=1e-6)
    monkeypatch.setattr("data2vec.data.audio.BLOCK_SAMPLES", 700)
    assert np.array_equal(decode_audio({"bytes": encode(samples), "path": None}), whole)


def test_loud_samples_are_normalized_and_not_turned_into_silence():
    expected = normalize_waveform(tone())
    for factor in (1e3, 1e16, 1e25, 3e37):
        np.testing.assert_allclose(normalize_waveform(factor * tone()), expected, atol=2e-4)
    assert not normalize_waveform(np.zeros(100, np.float32)).any()


@pytest.mark.parametrize(
    "array",
    [
        tone(),
        tone().astype(np.float64),
        tone().astype(">f4"),
        tone()[::-1].copy()[::-1],
        np.repeat(tone(), 2)[::2],
        tone()[None],
        tone()[:, None],
        tone().tolist(),
        memoryview(tone()),
        torch.tensor(tone(), requires_grad=True),
        torch.tensor(np.repeat(tone(), 3))[::3],
    ],
)
def test_floats_of_any_type_byte_order_and_stride_are_their_samples(array):
    found = samples_from_array(array)
    assert found.dtype == np.float32 and np.array_equal(found, tone())


@pytest.mark.parametrize(
    ("array", "tolerance"),
    [
        (np.round(tone() * 32767).astype(np.int16), 1e-4),
        (np.round(tone() * 32767).astype(">i2"), 1e-4),
        (np.round(tone() * 32767).astype(np.int64), 1e-4),
        (np.round(tone() * 32767).astype(int).tolist(), 1e-4),
        (np.round(tone().astype(np.float64) * 2147483647).astype(np.int32), 1e-6),
        (np.round(tone() * 127).astype(np.int8), 1e-2),
        (np.round(tone() * 127 + 128).astype(np.uint8), 1e-2),
        (tone().astype(np.float16), 1e-3),
        (torch.tensor(tone()).bfloat16(), 1e-2),
    ],
)
def test_integers_are_scaled_by_their_type(array, tolerance):
    np.testing.assert_allclose(samples_from_array(array), tone(), atol=tolerance)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 16000)), r"audio of shape \(2, 16000\); it must be \(S,\).*average the channels, or pick one"),
        (np.zeros((1, 2, 3)), r"audio of shape \(1, 2, 3\); it must be \(S,\)"),
        (0.5, r"audio of shape \(\)"),
        (np.full(5, 70000), r"int64 samples from 70000 to 70000, whose full scale is unknown"),
        (np.zeros(5, np.uint16), "uint16 samples; give floats from -1 to 1, int16 or int32"),
        (np.zeros(5, complex), "complex128 samples; give"),
        (np.zeros(5, bool), "bool samples; give"),
        (np.array(["a", "b"]), "<U1 samples; give"),
        ([[1.0], [1.0, 2.0]], "lists of unequal lengths are no array"),
        ([None, 1.0], "object samples; give"),
    ],
)
def test_other_arrays_are_corrupt_and_told_what_is_wanted(array, reason):
    with pytest.raises(CorruptExample, match=rf"^input 1: {reason}"):
        decode_audio({"array": array, "sampling_rate": 16000, "path": "input 1"})


def test_arrays_of_another_rate_are_resampled_and_a_wrong_rate_is_refused():
    found = decode_audio({"array": tone(1.0, 8000), "sampling_rate": 8000})
    assert len(found) == 16000 and np.corrcoef(found, tone())[0, 1] > 0.99
    assert read_audio_header({"array": tone(1.0, 8000), "sampling_rate": np.int64(8000)}).seconds == 1
    for wrong in (None, 0, -1, "16k", 0.5, True):
        with pytest.raises(CorruptExample, match=r"an unnamed clip: a sampling rate of .*; it must be a number of samples"):
            decode_audio({"array": tone(), "sampling_rate": wrong})


def test_a_file_that_claims_far_more_than_it_has_is_corrupt(monkeypatch):
    silence = encode(np.zeros(16000 * 60), container="FLAC", subtype="PCM_16")
    monkeypatch.setattr("data2vec.data.audio.SMALL_BYTES", 2**20)
    assert len(silence) < 4 * 16000 * 60 / 500
    with pytest.raises(CorruptExample, match=r"a: a file of \d+ bytes that claims 60 s at 16000 Hz, \d+ times as much"):
        decode_audio({"bytes": silence, "path": "a"})
    info = bytes([0x10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]) + (16000 << 44 | 15 << 36 | 10**10).to_bytes(8, "big") + bytes(16)
    with pytest.raises(CorruptExample, match="it lasts 625000 s, at most 14400 s"):
        decode_audio({"bytes": b"fLaC\x80\x00\x00\x22" + info + bytes(20), "path": "a"})


def test_audio_that_is_no_regular_file_is_corrupt(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    for read in (decode_audio, read_audio_header):
        with pytest.raises(CorruptExample, match="not a regular file"):
            read({"bytes": None, "path": str(tmp_path / "a.wav")})
