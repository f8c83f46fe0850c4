"""Curves over the logged steps of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data2vec.report import style as figure

BLUE, RED, YELLOW, GREEN, GREY = "#3a7ca5", "#d1495b", "#edae49", "#2a9d8f", "#8a8a8a"
STAGES = {
    "features": ("local features", GREY),
    "student": ("student's output", YELLOW),
    "target": ("targets", GREEN),
    "prediction": ("predictions", RED),
}
"""What flows through a step, its name, its colour."""
POINTS = 200
"""At most twice as many of a curve are drawn."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    unit: str
    keys: Mapping[str, tuple[str, str]]
    """Of metrics.jsonl, each with its name and colour."""
    says: str
    """What to look for."""
    dots: bool = False
    """Mark each value: there are few."""
    percent: bool = False
    log: bool = False
    """Where values lie orders of magnitude apart."""


def _stages(measure: str) -> dict[str, tuple[str, str]]:
    return {f"{stage}_{measure}": shown for stage, shown in STAGES.items()}


def _one(title: str, unit: str, key: str, says: str, percent: bool = False, log: bool = False) -> Panel:
    return Panel(title, unit, {key: (title, BLUE)}, says, percent=percent, log=log)


LOSS = _one("Loss", "per prediction", "loss", "In pre-training it may rise while the targets get harder.", log=True)
STD = Panel("Spread", "standard deviation", _stages("std"), "Near 0, the same vector everywhere: collapse.", log=True)
RANK = Panel("Rank", "effective dimensions", _stages("rank"), "How many directions are in use. Near 1: collapse.")
PROBES = {
    "probe_linear": ("linear", BLUE),
    "probe_knn": ("kNN", RED),
    "probe_linear_untrained": ("linear, untrained", GREEN),
    "probe_knn_untrained": ("kNN, untrained", YELLOW),
}
ERRORS = {"valid_wer": ("words", BLUE), "valid_cer": ("characters", RED)}
SCORES = {
    "valid_accuracy": ("accuracy", BLUE),
    "valid_top5": ("top 5", GREY),
    "valid_matthews": ("Matthews' correlation", GREEN),
    "valid_f1": ("F1", YELLOW),
    "valid_map": ("mean average precision", BLUE),
    "valid_pearson": ("Pearson", BLUE),
    "valid_spearman": ("Spearman", RED),
}
PANELS = (
    Panel(
        "Error rate", "validation", ERRORS, "Of words and characters; the model of the best is kept.", dots=True, percent=True
    ),
    Panel("Scores", "validation", SCORES, "On the validation data; the model of the best is kept.", dots=True),
    LOSS,
    STD,
    RANK,
    Panel("Probe", "accuracy", PROBES, "What simple classifiers make of frozen features.", dots=True, percent=True),
    _one("Gradient norm", "before clipping", "grad_norm", "Spikes tell of too high a learning rate.", log=True),
    _one("Update size", "share of the weights' size", "update_ratio", "Above a few percent a step is too long.", log=True),
    _one("Content of the targets", "share of variance", "target_content", "Near 0, all inputs have the same targets."),
    _one("Learning rate", "", "lr", "Warm-up, then the schedule."),
    _one("EMA decay", "share of the teacher that stays", "ema_decay", "The nearer to 1, the slower the teacher follows."),
    _one("Throughput", "samples per second", "samples_per_second", "Where it dips, something else was busy."),
    _one(
        "Waiting for data",
        "share of the time",
        "data_wait",
        "If much: more data.workers, or a faster disk.",
        percent=True,
    ),
)


def draw(
    metrics: Sequence[Mapping[str, Any]], panels: Sequence[Panel], width: float = figure.WIDTH, height: float = 3.1
) -> Any:
    """A figure with the panels side by side. A key that a line does not have, or that is no number there, leaves a gap out."""
    drawn, axes = figure.new(1, len(panels), width, height)
    for panel, each in zip(panels, np.atleast_1d(axes).flat, strict=True):
        lines = 0
        for key, (name, colour) in panel.keys.items():
            points = series(metrics, key)
            if len(points):
                each.plot(*points.T, color=colour, label=name, marker="o" if panel.dots or len(points) < 3 else None, ms=4)
                lines += 1
        _scale(each, panel)
        each.set(title=panel.title if len(panels) > 1 else "", xlabel="optimizer step", ylabel=panel.unit)
        each.grid(alpha=0.3)
        if lines > 1:
            each.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    return drawn


def has(metrics: Sequence[Mapping[str, Any]], panel: Panel) -> bool:
    """Whether any line has anything to draw."""
    return any(len(series(metrics, key)) for key in panel.keys)


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """(n, 2) steps and values, those that are numbers; of very many, the least and the greatest of each stretch."""
    found = np.array([(line["step"], line[key]) for line in metrics if line.get(key) is not None], dtype=float).reshape(-1, 2)
    found = found[np.isfinite(found[:, 1])]
    if len(found) <= 2 * POINTS:
        return found
    kept = {0, len(found) - 1}
    for stretch in np.array_split(np.arange(len(found)), POINTS - 1):
        values = found[stretch, 1]
        kept |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
    return found[sorted(kept)]


def _scale(axes: Any, panel: Panel) -> None:
    """From 0, or logarithmic, or, where values differ little, as they come."""
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.zeros(1)])
    low, high = values.min(), values.max()
    if panel.log and low > 0 and high > 30 * low:
        axes.set_yscale("log")
    elif panel.percent:
        axes.set_ylim(0, min(1, 1.1 * high) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    elif low < 0.8 * high:
        axes.set_ylim(0, None)
    if axes.get_yscale() == "linear" and not panel.percent:
        axes.ticklabel_format(axis="y", useOffset=False)
