"""Files like those the recipes were made for: photographs of 500 × 375, speech of 15 s, running text.

Photographs are crops of the two that come with scikit-learn, with sensor noise, 40 to 80 kB each. Speech is synthesised by
eSpeak. A few files of each stand for many: `metadata.csv` lists each of them repeatedly.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image
from sklearn.datasets import load_sample_image

from data2vec.demo.espeak import VOICES, Utterance, synthesize

SECONDS = 15
WORDS = "the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but"


def photographs(number: int) -> Iterator[bytes]:
    """JPEGs of 500 × 375, each another crop of a photograph."""
    rng = np.random.default_rng(0)
    scenes = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    for i in range(number):
        scene = scenes[i % 2][:, :: rng.choice((-1, 1))]
        top, left = rng.integers(scene.shape[0] - 375), rng.integers(scene.shape[1] - 500)
        part = scene[top : top + 375, left : left + 500]
        noisy = (part + rng.normal(0, 5, part.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        yield file.getvalue()


def speech(number: int, rate: int = 16000) -> Iterator[np.ndarray]:
    """Waveforms of 15 s at `rate`, each in another voice."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS.split(), 80)) for _ in range(number)]
    spoken_at, clips = synthesize([Utterance(text, voice=VOICES[i % len(VOICES)]) for i, text in enumerate(texts)])
    for clip in clips:
        wave = soxr.resample(clip.astype(np.float32) / 2**15, spoken_at, rate)
        yield np.resize(wave, SECONDS * rate) + 0.001 * rng.standard_normal(SECONDS * rate)


def text(characters: int) -> str:
    """Made-up words with a natural frequency distribution."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("etaoinshrdlu"), rng.integers(2, 9))) for _ in range(20000)]
    zipf = np.minimum(rng.zipf(1.3, characters // 5), len(words)) - 1
    return " ".join(words[i] for i in zipf)[:characters]


def write(modality: str, folder: Path, rows: int = 4096) -> Path:
    """A folder with data for a recipe, of at least `rows` images or clips, or 4 MB of text."""
    folder.mkdir(parents=True)
    names: list[str] = []
    if modality == "text":
        (folder / "text.txt").write_text(text(4_000_000), encoding="utf-8")
        return folder
    if modality == "vision":
        for i, content in enumerate(photographs(64)):
            names.append(f"{i}.jpg")
            (folder / names[-1]).write_bytes(content)
    else:
        for i, wave in enumerate(speech(32)):
            names.append(f"{i}.flac")
            soundfile.write(folder / names[-1], wave, 16000)
    listed = [names[i % len(names)] for i in range(rows)]
    (folder / "metadata.csv").write_text("\n".join(["file_name", *listed]) + "\n", encoding="utf-8")
    return folder
