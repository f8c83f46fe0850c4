"""Pictures of a run: its curves, what was hidden from the student, and what patch features look like.

Each function draws into a PNG file and returns its path.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN = "#d1495b"
"""The colour of what the student does not see."""
_COLOURS = {"features": "#888888", "student": "#edae49", "target": "#00798c", "prediction": "#d1495b"}
_NAMES = {"features": "local features", "student": "student's output", "target": "targets", "prediction": "predictions"}


def curves(metrics: str | Path, out: str | Path) -> Path:
    """Loss, standard deviations and effective ranks over the steps of a metrics.jsonl."""
    lines = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    figure, (loss, std, rank) = _figure(1, 3, (12, 4))
    loss.plot(steps, [line["loss"] for line in lines], color="#30638e")
    loss.set(title="Loss", ylabel="loss a predicted position", ylim=(0, None))
    for axes, measure, label in (
        (std, "std", "standard deviation over positions"),
        (rank, "rank", "effective rank (dimensions)"),
    ):
        for name, colour in _COLOURS.items():
            axes.plot(steps, [line[f"{name}_{measure}"] for line in lines], color=colour, label=_NAMES[name])
        axes.set(ylabel=label, ylim=(0, None))
    std.set_title("Spread: near 0 means collapse")
    rank.set_title("Rank: near 1 means collapse")
    figure.legend(*rank.get_legend_handles_labels(), loc="outside lower right", ncols=4, frameon=False)
    for axes in (loss, std, rank):
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, out)


def masked_images(images: np.ndarray, hidden: np.ndarray, out: str | Path) -> Path:
    """Images (n, 3, H, W) uint8 above themselves with the hidden patches of `hidden` (n, rows, columns) bool in grey."""
    n, _, height, width = images.shape
    figure, axes = _figure(2, n, (1.5 * n, 3.4))
    patches = hidden.repeat(height // hidden.shape[1], axis=1).repeat(width // hidden.shape[2], axis=2)
    for column in range(n):
        picture = images[column].transpose(1, 2, 0)
        seen = np.where(patches[column, ..., None], np.uint8(128), picture)
        for row, shown in enumerate((picture, seen)):
            _bare(axes[row, column]).imshow(shown)
    axes[0, 0].set_ylabel("teacher sees", fontsize=11)
    axes[1, 0].set_ylabel("student sees", fontsize=11)
    figure.suptitle(f"Hidden patches: {hidden.mean():.0%} of {hidden[0].size}", fontsize=12)
    return _save(figure, out)


def masked_speech(wave: np.ndarray, hidden: np.ndarray, seconds: float, out: str | Path, rate: int = 16000) -> Path:
    """The spectrogram of `wave` (S,) with the positions of `hidden` (T,) bool, each `seconds` long, shaded."""
    figure, axes = _figure(1, 1, (11, 4))
    window, hop = int(0.025 * rate), int(0.005 * rate)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (window // 2, window)), window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) ** 2
    decibels = 10 * np.log10(power.T + 1e-10)
    decibels -= decibels.max()
    end = len(wave) / rate
    extent = (0, len(frames) * hop / rate, 0, rate / 2000)
    shown = axes.imshow(decibels, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-80, vmax=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(int), [0]])))
    for i, (start, stop) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
        label = "hidden from the student" if i == 0 else None
        axes.axvspan(start * seconds, stop * seconds, facecolor="white", alpha=0.55, hatch="//", edgecolor=HIDDEN, label=label)
    axes.set(xlim=(0, end), xlabel="time (s)", ylabel="frequency (kHz)")
    axes.set_title(f"Hidden spans: {hidden.mean():.0%} of {len(hidden)} positions of {1000 * seconds:.0f} ms")
    if hidden.any():
        axes.legend(loc="upper right")
    figure.colorbar(shown, label="power (dB below the loudest)")
    return _save(figure, out)


def masked_text(tokens: Sequence[str], hidden: np.ndarray, out: str | Path, columns: int = 104) -> Path:
    """Running text, token by token, with the tokens of `hidden` (T,) bool on a coloured ground."""
    places, row, column = [], 0, 0
    for token in tokens:
        shown = "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in token)[: columns - 1] or "·"
        if column + len(shown) > columns and column:
            row, column = row + 1, 0
        places.append((row, column, shown))
        column += len(shown)
    figure, axes = _figure(1, 1, (11, 0.7 + 0.26 * (row + 1)))
    _bare(axes).set(xlim=(0, columns), ylim=(row + 0.6, -0.8))
    size = 11 * 72 * 0.97 / columns / 0.602  # the advance of a character of this font is 0.602 of its size
    for (row, column, shown), is_hidden in zip(places, hidden, strict=True):
        if is_hidden:
            axes.barh(row - 0.08, len(shown), left=column, height=0.82, color=HIDDEN, alpha=0.35, linewidth=0)
        axes.text(column, row, shown.replace("$", r"\$"), family="DejaVu Sans Mono", size=size, va="center", in_layout=False)
    axes.set_title(f"Coloured: the {hidden.mean():.0%} of {len(hidden)} tokens that the student does not see")
    return _save(figure, out)


def components(images: np.ndarray, before: np.ndarray, after: np.ndarray, out: str | Path) -> Path:
    """Images (n, 3, H, W) uint8 above the first three principal components of their patch features as red, green and blue.

    `before` and `after` training: (n, rows, columns, D). The components are those of all n images together."""
    n = len(images)
    figure, axes = _figure(3, n, (1.5 * n, 4.8))
    rows = (images.transpose(0, 2, 3, 1), principal(before), principal(after))
    for row, (name, shown) in enumerate(zip(("input", "untrained", "trained"), rows, strict=True)):
        for column in range(n):
            _bare(axes[row, column]).imshow(shown[column], interpolation="nearest")
        axes[row, 0].set_ylabel(name, fontsize=12)
    figure.suptitle("First three principal components of the patch features, as red, green and blue", fontsize=12)
    return _save(figure, out)


def principal(features: np.ndarray) -> np.ndarray:
    """Features (…, D) to their first three principal components (…, 3), each stretched to 0..1."""
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    found = flat @ directions[:3].T
    low, high = np.percentile(found, (2, 98), axis=0)
    return np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(*features.shape[:-1], 3)


def _figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Any, Any]:
    """A figure that no window and no other thread knows of, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes[0, 0] if rows == columns == 1 else axes[0] if rows == 1 else axes


def _bare(axes: Any) -> Any:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def _save(figure: Any, out: str | Path) -> Path:
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
