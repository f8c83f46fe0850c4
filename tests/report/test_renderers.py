from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data2vec.report import renderers as canvases
from data2vec.report import style as figure
from data2vec.report.renderers import Canvas, Pictures, Scale, Strips, Words, canvas

RNG = np.random.default_rng(0)
RED, NONE = (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)


def pixels(drawn: Any, out: Path) -> np.ndarray:
    with Image.open(figure.save(drawn, out / "new" / "figure.png")) as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB"))


def red(drawn: Any, out: Path) -> float:
    """The share of the figure that is red."""
    return float((np.abs(pixels(drawn, out).astype(int) - (255, 0, 0)).max(-1) <= 3).mean())


def on(kind: str) -> tuple[Canvas, int]:
    """A canvas of each kind, and its positions."""
    if kind == "image":
        return canvas("image", RNG.integers(0, 200, (3, 3, 32, 32), dtype=np.uint8), (4, 4), None, []), 16
    if kind == "audio":
        return canvas("audio", RNG.normal(size=(2, 16000)).astype(np.float32), (50,), 0.02, []), 50
    if kind == "text":
        return canvas("text", np.zeros((1, 40), int), (40,), None, ["word"] * 40), 40
    return canvas(None, RNG.normal(size=(2, 20, 8, 3)), (20,), None, []), 20


@pytest.mark.parametrize("kind", ["image", "audio", "text", None])
def test_half_the_positions_are_half_the_ground(kind: str, tmp_path: Path) -> None:
    drawn_on, T = on(kind)
    colours = np.full((3, 1, T, 4), NONE)
    colours[1, :, : T // 2], colours[2] = RED, RED
    shares = [red(drawn_on.paint(row[None], ["name"]), tmp_path) for row in colours]
    assert shares[0] == 0
    assert shares[2] > 0.2
    assert shares[1] == pytest.approx(shares[2] / 2, rel=0.15)


def test_each_kind_of_input_has_its_canvas() -> None:
    kinds = {kind: type(on(kind)[0]) for kind in ("image", "audio", "text", None)}
    assert kinds == {"image": Pictures, "audio": Strips, "text": Words, None: Strips}


@pytest.mark.parametrize("given", [(2, 1, 8, 8), (2, 8, 8), (2, 3, 8, 8), (2, 5, 8, 8), (2, 7)])
def test_a_grid_of_two_axes_can_be_painted_whatever_the_input(given: tuple[int, ...]) -> None:
    made = canvas(None, RNG.normal(size=given), (4, 2), None, [])
    assert isinstance(made, Pictures)
    assert made.images.min() >= 0 and made.images.max() <= 1
    made.paint(np.full((2, 1, 8, 4), RED), ["a", "b"])


def test_sequences_of_any_shape_are_drawn_along_their_longest_axis() -> None:
    for shape in ((1, 30), (1, 3, 30), (1, 30, 3), (1, 4, 2, 30)):
        made = canvas(None, RNG.normal(size=shape), (10,), None, [])
        assert isinstance(made, Strips)
        assert made.image.shape[1] == 30


def test_colours_cover_their_cells_as_far_as_they_say() -> None:
    colours = np.array([RED, NONE, (0, 1, 0, 0.5), NONE])
    whole = canvases.covered(np.ones((4, 4, 3)), colours, (2, 2))
    np.testing.assert_array_equal(whole[:2, :2, :3], np.broadcast_to((1, 0, 0), (2, 2, 3)))
    np.testing.assert_array_equal(whole[:2, 2:, :3], 1)
    np.testing.assert_array_equal(whole[2:, :2, :3], np.broadcast_to((0.5, 1, 0.5), (2, 2, 3)))


def test_panels_stand_apart_in_their_order() -> None:
    panels = np.arange(1, 7.0).reshape(2, 3, 1, 1, 1) * np.ones((2, 3, 10, 20, 4))
    whole = canvases.mosaic(panels)
    assert whole.shape == (22, 63, 4)
    assert [whole[5 + 11 * row, 10 + 21 * column, 0] for row in range(2) for column in range(3)] == [1, 2, 3, 4, 5, 6]
    assert whole[10].max() == 0 and whole[:, 20].max() == 0


def test_a_tone_is_a_line_at_its_frequency() -> None:
    wave = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000)
    picture = canvases.spectrogram(wave)
    assert picture.shape[1] == 200
    brightest = picture[:, 100].sum(-1).argmax()
    assert 1 - brightest / len(picture) == pytest.approx(2000 / 8000, abs=0.02)


def test_no_number_has_no_colour() -> None:
    colours = Scale(0, 1, "").colours(np.array([0.0, np.nan, 1.0, 7.0]))
    assert colours[:, 3].tolist() == [1, 0, 1, 1]
    assert (colours[2] == colours[3]).all() and (colours[0] != colours[2]).any()


def test_text_with_any_character_is_drawn(tmp_path: Path) -> None:
    tokens = ["Costs", " $5", "\n", "\t", " and", "", " naïve", " <b>", " 深い", "long" * 40] * 20
    drawn_on = Words(tokens)
    drawn = drawn_on.paint(np.full((2, 1, 200, 4), RED), ["a", "b"])
    assert red(drawn, tmp_path) > 0.1
    text = figure.svg(drawn, "what it <shows>")
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert 'aria-label="what it &lt;shows&gt;"' in text
    assert "深い" in text


def test_black_is_the_colour_of_the_page() -> None:
    text = figure.svg(on("audio")[0].paint(np.full((1, 1, 50, 4), NONE), ["a"]), "a")
    assert "#000000" not in text and "currentColor" in text
