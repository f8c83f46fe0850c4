"""Figures that no window and no other thread knows of: made, and written as PNG files or into a page.

In a page, what is black takes the colour of the text around it, so that a figure can be read on a light and on a dark ground.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

WIDTH = 4.6
"""Inches. A page shows this at about four fifths of its size, where the text is still large enough on a phone."""


def new(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches without a ground of its own, and its axes: one, or (rows, columns) of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="none")
    axes = figure.subplots(rows, columns, squeeze=False)
    for each in axes.flat:
        each.set_facecolor("none")
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes[0, 0] if rows == columns == 1 else axes


def bare(axes: Any) -> Any:
    """The axes without ticks and frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def save(figure: Any, out: str | Path, title: str = "") -> Path:
    """Write a PNG file with a title, in a folder that is made where it is not there; returns its path."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle(title, fontsize=11)
    with any_character():
        figure.savefig(path, facecolor="white")
    return path


def svg(figure: Any, meaning: str) -> str:
    """The figure as an element of HTML, with real text in it; `meaning` is read out where it cannot be seen."""
    from matplotlib import rc_context

    content = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "data2vec"}), any_character():
        figure.savefig(content, format="svg", dpi=160, metadata=nothing)
    text = content.getvalue()
    text = text[text.index("<svg") :].replace("#000000", "currentColor")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every figure, and no link goes there
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(meaning)}"', 1)


@contextmanager
def any_character() -> Iterator[None]:
    """Characters that the font lacks are measured as boxes without a word; a browser has fonts of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
