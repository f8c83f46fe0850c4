"""Tables of a comparison, from rows made by hand."""

from data2vec.comparison.result import Comparison, Row
from data2vec.comparison.table import summary_table


def row(arm: str, evaluation: str, name: str, metric: str, mean: float, stderr: float | None = 0.01) -> Row:
    return Row(arm, evaluation, name, metric, True, {1: mean}, mean, None, stderr, None, None)


def test_summary_has_a_line_per_arm_and_a_column_per_test_set_of_the_selecting_metric() -> None:
    rows = [
        row("a", "digits", "dev", "linear accuracy", 0.9),
        row("a", "digits", "test", "linear accuracy", 0.5),
        row("a", "digits", "test", "kNN accuracy", 0.4),
        row("a", "words", "unseen speaker", "accuracy", 0.25, None),
        row("b", "digits", "test", "linear accuracy", 0.6),
    ]
    head, lines = summary_table(Comparison("a", [1], [], rows, {}, {}))
    assert head == ["arm", "digits: linear accuracy", "words, unseen speaker: accuracy"]
    assert lines == [["a", "0.5000 ± 0.0100", "0.2500"], ["b", "0.6000 ± 0.0100", "–"]]
