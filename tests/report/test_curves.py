import numpy as np

from data2vec.report import curves
from data2vec.report.curves import LOSS, RANK, STD, Panel


def lines(n: int, **values: float) -> list[dict[str, float]]:
    return [{"step": step, "loss": 1 / step, **values} for step in range(1, n + 1)]


def test_what_is_missing_or_no_number_leaves_a_gap() -> None:
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3}, {"step": 4, "loss": None}]
    assert curves.series(metrics, "loss").tolist() == [[1, 2]]
    assert curves.has(metrics, LOSS) and not curves.has(metrics, STD)
    curves.draw(metrics, [LOSS, STD])


def test_of_many_points_the_spikes_are_kept() -> None:
    metrics = lines(5000)
    metrics[1234]["loss"], metrics[4321]["loss"] = 50.0, -50.0
    points = curves.series(metrics, "loss")
    assert len(points) <= 2 * curves.POINTS
    assert [1235, 50] in points.tolist() and [4322, -50] in points.tolist()
    assert points[0, 0] == 1 and points[-1, 0] == 5000
    assert (np.diff(points[:, 0]) > 0).all()


def axis(panel: Panel, metrics: list[dict[str, float]]) -> tuple[str, tuple[float, float]]:
    axes = curves.draw(metrics, [panel]).axes[0]
    return axes.get_yscale(), axes.get_ylim()


def test_the_axis_fits_the_values() -> None:
    assert axis(LOSS, lines(100))[0] == "log"
    scale, (low, _) = axis(LOSS, lines(5))
    assert (scale, low) == ("linear", 0)
    scale, (low, _) = axis(RANK, [*lines(5, target_rank=100), {"step": 6, "target_rank": 99}])
    assert scale == "linear" and low > 90


def test_each_stage_has_its_line_and_its_name() -> None:
    metrics = lines(3, features_std=1, student_std=2, target_std=3, prediction_std=4)
    loss, std = curves.draw(metrics, [LOSS, STD]).axes
    assert [line.get_label() for line in loss.lines] == ["Loss"] and loss.get_legend() is None
    assert [text.get_text() for text in std.get_legend().get_texts()] == [name for name, _ in curves.STAGES.values()]
