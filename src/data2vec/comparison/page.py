"""compare.html: one self-contained page with curves and tables of a comparison."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data2vec.atomic_io import write_text
from data2vec.comparison.result import ArmResult, Comparison
from data2vec.comparison.table import HEAD, SUMMARY_NOTE, arm_cells, evaluation_tables, summary_table
from data2vec.report.page import render_page
from data2vec.report.style import as_text, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#3a7ca5", "#d1495b", "#2a9d8f", "#b07d12", "#7b5ea7", "#8a8a8a", "#c06c84", "#5c8001", "#1b998b", "#a05195")


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page."""
    summary = f"<p>Test sets, {SUMMARY_NOTE}.</p>{_table(*summary_table(comparison))}" if comparison.rows else ""
    sections = [
        _section("Summary", summary) if summary else "",
        _curves(comparison.arms),
        _section("Arms", _table(HEAD, [arm_cells(arm) for arm in comparison.arms])),
    ]
    for title, note, head, rows in evaluation_tables(comparison):
        sections.append(_section(title, f"<p>{as_text(note)}</p>{_table(head, rows)}"))
    failed = [f"<li>{as_text(arm.name)}: {as_text(folder)}: {as_text(reason)}</li>" for arm in comparison.arms
              for folder, reason in arm.failed.items()]  # fmt: skip
    sections.append(_section("Failed", f"<ul>{''.join(failed)}</ul>") if failed else "")
    sections.append(_section("Run an arm again", f"<pre>{escape(chr(10).join(arm.command for arm in comparison.arms))}</pre>"))
    recipes = "".join(
        f"<details><summary>{as_text(arm.name)}</summary><pre>{escape(arm.recipe)}</pre></details>"
        for arm in comparison.arms
        if arm.recipe is not None
    )
    sections.append(_section("Recipes", recipes) if recipes else "")
    machine = ", ".join(f"{key} {value}" for key, value in comparison.machine.items())
    budget = ", ".join(f"{value:g} {key}" for key, value in comparison.settings["budget"].items() if value is not None)
    subtitle = as_text(f"{budget} per pre-training run · seeds {', '.join(map(str, comparison.seeds))} · {machine}")
    text = render_page(as_text(path.parent.name), subtitle, sections)
    write_text(path, text)


def plot_score_curves(arms: Sequence[ArmResult]) -> "Figure":
    """Accuracy of a linear probe on dev against operations, one line per arm: the mean over the seeds, in a band of one
    standard deviation."""
    figure, (axes,) = new_figure(6.4, 4.2)
    for number, arm in enumerate(arms):
        x, mean, std = mean_curve(arm).T
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(x, mean, color=colour, label=arm.name.replace("$", r"\$"), marker="o", ms=4)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="FLOPs of pre-training", ylabel="linear probe accuracy, dev")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    return figure


def mean_curve(arm: ArmResult) -> np.ndarray:
    """(points, 3): operations, and mean and standard deviation of the accuracy over the seeds that reached them."""
    by_flops: dict[float, list[float]] = {}
    for curve in arm.curves.values():
        for flops, value in curve:
            by_flops.setdefault(flops, []).append(value)
    return np.array([(x, np.mean(v), np.std(v, ddof=1) if len(v) > 1 else 0.0) for x, v in sorted(by_flops.items())])


def _curves(arms: Sequence[ArmResult]) -> str:
    shown = [arm for arm in arms if arm.curves]
    if not shown:
        return ""
    caption = "Mean over the seeds, in a band of one standard deviation; the best layer on dev at each point."
    picture = to_svg(plot_score_curves(shown), "Linear probe accuracy on dev against FLOPs")
    return _section("Curves", f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{as_text(title)}</h2>{content}</section>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{as_text(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{as_text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
