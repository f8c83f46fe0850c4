import numpy as np

from data2vec.report.curves import LOSS, PANELS, POINTS, R2, RANK, STAGES, STD, Panel, has_values, plot_curves, series
from data2vec.tasks.metrics import NAMES

R2_PANEL = Panel("Prediction R²", "", R2, "")


def lines(n: int, **values: float) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, **values} for step in range(1, n + 1)]


def test_series_skips_missing_and_non_finite_values() -> None:
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3}, {"step": 4, "loss": None}]
    assert series(metrics, "loss").tolist() == [[1, 2]]
    assert has_values(metrics, LOSS) and not has_values(metrics, STD)
    plot_curves(metrics, [LOSS, STD])


def test_every_score_and_its_chance_has_a_curve() -> None:
    drawn = {key for panel in PANELS for key in panel.keys}
    assert {f"valid_{name}" for name in NAMES} <= drawn
    assert {"valid_chance_accuracy", "valid_chance_map", "valid_wer_shuffled", "valid_empty", "valid_blank"} <= drawn


def test_series_of_many_points_keeps_spikes() -> None:
    metrics = lines(5000)
    metrics[1234]["loss"], metrics[4321]["loss"] = 50.0, -50.0
    points = series(metrics, "loss")
    assert len(points) <= 2 * POINTS
    assert [1235, 50] in points.tolist() and [4322, -50] in points.tolist()
    assert points[0, 0] == 1 and points[-1, 0] == 5000
    assert (np.diff(points[:, 0]) > 0).all()


def axis(panel: Panel, metrics: list[dict[str, float]]) -> tuple[str, tuple[float, float]]:
    axes = plot_curves(metrics, [panel]).axes[0]
    return axes.get_yscale(), axes.get_ylim()


def test_plot_curves_scales_the_axis_to_the_values() -> None:
    assert axis(LOSS, lines(100))[0] == "log"
    scale, (low, _) = axis(LOSS, lines(5))
    assert (scale, low) == ("linear", 0)
    scale, (low, _) = axis(RANK, [*lines(5, target_rank=100), {"step": 6, "target_rank": 99}])
    assert scale == "linear" and low > 90
    assert axis(R2_PANEL, [*lines(3, r2=0.5), {"step": 4, "r2": -1.0}])[1][0] < -1


def test_plot_curves_labels_a_line_per_stage() -> None:
    metrics = lines(3, local_encoder_std=1, student_std=2, target_std=3, prediction_std=4)
    loss, std = plot_curves(metrics, [LOSS, STD]).axes
    assert [line.get_label() for line in loss.lines] == ["training"] and loss.get_legend() is None
    metrics[-1]["valid_loss"] = 1.5
    (loss,) = plot_curves(metrics, [LOSS]).axes
    assert [line.get_label() for line in loss.lines] == ["training", "held-out data"]
    assert loss.lines[1].get_xydata().tolist() == [[metrics[-1]["step"], 1.5]]
    assert [text.get_text() for text in std.get_legend().get_texts()] == [name for name, _ in STAGES.values()]


def test_drift_has_a_curve_of_runs_that_log_it() -> None:
    (panel,) = (panel for panel in PANELS if "drift_features" in panel.keys)
    assert has_values(lines(2, drift_features=0.1), panel) and not has_values(lines(2), panel)
