"""The style of all figures, and saving them as PNG or as SVG for a page.

Figures are made without pyplot, so they need no window and no global state. In an SVG, black becomes the text colour of the
page, so a figure is readable in light and dark mode.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from data2vec.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.6
"""Default width in inches. Pages show figures at about 80% of it, where text is still readable on a phone."""


def as_text(words: object) -> str:
    """Words that others may have written, as text in HTML."""
    return escape(printable(str(words)))


def new_figure(width: float, height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """A transparent figure of a size in inches, and its axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="none")
    axes = list(figure.subplots(1, columns, squeeze=False).flat)
    for subplot in axes:
        subplot.set_facecolor("none")
        subplot.spines[["top", "right"]].set_visible(False)
    return figure, axes


def hide_axes(axes: "Axes") -> "Axes":
    """The same axes, without ticks and frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def save_png(figure: "Figure", out: str | Path, title: str = "") -> Path:
    """Save a figure as a PNG file with a title, creating its folder; returns its path."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(title, fontsize=11)
    with ignore_missing_glyphs():
        figure.savefig(path, facecolor="white")
    return path


def to_svg(figure: "Figure", alt_text: str) -> str:
    """The figure as an inline SVG element with real text; `alt_text` is for screen readers."""
    from matplotlib import rc_context

    content = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "data2vec"}), ignore_missing_glyphs():
        figure.savefig(content, format="svg", dpi=160, metadata=no_metadata)
    text = content.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # ids repeat across figures, and nothing links to them
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(alt_text)}"', 1)


@contextmanager
def ignore_missing_glyphs() -> Iterator[None]:
    """No warnings for characters that the font lacks; a browser has more fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
