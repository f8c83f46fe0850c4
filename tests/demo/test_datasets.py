import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from data2vec.demo import espeak
from data2vec.demo.datasets import CHAPTERS, WORDS, write_images, write_speech, write_text
from data2vec.errors import UserError


def test_write_images_makes_a_folder_per_digit(tmp_path: Path) -> None:
    folders = write_images(tmp_path)
    train, heldout = ([*folder.rglob("*.png")] for folder in (folders.labelled, folders.heldout))
    assert (len(train), len(heldout)) == (1500, 297)
    assert {path.parent.name for path in heldout} == set("0123456789")
    assert not {path.name for path in train} & {path.name for path in heldout}
    pixels = np.array(Image.open(train[0]))
    assert pixels.shape == (32, 32)
    assert pixels.max() > 200 > 50 > pixels.min()


@pytest.mark.slow
def test_write_text_keeps_held_out_passages_out_of_training(tmp_path: Path) -> None:
    folders = write_text(tmp_path, labelled=20, heldout=10)
    rows = {path: [line.split("\t") for line in path.read_text().splitlines()] for path in (folders.labelled, folders.heldout)}
    for path, count in ((folders.labelled, 20), (folders.heldout, 10)):
        assert rows[path][0] == ["text", "label"]
        assert set(Counter(label for _, label in rows[path][1:]).values()) == {count}
        assert {label for _, label in rows[path][1:]} == set(CHAPTERS)
    prose = "\n".join(path.read_text() for path in folders.train.glob("*.txt"))
    assert len(prose) > 500_000
    assert "comparison operations" in prose
    heldout = {text for text, _ in rows[folders.heldout][1:]}
    assert not heldout & {text for text, _ in rows[folders.labelled][1:]}
    assert not {text for text in heldout if text in prose}


def test_write_text_has_no_code_or_markup(tmp_path: Path) -> None:
    folders = write_text(tmp_path)
    prose = "\n".join(path.read_text() for path in folders.train.glob("*.txt"))
    assert not re.search(r">>>|::=|\*\*\*|<\?xml", prose)


def test_write_speech_with_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def written(name: str, seed: int) -> dict[str, bytes]:
        out = tmp_path / name
        write_speech(out, clips=6, labelled=10, heldout=10, seed=seed)
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.wav")}

    first = written("first", 1)
    assert written("again", 1) == first
    assert written("other", 2) != first


def test_write_speech_makes_audible_16_khz_clips(tmp_path: Path) -> None:
    folders = write_speech(tmp_path, clips=20, labelled=10, heldout=10)
    assert sorted(path.name for path in folders.heldout.iterdir()) == sorted(WORDS)
    for path in tmp_path.rglob("*.wav"):
        wave, rate = soundfile.read(path)
        assert rate == 16000
        assert wave.ndim == 1
        assert 0.2 < len(wave) / rate < 10
        assert np.sqrt(np.mean(wave**2)) > 0.01


def test_write_speech_uses_other_voices_for_held_out_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[espeak.Utterance] = []

    def remember(utterances: list[espeak.Utterance]) -> tuple[int, list[np.ndarray]]:
        asked.extend(utterances)
        return 16000, [np.ones(1600, np.int16)] * len(utterances)

    monkeypatch.setattr(espeak, "synthesize", remember)
    write_speech(tmp_path, clips=100, labelled=100, heldout=100)
    assert not {utterance.voice for utterance in asked[:200]} & {utterance.voice for utterance in asked[200:]}


def test_synthesize_with_every_voice_gives_audible_clips() -> None:
    utterances = [espeak.Utterance("one", accent, voice) for accent in espeak.ACCENTS for voice in espeak.VOICES]
    _, clips = espeak.synthesize(utterances)
    assert min(len(clip) for clip in clips) > 2000
    assert min(int(np.abs(clip.astype(int)).max()) for clip in clips) > 1000


def test_synthesize_without_espeak_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'data2vec\[demo\]'"):
        espeak.synthesize([espeak.Utterance("one")])
