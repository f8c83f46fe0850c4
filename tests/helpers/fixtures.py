"""Nothing a data test makes lands in a real cache; small files of every kind."""

import io
import itertools

import numpy as np
import pytest
import soundfile
from PIL import Image

NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    import datasets

    cache = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))  # mktemp would look through those of all tests
    cache.mkdir(parents=True)
    monkeypatch.setenv("DATA2VEC_CACHE", str(cache / "data2vec"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")


@pytest.fixture
def wave():
    """Make a waveform of some seconds: a tone in noise."""

    def make(seconds: float, rate: int = 16000, channels: int = 1, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        time = np.arange(int(seconds * rate)) / rate
        signal = 0.3 * np.sin(2 * np.pi * 440 * time)[:, None] + 0.05 * rng.standard_normal((len(time), channels))
        return signal.astype(np.float32)

    return make


@pytest.fixture
def clips(tmp_path, wave):
    """A folder of `n` flac clips, 1.0, 1.1, ... seconds long."""

    def make(n: int, first: float = 1.0, step: float = 0.1):
        folder = tmp_path / "clips"
        folder.mkdir()
        for i in range(n):
            soundfile.write(folder / f"{i:03d}.flac", wave(first + i * step, seed=i), 16000)
        return folder

    return make


@pytest.fixture
def picture():
    """Make a smooth colour picture with some noise, as a Pillow image."""

    def make(width: int = 60, height: int = 40, seed: int = 0, noise: float = 10.0) -> Image.Image:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[0:height, 0:width]
        planes = [128 + 90 * np.sin(x / 9 + seed), 128 + 90 * np.cos(y / 7), 128 + 60 * np.sin((x + y) / 11)]
        pixels = np.stack(planes, 2) + noise * rng.standard_normal((height, width, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def encoded():
    """The bytes of a Pillow image in a format."""

    def make(image: Image.Image, form: str, **options) -> bytes:
        file = io.BytesIO()
        image.save(file, form, **options)
        return file.getvalue()

    return make
