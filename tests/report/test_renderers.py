from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data2vec.report.renderers import (
    ColorScale,
    ImageRenderer,
    Renderer,
    SequenceRenderer,
    TokenRenderer,
    build_renderer,
    mosaic,
    overlay,
    spectrogram,
)
from data2vec.report.style import save_png, to_svg

RNG = np.random.default_rng(0)
RED, NONE = (1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)


def pixels(figure: Any, out: Path) -> np.ndarray:
    with Image.open(save_png(figure, out / "new" / "figure.png")) as picture:
        assert picture.format == "PNG"
        return np.array(picture.convert("RGB"))


def red(figure: Any, out: Path) -> float:
    """The fraction of the figure that is red."""
    return float((np.abs(pixels(figure, out).astype(int) - (255, 0, 0)).max(-1) <= 3).mean())


def renderer_of(kind: str) -> tuple[Renderer, int]:
    """A renderer of each kind, and its number of positions."""
    if kind == "image":
        return build_renderer("image", RNG.integers(0, 200, (3, 3, 32, 32), dtype=np.uint8), (4, 4), None, []), 16
    if kind == "audio":
        return build_renderer("audio", RNG.normal(size=(2, 16000)).astype(np.float32), (50,), 0.02, []), 50
    if kind == "sound":
        return build_renderer("audio", RNG.normal(size=(2, 160, 64)).astype(np.float32), (10, 4), None, []), 40
    if kind == "text":
        return build_renderer("text", np.zeros((1, 40), int), (40,), None, ["word"] * 40), 40
    return build_renderer(None, RNG.normal(size=(2, 20, 8, 3)), (20,), None, []), 20


@pytest.mark.parametrize("kind", ["image", "audio", "sound", "text", None])
def test_render_covers_area_in_proportion_to_positions(kind: str, tmp_path: Path) -> None:
    renderer, T = renderer_of(kind)
    colours = np.full((3, 1, T, 4), NONE)
    colours[1, :, : T // 2], colours[2] = RED, RED
    shares = [red(renderer.render(row[None], ["name"]), tmp_path) for row in colours]
    assert shares[0] == 0
    assert shares[2] > 0.2
    assert shares[1] == pytest.approx(shares[2] / 2, rel=0.15)


def test_spectrogram_has_time_to_the_right_and_low_frequencies_at_the_bottom(tmp_path: Path) -> None:
    renderer, T = renderer_of("sound")
    colours = np.full((1, 1, T, 4), NONE)
    colours[0, 0, 4 * 9] = RED  # the last time, the lowest band
    shown = np.abs(pixels(renderer.render(colours, ["name"]), tmp_path).astype(int) - (255, 0, 0)).max(-1) <= 3
    rows, columns = np.nonzero(shown)
    assert columns.mean() > 0.85 * shown.shape[1] and rows.mean() > 0.45 * shown.shape[0] and shown.mean() < 0.05


def test_build_renderer_chooses_by_kind_of_input() -> None:
    kinds = {kind: type(renderer_of(kind)[0]) for kind in ("image", "audio", "text", None)}
    assert kinds == {"image": ImageRenderer, "audio": SequenceRenderer, "text": TokenRenderer, None: SequenceRenderer}


@pytest.mark.parametrize("given", [(2, 1, 8, 8), (2, 8, 8), (2, 3, 8, 8), (2, 5, 8, 8), (2, 7)])
def test_build_renderer_of_a_two_axis_grid_accepts_any_input_shape(given: tuple[int, ...]) -> None:
    made = build_renderer(None, RNG.normal(size=given), (4, 2), None, [])
    assert isinstance(made, ImageRenderer)
    assert made.images.min() >= 0 and made.images.max() <= 1
    made.render(np.full((2, 1, 8, 4), RED), ["a", "b"])


def test_sequences_of_any_shape_are_figure_along_their_longest_axis() -> None:
    for shape in ((1, 30), (1, 3, 30), (1, 30, 3), (1, 4, 2, 30)):
        made = build_renderer(None, RNG.normal(size=shape), (10,), None, [])
        assert isinstance(made, SequenceRenderer)
        assert made.image.shape[1] == 30


def test_overlay_blends_colours_by_their_alpha() -> None:
    colours = np.array([RED, NONE, (0, 1, 0, 0.5), NONE])
    whole = overlay(np.ones((4, 4, 3)), colours, (2, 2))
    np.testing.assert_array_equal(whole[:2, :2, :3], np.broadcast_to((1, 0, 0), (2, 2, 3)))
    np.testing.assert_array_equal(whole[:2, 2:, :3], 1)
    np.testing.assert_array_equal(whole[2:, :2, :3], np.broadcast_to((0.5, 1, 0.5), (2, 2, 3)))


def test_mosaic_keeps_order_and_adds_gaps() -> None:
    panels = np.arange(1, 7.0).reshape(2, 3, 1, 1, 1) * np.ones((2, 3, 10, 20, 4))
    whole = mosaic(panels)
    assert whole.shape == (22, 63, 4)
    assert [whole[5 + 11 * row, 10 + 21 * column, 0] for row in range(2) for column in range(3)] == [1, 2, 3, 4, 5, 6]
    assert whole[10].max() == 0 and whole[:, 20].max() == 0


def test_spectrogram_of_a_tone_peaks_at_its_frequency() -> None:
    wave = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000)
    picture = spectrogram(wave)
    assert picture.shape[1] == 200
    brightest = picture[:, 100].sum(-1).argmax()
    assert 1 - brightest / len(picture) == pytest.approx(2000 / 8000, abs=0.02)


def test_color_scale_of_nan_is_transparent() -> None:
    colours = ColorScale(0, 1, "").colours(np.array([0.0, np.nan, 1.0, 7.0]))
    assert colours[:, 3].tolist() == [1, 0, 1, 1]
    assert (colours[2] == colours[3]).all() and (colours[0] != colours[2]).any()


def test_token_renderer_draws_and_escapes_any_character(tmp_path: Path) -> None:
    tokens = ["Costs", " $5", "\n", "\t", " and", "", " naïve", " <b>", " 深い", "long" * 40] * 20
    renderer = TokenRenderer(tokens)
    figure = renderer.render(np.full((2, 1, 200, 4), RED), ["a", "b"])
    assert red(figure, tmp_path) > 0.1
    text = to_svg(figure, "what it <shows>")
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert 'aria-label="what it &lt;shows&gt;"' in text
    assert "深い" in text


def test_to_svg_replaces_black_by_the_text_colour() -> None:
    text = to_svg(renderer_of("audio")[0].render(np.full((1, 1, 50, 4), NONE), ["a"]), "a")
    assert "#000000" not in text and "currentColor" in text


@pytest.mark.parametrize("grid", [(8,), (8, 3)])
def test_traces_are_drawn_over_masked_cells_and_gaps_are_left_out(tmp_path: Path, grid: tuple[int, ...]) -> None:
    samples = RNG.normal(size=(2, 80, 3))
    samples[0, 20:40, 1] = np.nan
    renderer = build_renderer("recording", samples, grid, 0.2 if len(grid) == 1 else None, [])
    T = int(np.prod(grid))
    one, every = np.full((1, 1, T, 4), NONE), np.full((1, 1, T, 4), RED)
    one[0, 0, 0] = RED
    few, most, none = (red(renderer.render(view, ["a"]), tmp_path) for view in (one, every, np.full((1, 1, T, 4), NONE)))
    assert none == 0 < few < most / 4
