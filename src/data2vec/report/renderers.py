"""Renderers: a colour for each position, drawn over an image, a spectrogram, text, or any other signal.

Shapes: n inputs, T positions, R rows of colours. Colours are RGBA, each from 0 to 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data2vec.data.audio import SAMPLE_RATE
from data2vec.report.style import WIDTH, hide_axes, new_figure
from data2vec.settings import JsonDict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MAX_TRACES = 32
"""Channels of a recording that are drawn."""


@dataclass(frozen=True)
class ColorScale:
    """A colour scale for numbers: `viridis` from `low` to `high`."""

    low: float
    high: float
    label: str

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Values (…) to colours (…, 4); NaN is transparent."""
        from matplotlib import colormaps

        shown = np.clip((np.nan_to_num(values) - self.low) / max(self.high - self.low, 1e-12), 0, 1)
        return np.where(np.isnan(values)[..., None], 0.0, colormaps["viridis"](shown))


class Renderer(ABC):
    """Draws colours over some inputs."""

    several: bool = False
    """Whether a figure has room for several inputs."""

    @abstractmethod
    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        """A figure of R rows with their `names`: `colours` (R, k, T, 4) over the first k inputs; k is 1 unless `several`."""


class ImageRenderer(Renderer):
    """Images (n, H, W, 3) in 0..1, with a grid of (rows, columns) positions."""

    several = True
    stacked = False
    """Whether the views of a single image are below each other, not side by side."""

    def __init__(self, images: np.ndarray, grid: tuple[int, int]):
        self.images, self.grid = images, grid

    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        count = colours.shape[1]
        panels = np.array([[overlay(self.images[i], view[i], self.grid) for i in range(count)] for view in colours])
        side_by_side = count == 1 and not self.stacked
        panels = panels.swapaxes(0, 1) if side_by_side else panels
        rows, columns, H, W, _ = panels.shape
        image = mosaic(panels)
        height = width * image.shape[0] / image.shape[1] + (0.3 if side_by_side else 0) + (0.5 if scale else 0)
        figure, (axes,) = new_figure(width, height)
        hide_axes(axes).imshow(image, extent=(0, columns, rows, 0), aspect=H / W)
        if side_by_side:
            axes.xaxis.tick_top()
            axes.set_xticks(np.arange(columns) + 0.48, names)
        else:
            axes.set_yticks(np.arange(rows) + 0.48, names, rotation=0 if self.stacked else 90, va="center")
        axes.tick_params(length=0)
        _add_colorbar(figure, axes, scale)
        return figure


class ClipRenderer(ImageRenderer):
    """The first frames of the tubelets of clips (n, t, H, W, 3) in 0..1, side by side, with a grid of (t, rows, columns)."""

    several = False
    stacked = True

    def __init__(self, clips: np.ndarray, grid: tuple[int, int, int]):
        t, rows, columns = grid
        n, _, H, W, _ = clips.shape
        super().__init__(clips.transpose(0, 2, 1, 3, 4).reshape(n, H, t * W, 3), (rows, t * columns))
        self.times = t

    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        rows, columns = self.grid[0], self.grid[1] // self.times
        cells = colours.reshape(*colours.shape[:2], self.times, rows, columns, 4).swapaxes(2, 3)
        return super().render(cells.reshape(colours.shape), names, scale, width)


class SequenceRenderer(Renderer):
    """One sequence as an image (H, W, 3) in 0..1, whose width is `end` in the `unit` of the horizontal axis.

    `positions`: T, and the end of the last one."""

    def __init__(self, image: np.ndarray, positions: tuple[int, float], end: float, unit: str):
        self.image, self.end, self.unit = image, end, unit
        self.T, self.last = positions

    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        covered_width = round(self.image.shape[1] * min(1.0, self.last / self.end))
        panels = np.array([overlay(self.image[:, :covered_width], view[0], (1, self.T)) for view in colours])
        figure, (axes,) = new_figure(width, 0.8 + 0.62 * len(panels) + (0.3 if scale else 0))
        axes.imshow(mosaic(panels[:, None], sides=False), extent=(0, min(self.last, self.end), len(panels), 0), aspect="auto")
        axes.spines[:].set_visible(False)
        axes.set_xlabel(self.unit)
        axes.set_yticks(np.arange(len(panels)) + 0.46, names)
        axes.tick_params(axis="y", length=0)
        _add_colorbar(figure, axes, scale)
        return figure


class SpectrogramRenderer(Renderer):
    """A log-mel spectrogram (F, N), low frequencies at the bottom, with a grid of (time, frequency) positions."""

    def __init__(self, log_mel: np.ndarray, grid: tuple[int, int]):
        self.image, self.grid = apply_colormap(log_mel.T[::-1], name="magma"), grid

    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        rows, columns = self.grid
        views = [view[0].reshape(rows, columns, 4).swapaxes(0, 1)[::-1].reshape(-1, 4) for view in colours]
        panels = np.array([overlay(self.image, view, (columns, rows)) for view in views])
        figure, (axes,) = new_figure(width, 0.8 + 0.8 * len(panels) + (0.3 if scale else 0))
        axes.imshow(mosaic(panels[:, None], sides=False), extent=(0, rows, len(panels), 0), aspect="auto")
        axes.spines[:].set_visible(False)
        axes.set_xlabel("patch in time")
        axes.set_yticks(np.arange(len(panels)) + 0.46, names)
        axes.tick_params(axis="y", length=0)
        _add_colorbar(figure, axes, scale)
        return figure


class TraceRenderer(Renderer):
    """The traces of the channels of one recording (S, C), which lasts `end` in the `unit` of the horizontal axis; NaN is a gap.

    `grid`: (T,) positions of all channels, or (T, C) of one channel each."""

    def __init__(self, samples: np.ndarray, grid: tuple[int, ...], end: float, unit: str):
        self.samples, self.grid, self.end, self.unit = samples[:, :MAX_TRACES], grid, end, unit

    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        S, C = self.samples.shape
        time = np.linspace(0, self.end, S, endpoint=False)
        figure, (axes,) = new_figure(width, 0.8 + (0.35 + 0.16 * C) * len(colours) + (0.3 if scale else 0))
        spread = np.nanpercentile(np.abs(self.samples - np.nanmean(self.samples, 0)), 98) or 1.0
        for row, (view, *_) in enumerate(colours):
            cells = view.reshape(self.grid[0], -1, 4).swapaxes(0, 1)[:C]
            axes.imshow(cells, extent=(0, self.end, row + 0.92, row), aspect="auto", interpolation="nearest")
            for channel in range(C):
                place = row + 0.92 * (channel + 0.5) / C
                trace = np.clip((self.samples[:, channel] - np.nanmean(self.samples[:, channel])) / spread, -1.5, 1.5)
                axes.plot(time, place - trace * 0.46 / C, color="#1f4e79", linewidth=0.6)
        axes.set(xlim=(0, self.end), ylim=(len(colours), 0), xlabel=self.unit)
        axes.spines[:].set_visible(False)
        axes.set_yticks(np.arange(len(colours)) + 0.46, names)
        axes.tick_params(axis="y", length=0)
        _add_colorbar(figure, axes, scale)
        return figure


class TokenRenderer(Renderer):
    """Text, of which the first `max_tokens` tokens are drawn."""

    max_tokens = 120

    def __init__(self, tokens: Sequence[str]):
        shown = (
            "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in token) for token in tokens[: self.max_tokens]
        )
        self.tokens = [token.replace(" ", "\u00a0") or "·" for token in shown]  # browsers collapse ordinary spaces

    def render(
        self, colours: np.ndarray, names: Sequence[str], scale: ColorScale | None = None, width: float = WIDTH
    ) -> "Figure":
        columns = int(10 * width)
        tokens, lines = self._layout(columns)
        height = 0.24 * len(names) * (lines + 1.6) + 0.1 + (0.5 if scale else 0)
        figure, (axes,) = new_figure(width, height)
        axes.set_facecolor("white")
        hide_axes(axes).set(xlim=(-0.5, columns + 0.5), ylim=(len(names) * (lines + 1.6) - 0.6, -0.8))
        size = width * 72 * 0.95 / columns / 0.602  # the advance of a character of this font is 0.602 of its size
        style: JsonDict = {"size": size, "va": "center_baseline", "in_layout": False, "parse_math": False}
        for i, (name, (colour, *_)) in enumerate(zip(names, colours, strict=True)):
            first = i * (lines + 1.6)
            axes.text(0, first, name, weight="bold", color="#111111", **style)
            for (line, column, token), (*rgb, cover) in zip(tokens, colour, strict=False):
                y, background = first + line + 1, np.array(rgb) * cover + 1 - cover
                if cover:
                    axes.barh(y, len(token), left=column, height=0.9, color=background, linewidth=0)
                ink = "#111111" if background @ (0.299, 0.587, 0.114) > 0.5 else "#ffffff"
                axes.text(column, y, token, family="DejaVu Sans Mono", color=ink, **style)
        _add_colorbar(figure, axes, scale)
        return figure

    def _layout(self, columns: int) -> tuple[list[tuple[int, int, str]], int]:
        """Line, column and text of each token, and the number of lines."""
        placed, line, column = [], 0, 0
        for token in self.tokens:
            shown = token[:columns]
            if column + len(shown) > columns:
                line, column = line + 1, 0
            placed.append((line, column, shown))
            column += len(shown)
        return placed, line + 1


def build_renderer(
    kind: str | None, inputs: np.ndarray, grid: tuple[int, ...], seconds: float | None, tokens: Sequence[str]
) -> Renderer:
    """The renderer for a batch of `inputs` (n, …) with a `grid` of positions.

    `kind`: that of the modality; `seconds`: duration of a position, if positions are in time; `tokens`: those of the first
    input, if it is text. An unknown kind of input is drawn as a heat map of its values."""
    T = int(np.prod(grid))
    if tokens:
        return TokenRenderer(tokens)
    if kind == "recording":
        end, unit = (grid[0], "patch") if seconds is None else (grid[0] * seconds, "time (s)")
        return TraceRenderer(inputs[0].astype(np.float64), grid, end, unit)
    if kind == "audio" and inputs.ndim == 3 and len(grid) == 2:
        return SpectrogramRenderer(inputs[0].astype(np.float64), (grid[0], grid[1]))
    if kind == "video" and inputs.ndim == 5:
        return ClipRenderer(to_clips(inputs, grid[0]), (grid[0], grid[1], grid[2]))
    if len(grid) == 2:
        return ImageRenderer(to_images(inputs, grid), (grid[0], grid[1]))
    if kind == "audio" and inputs.ndim == 2 and seconds is not None:
        return SequenceRenderer(spectrogram(inputs[0]), (T, T * seconds), inputs.shape[1] / SAMPLE_RATE, "time (s)")
    values = inputs[0].astype(np.float64)
    values = np.moveaxis(values, int(np.argmax(values.shape)), -1)
    return SequenceRenderer(apply_colormap(values.reshape(-1, values.shape[-1])), (T, T), T, "position")


def overlay(image: np.ndarray, colours: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(H, W, 4): an image (H, W, 3) with the colours (T, 4) of its positions blended over their cells."""
    H, W, _ = image.shape
    cells = colours.reshape(*grid, 4)[np.arange(H)[:, None] * grid[0] // H, np.arange(W) * grid[1] // W]
    cover = cells[..., 3:]
    return np.concatenate([cells[..., :3] * cover + image * (1 - cover), np.ones((H, W, 1))], axis=2)


def mosaic(panels: np.ndarray, sides: bool = True) -> np.ndarray:
    """One image of panels (rows, columns, H, W, 4), with gaps below and, with `sides`, on the right of each."""
    rows, columns, H, W, _ = panels.shape
    below, right = max(1, round(0.06 * H)), max(1, round(0.06 * W)) if sides else 0
    padded = np.pad(panels, ((0, 0), (0, 0), (0, below), (0, right), (0, 0)))
    return padded.swapaxes(1, 2).reshape(rows * (H + below), columns * (W + right), 4)


def spectrogram(wave: np.ndarray, rate: int = SAMPLE_RATE) -> np.ndarray:
    """(H, W, 3): log power spectrogram of `wave` (S,), 25 ms windows, high frequencies on top."""
    window, hop = int(0.025 * rate), int(0.005 * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (window // 2, window)), window)[: len(wave) : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    decibels = 10 * np.log10(power.T[::-1] + 1e-10)
    return apply_colormap(decibels, decibels.max() - 80, decibels.max(), "magma")


def apply_colormap(
    values: np.ndarray, low: float | None = None, high: float | None = None, name: str = "cividis"
) -> np.ndarray:
    """Values (H, W) to colours (H, W, 3), by default from their 2nd to their 98th percentile."""
    from matplotlib import colormaps

    values = np.nan_to_num(values)
    low = np.percentile(values, 2) if low is None else low
    high = np.percentile(values, 98) if high is None else high
    return colormaps[name](np.clip((values - low) / max(high - low, 1e-12), 0, 1))[..., :3]


def to_images(inputs: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(n, H, W, 3) in 0..1 of uint8 or float (n, C, H, W) with one or three channels; grey if inputs are not images."""
    if inputs.ndim == 3:
        inputs = inputs[:, None]
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return np.full((len(inputs), *grid, 3), 0.5)
    images = np.broadcast_to(inputs, (len(inputs), 3, *inputs.shape[2:])).transpose(0, 2, 3, 1)
    if inputs.dtype == np.uint8:
        return images / 255
    low, high = images.min(), images.max()
    return (images - low) / max(high - low, 1e-12)


def to_clips(inputs: np.ndarray, times: int) -> np.ndarray:
    """(n, times, H, W, 3) in 0..1 of float clips (n, F, C, H, W): the first frame of each of `times` equal parts."""
    n, F, C, H, W = inputs.shape
    frames = np.broadcast_to(inputs[:, :: F // times], (n, times, C, H, W)).transpose(0, 1, 3, 4, 2)
    low, high = np.percentile(frames, (1, 99))
    return np.clip(np.broadcast_to((frames - low) / max(high - low, 1e-12), (n, times, H, W, 3)), 0, 1)


def _add_colorbar(figure: "Figure", axes: "Axes", scale: ColorScale | None) -> None:
    """Add a colour bar if there is a scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if scale is not None:
        figure.colorbar(
            ScalarMappable(Normalize(scale.low, scale.high), "viridis"),
            ax=axes, label=scale.label, location="bottom", aspect=40, pad=0.02,
        )  # fmt: skip
