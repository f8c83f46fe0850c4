import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data2vec.report import pictures

RNG = np.random.default_rng(0)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB"))


def share(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """The share of the pixels that have this colour, within 3 of 255."""
    return float((np.abs(picture.astype(int) - colour).max(-1) <= 3).mean())


def test_curves_are_drawn_from_a_metrics_file(tmp_path: Path) -> None:
    keys = [f"{name}_{measure}" for name in ("features", "student", "target", "prediction") for measure in ("std", "rank")]
    lines = [{"step": step, "loss": 1 / step, **dict.fromkeys(keys, 0.5)} for step in (1, 50, 100)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    picture = pixels(pictures.curves(tmp_path / "metrics.jsonl", tmp_path / "new" / "curves.png"))
    assert picture.shape[1] >= 1000
    assert share(picture, (0x30, 0x63, 0x8E)) > 0


@pytest.mark.parametrize("hidden", [0.0, 1.0])
def test_hidden_patches_are_grey(tmp_path: Path, hidden: float) -> None:
    images = np.zeros((2, 3, 32, 32), np.uint8)
    images[:, 0] = 255
    picture = pixels(pictures.masked_images(images, np.full((2, 4, 4), bool(hidden)), tmp_path / "masks.png"))
    red, grey = share(picture, (255, 0, 0)), share(picture, (128, 128, 128))
    assert (grey > 0.3) == bool(hidden)
    assert red > 0.3


def test_hidden_spans_cover_their_time(tmp_path: Path) -> None:
    wave = RNG.normal(size=16000)
    nothing, half, everything = (
        pixels(pictures.masked_speech(wave, np.arange(50) < n, 0.02, tmp_path / f"{n}.png")) for n in (0, 25, 50)
    )
    assert nothing.shape[1] >= 1000
    middle = nothing.shape[1] // 2
    changed = [float((picture != nothing).any(-1)[:, : middle - 100].mean()) for picture in (half, everything)]
    assert changed[0] == pytest.approx(changed[1], abs=0.1)
    assert (half != everything).any()


def test_text_with_any_character_is_drawn(tmp_path: Path) -> None:
    tokens = ["Costs", " $5", "\n", "\t", " and", "", " naïve", "long" * 40] * 20
    shown = pixels(pictures.masked_text(tokens, np.zeros(len(tokens), bool), tmp_path / "none.png"))
    hidden = pixels(pictures.masked_text(tokens, np.ones(len(tokens), bool), tmp_path / "all.png"))
    assert shown.shape[1] >= 1000
    assert hidden.mean() < shown.mean() - 10


def test_components_are_ordered_by_spread_and_fill_the_range() -> None:
    directions = np.linalg.qr(RNG.normal(size=(16, 16)))[0][:3]
    strength = RNG.normal(size=(4, 8, 8, 3)) * (9, 5, 2)
    features = strength @ directions + 100 + 0.01 * RNG.normal(size=(4, 8, 8, 16))
    found = pictures.principal(features)
    assert found.shape == (4, 8, 8, 3)
    assert found.min() == 0
    assert found.max() == 1
    for i in range(3):
        assert abs(np.corrcoef(found[..., i].ravel(), strength[..., i].ravel())[0, 1]) > 0.97


def test_features_that_are_all_alike_give_one_colour() -> None:
    assert np.ptp(pictures.principal(np.ones((2, 4, 4, 8)))) == 0


def test_components_stand_under_their_images(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    features = RNG.normal(size=(3, 8, 8, 16))
    path = pictures.components(images, features, np.zeros_like(features), tmp_path / "components.png")
    assert share(pixels(path)[-150:], (0, 0, 0)) > 0.5
