"""Curves of the logged metrics of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data2vec.report.style import WIDTH, new_figure
from data2vec.settings import JsonMapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, YELLOW, GREEN, GREY = "#3a7ca5", "#d1495b", "#edae49", "#2a9d8f", "#8a8a8a"
STAGES = {
    "local_encoder": ("local features", GREY),
    "student": ("student output", YELLOW),
    "target": ("targets", GREEN),
    "prediction": ("predictions", RED),
}
"""The stages of a training step: label and colour of each."""
POINTS = 200
"""Longer curves are reduced to at most twice this many points."""


@dataclass(frozen=True)
class Panel:
    """One plot: the metrics in it and how to draw them."""

    title: str
    unit: str
    keys: Mapping[str, tuple[str, str]]
    """Keys of metrics.jsonl, each with its label and colour."""
    caption: str
    """What to look for."""
    dots: bool = False
    """Mark every value, for metrics logged rarely."""
    percent: bool = False
    log: bool = False
    """Use a log axis if the values span more than a factor of 30."""


def _stages(measure: str) -> dict[str, tuple[str, str]]:
    return {f"{stage}_{measure}": shown for stage, shown in STAGES.items()}


def _single(title: str, unit: str, key: str, caption: str, percent: bool = False, log: bool = False) -> Panel:
    return Panel(title, unit, {key: (title, BLUE)}, caption, percent=percent, log=log)


LOSSES = {"loss": ("training", BLUE), "valid_loss": ("held-out data", RED)}
LOSS = Panel("Loss", "per prediction", LOSSES, "In pre-training it may rise as the targets get harder.", log=True)
STD = Panel("Standard deviation", "over positions", _stages("std"), "Near 0: every vector is the same, collapse.", log=True)
RANK = Panel("Rank", "effective dimensions", _stages("rank"), "Number of directions in use. Near 1: collapse.")
SHARES = {
    "target_position_variance": ("position", RED),
    "target_input_variance": ("input", YELLOW),
    "target_within_variance": ("within", GREEN),
}
R2 = {"r2": ("all", GREY), "content_r2": ("content", BLUE)}
PROBES = {
    "probe_linear": ("linear", BLUE),
    "probe_knn": ("kNN", RED),
    "probe_linear_untrained": ("linear, untrained", GREEN),
    "probe_knn_untrained": ("kNN, untrained", YELLOW),
}
DRIFT = {"drift_features": ("features", BLUE), "drift_weights": ("weights", RED)}
PURPLE = "#7b5ea7"
ERRORS = {
    "valid_wer": ("words", BLUE),
    "valid_cer": ("characters", RED),
    "valid_wer_greedy": ("words, greedy", GREEN),
    "valid_wer_uncased": ("words, any case", YELLOW),
    "valid_wer_shuffled": ("words, by chance", GREY),
}
SCORES = {
    "valid_accuracy": ("accuracy", BLUE),
    "valid_top5": ("top 5", PURPLE),
    "valid_matthews": ("Matthews' correlation", GREEN),
    "valid_f1": ("F1", YELLOW),
    "valid_accuracy_f1": ("mean of accuracy and F1", RED),
    "valid_map": ("mean average precision", BLUE),
    "valid_pearson": ("Pearson", BLUE),
    "valid_spearman": ("Spearman", RED),
    "valid_pearson_spearman": ("mean of both", GREEN),
    "valid_chance_accuracy": ("accuracy by chance", GREY),
    "valid_chance_map": ("by chance", GREY),
}
BALANCED = {
    "valid_balanced_accuracy": ("balanced accuracy", BLUE),
    "valid_kappa": ("Cohen's kappa", GREEN),
    "valid_weighted_f1": ("weighted F1", YELLOW),
    "valid_auroc": ("area under ROC", RED),
}
BLANKS = {"valid_empty": ("empty transcripts", BLUE), "valid_blank": ("blank frames", RED)}
PANELS = (
    Panel(
        "Error rate", "validation", ERRORS, "Word and character error rate; the best model is kept.", dots=True, percent=True
    ),
    Panel("Scores", "validation", SCORES, "On the validation data; the best model is kept.", dots=True),
    Panel("Balanced scores", "validation", BALANCED, "On classes of unequal size. Kappa is 0 by chance.", dots=True),
    Panel("d′", "validation", {"valid_dprime": ("d′", PURPLE)}, "Of several labels. 0 by chance.", dots=True),
    Panel(
        "Blanks", "validation", BLANKS, "A CTC model learns blanks first. Near 1: it writes nothing.", dots=True, percent=True
    ),
    Panel(
        "Mean squared error",
        "validation",
        {"valid_mean_squared_error": ("mean squared error", BLUE)},
        "On the validation data, in the unit of the labels squared.",
        dots=True,
        log=True,
    ),
    LOSS,
    STD,
    RANK,
    Panel(
        "Drift from the start", "", DRIFT, "From the trained model; features: 1 minus linear CKA. Near 1: forgotten.", dots=True
    ),
    Panel("Probe", "accuracy", PROBES, "Accuracy of simple classifiers on frozen features.", dots=True, percent=True),
    _single("Gradient norm", "before clipping", "grad_norm", "Spikes: the learning rate is too high.", log=True),
    _single(
        "Update/weight ratio", "update norm / weight norm", "update_ratio", "Above about 3%: updates are too large.", log=True
    ),
    Panel(
        "Variance of the targets",
        "share of the variance",
        SHARES,
        "Position alone is easy to predict. Content is in the rest: a position share near 1 means that there is none.",
        percent=True,
    ),
    Panel("Prediction R²", "", R2, "Content: after subtracting the mean at each position. Near 0: only position is predicted."),
    _single("Learning rate", "", "lr", "Warm-up, then the schedule."),
    _single("EMA decay", "per step", "ema_decay", "The closer to 1, the slower the teacher follows the student."),
    _single("Throughput", "samples per second", "samples_per_second", "Dips: the machine was busy with something else."),
    _single(
        "Data loading wait",
        "share of time",
        "data_wait",
        "If high: more data.workers, or a faster disk.",
        percent=True,
    ),
)


def plot_curves(metrics: Sequence[JsonMapping], panels: Sequence[Panel], width: float = WIDTH, height: float = 3.1) -> "Figure":
    """A figure with the panels side by side. Steps where a metric is missing or not finite are skipped."""
    figure, axes = new_figure(width, height, len(panels))
    for panel, subplot in zip(panels, axes, strict=True):
        lines = 0
        for key, (name, colour) in panel.keys.items():
            points = series(metrics, key)
            if len(points):
                subplot.plot(*points.T, color=colour, label=name, marker="o" if panel.dots or len(points) < 3 else None, ms=4)
                lines += 1
        _set_scale(subplot, panel)
        subplot.set(title=panel.title if len(panels) > 1 else "", xlabel="optimizer step", ylabel=panel.unit)
        subplot.grid(alpha=0.3)
        if lines > 1:
            subplot.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, frameon=False)
    return figure


def has_values(metrics: Sequence[JsonMapping], panel: Panel) -> bool:
    """Whether the panel has any value to plot."""
    return any(len(series(metrics, key)) for key in panel.keys)


def series(metrics: Sequence[JsonMapping], key: str) -> np.ndarray:
    """(n, 2): steps and finite values of a metric; long series keep the minimum and maximum of each interval."""
    points = np.array([(line["step"], line[key]) for line in metrics if line.get(key) is not None], dtype=float).reshape(-1, 2)
    points = points[np.isfinite(points[:, 1])]
    if len(points) <= 2 * POINTS:
        return points
    selected = {0, len(points) - 1}
    for interval in np.array_split(np.arange(len(points)), POINTS - 1):
        values = points[interval, 1]
        selected |= {int(interval[values.argmin()]), int(interval[values.argmax()])}
    return points[sorted(selected)]


def _set_scale(axes: "Axes", panel: Panel) -> None:
    """A log axis, an axis from 0, or, for values that differ little or are negative, the default."""
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.zeros(1)])
    low, high = values.min(), values.max()
    if panel.log and low > 0 and high > 30 * low:
        axes.set_yscale("log")
    elif panel.percent:
        axes.set_ylim(0, min(1, 1.1 * high) or 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%")
    elif 0 <= low < 0.8 * high:
        axes.set_ylim(0, None)
    if axes.get_yscale() == "linear" and not panel.percent:
        axes.ticklabel_format(axis="y", useOffset=False)
