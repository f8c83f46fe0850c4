"""Inputs to paint on: a colour for each position, over a picture, a spectrogram, running text, or any other signal.

n inputs, T positions, R rows of colours. Colours are red, green, blue and how much they cover, each from 0 to 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data2vec.report import style as figure

RATE = 16000
"""Samples a second of audio."""


@dataclass(frozen=True)
class Scale:
    """What the colours mean where they stand for a number: those of `viridis`, from `low` to `high`."""

    low: float
    high: float
    label: str

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Values (…) to (…, 4); what is no number stays uncovered."""
        from matplotlib import colormaps

        shown = np.clip((np.nan_to_num(values) - self.low) / max(self.high - self.low, 1e-12), 0, 1)
        return np.where(np.isnan(values)[..., None], 0.0, colormaps["viridis"](shown))


class Canvas(ABC):
    """Some inputs."""

    several: bool = False
    """Whether there is room for more than one input in a figure."""

    @abstractmethod
    def paint(self, colours: np.ndarray, names: Sequence[str], scale: Scale | None = None, width: float = figure.WIDTH) -> Any:
        """A figure of R views with their `names`: `colours` (R, k, T, 4) over the first k inputs.

        k is 1 unless the canvas has room for several."""


class Pictures(Canvas):
    """Images (n, H, W, 3) in 0..1, whose positions lie in a grid of (rows, columns)."""

    several = True

    def __init__(self, images: np.ndarray, grid: tuple[int, int]):
        self.images, self.grid = images, grid

    def paint(self, colours: np.ndarray, names: Sequence[str], scale: Scale | None = None, width: float = figure.WIDTH) -> Any:
        count = colours.shape[1]
        panels = np.array([[covered(self.images[i], view[i], self.grid) for i in range(count)] for view in colours])
        panels = panels if count > 1 else panels.swapaxes(0, 1)
        rows, columns, H, W, _ = panels.shape
        whole = mosaic(panels)
        height = width * whole.shape[0] / whole.shape[1] + (0.3 if count == 1 else 0) + (0.5 if scale else 0)
        drawn, axes = figure.new(1, 1, width, height)
        figure.bare(axes).imshow(whole, extent=(0, columns, rows, 0), aspect=H / W)
        if count == 1:
            axes.xaxis.tick_top()
            axes.set_xticks(np.arange(columns) + 0.48, names)
        else:
            axes.set_yticks(np.arange(rows) + 0.48, names, rotation=90, va="center")
        axes.tick_params(length=0)
        _bar(drawn, axes, scale)
        return drawn


class Strips(Canvas):
    """One sequence, drawn as an image (H, W, 3) in 0..1 whose width is `end` long in the `unit` of the horizontal axis.

    `positions`: T, and where the last of them ends."""

    def __init__(self, image: np.ndarray, positions: tuple[int, float], end: float, unit: str):
        self.image, self.end, self.unit = image, end, unit
        self.T, self.last = positions

    def paint(self, colours: np.ndarray, names: Sequence[str], scale: Scale | None = None, width: float = figure.WIDTH) -> Any:
        reached = round(self.image.shape[1] * min(1.0, self.last / self.end))
        panels = np.array([covered(self.image[:, :reached], view[0], (1, self.T)) for view in colours])
        drawn, axes = figure.new(1, 1, width, 0.8 + 0.62 * len(panels) + (0.3 if scale else 0))
        axes.imshow(mosaic(panels[:, None], sides=False), extent=(0, min(self.last, self.end), len(panels), 0), aspect="auto")
        axes.spines[:].set_visible(False)
        axes.set_xlabel(self.unit)
        axes.set_yticks(np.arange(len(panels)) + 0.46, names)
        axes.tick_params(axis="y", length=0)
        _bar(drawn, axes, scale)
        return drawn


class Words(Canvas):
    """Running text, of which the first `most` tokens are drawn."""

    most = 120

    def __init__(self, tokens: Sequence[str]):
        shown = ("".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in token) for token in tokens[: self.most])
        self.tokens = [token.replace(" ", "\u00a0") or "·" for token in shown]  # a browser leaves out other spaces

    def paint(self, colours: np.ndarray, names: Sequence[str], scale: Scale | None = None, width: float = figure.WIDTH) -> Any:
        columns = int(10 * width)
        places, lines = self._places(columns)
        height = 0.24 * len(names) * (lines + 1.6) + 0.1 + (0.5 if scale else 0)
        drawn, axes = figure.new(1, 1, width, height)
        axes.set_facecolor("white")
        figure.bare(axes).set(xlim=(-0.5, columns + 0.5), ylim=(len(names) * (lines + 1.6) - 0.6, -0.8))
        size = width * 72 * 0.95 / columns / 0.602  # the advance of a character of this font is 0.602 of its size
        style: dict[str, Any] = {"size": size, "va": "center_baseline", "in_layout": False, "parse_math": False}
        for i, (name, (colour, *_)) in enumerate(zip(names, colours, strict=True)):
            first = i * (lines + 1.6)
            axes.text(0, first, name, weight="bold", color="#111111", **style)
            for (line, column, token), (*rgb, cover) in zip(places, colour, strict=False):
                at, ground = first + line + 1, np.array(rgb) * cover + 1 - cover
                if cover:
                    axes.barh(at, len(token), left=column, height=0.9, color=ground, linewidth=0)
                ink = "#111111" if ground @ (0.299, 0.587, 0.114) > 0.5 else "#ffffff"
                axes.text(column, at, token, family="DejaVu Sans Mono", color=ink, **style)
        _bar(drawn, axes, scale)
        return drawn

    def _places(self, columns: int) -> tuple[list[tuple[int, int, str]], int]:
        """Line, column and text of each token, and the number of lines."""
        places, line, column = [], 0, 0
        for token in self.tokens:
            shown = token[:columns]
            if column + len(shown) > columns:
                line, column = line + 1, 0
            places.append((line, column, shown))
            column += len(shown)
        return places, line + 1


def canvas(kind: str | None, given: np.ndarray, grid: tuple[int, ...], seconds: float | None, tokens: Sequence[str]) -> Canvas:
    """What to paint on, for a batch's inputs `given` (n, …) with positions in a `grid`.

    `kind`: the modality's; `seconds`: of a position, where positions lie in time; `tokens`: the words of the first input,
    where it has some. What is none of the known kinds is drawn as a plain map of its numbers."""
    T = int(np.prod(grid))
    if tokens:
        return Words(tokens)
    if len(grid) == 2:
        return Pictures(_as_images(given, grid), (grid[0], grid[1]))
    if kind == "audio" and given.ndim == 2 and seconds is not None:
        return Strips(spectrogram(given[0]), (T, T * seconds), given.shape[1] / RATE, "time (s)")
    values = given[0].astype(np.float64)
    values = np.moveaxis(values, int(np.argmax(values.shape)), -1)
    return Strips(coloured(values.reshape(-1, values.shape[-1])), (T, T), T, "position")


def covered(image: np.ndarray, colours: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(H, W, 4): an image (H, W, 3) with `colours` (T, 4) over it, each on the cell of its position."""
    H, W, _ = image.shape
    cells = colours.reshape(*grid, 4)[np.arange(H)[:, None] * grid[0] // H, np.arange(W) * grid[1] // W]
    cover = cells[..., 3:]
    return np.concatenate([cells[..., :3] * cover + image * (1 - cover), np.ones((H, W, 1))], axis=2)


def mosaic(panels: np.ndarray, sides: bool = True) -> np.ndarray:
    """Panels (rows, columns, H, W, 4) in one, with gaps below them, and, with `sides`, on their right."""
    rows, columns, H, W, _ = panels.shape
    below, right = max(1, round(0.06 * H)), max(1, round(0.06 * W)) if sides else 0
    padded = np.pad(panels, ((0, 0), (0, 0), (0, below), (0, right), (0, 0)))
    return padded.swapaxes(1, 2).reshape(rows * (H + below), columns * (W + right), 4)


def spectrogram(wave: np.ndarray, rate: int = RATE) -> np.ndarray:
    """(H, W, 3): power in decibels of `wave` (S,) in windows of 25 ms, high frequencies on top."""
    window, hop = int(0.025 * rate), int(0.005 * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (window // 2, window)), window)[: len(wave) : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    decibels = 10 * np.log10(power.T[::-1] + 1e-10)
    return coloured(decibels, decibels.max() - 80, decibels.max(), "magma")


def coloured(values: np.ndarray, low: float | None = None, high: float | None = None, name: str = "cividis") -> np.ndarray:
    """Values (H, W) to colours (H, W, 3)."""
    from matplotlib import colormaps

    values = np.nan_to_num(values)
    low = np.percentile(values, 2) if low is None else low
    high = np.percentile(values, 98) if high is None else high
    return colormaps[name](np.clip((values - low) / max(high - low, 1e-12), 0, 1))[..., :3]


def _as_images(given: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(n, H, W, 3) in 0..1: bytes or floats (n, C, H, W) of one or three channels; grey where inputs are no images."""
    if given.ndim == 3:
        given = given[:, None]
    if given.ndim != 4 or given.shape[1] not in (1, 3):
        return np.full((len(given), *grid, 3), 0.5)
    images = np.broadcast_to(given, (len(given), 3, *given.shape[2:])).transpose(0, 2, 3, 1)
    if given.dtype == np.uint8:
        return images / 255
    low, high = images.min(), images.max()
    return (images - low) / max(high - low, 1e-12)


def _bar(drawn: Any, axes: Any, scale: Scale | None) -> None:
    """A bar that tells what the colours mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if scale is not None:
        drawn.colorbar(
            ScalarMappable(Normalize(scale.low, scale.high), "viridis"),
            ax=axes, label=scale.label, location="bottom", aspect=40, pad=0.02,
        )  # fmt: skip
