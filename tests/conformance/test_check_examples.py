"""`data2vec check --modality`: a complete data set, as a modality outside the package reads it."""

import json
from pathlib import Path

import numpy as np
import pytest

import data2vec
from data2vec import cli
from data2vec.data.dataset import ExampleDataset
from data2vec.errors import CorruptExample, UserError
from helpers.sensor_modality import Readings, Sensor

NAME = "helpers.sensor_modality:Sensor"


class TornReadings(Readings):
    """Every tenth recording cannot be decoded."""

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> np.ndarray:
        if index % 10 == 0:
            raise CorruptExample(f"recording {index}: torn")
        return super().load(index, limit, rng)


class Torn(Sensor):
    def examples(self, rows: np.ndarray) -> ExampleDataset:
        return TornReadings(rows.reshape(len(rows), -1, self.settings.window, 3))


@pytest.fixture
def readings(tmp_path: Path) -> str:
    path = tmp_path / "readings.npy"
    np.save(path, np.random.default_rng(0).standard_normal((40, 160, 3)))
    return str(path)


def test_report_counts_examples_positions_shapes_and_classes(
    readings: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", readings, "--modality", NAME, "--labels", "mean", "--json", str(tmp_path / "found.json")]
    assert cli.main([*words, "modality.window=16"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[:5] == [
        f"{readings}: {NAME}",
        "  examples      40, all readable",
        "  costs         all 1",
        "  positions     all 10",
        "  input         (10, 16, 3) (40)",
    ]
    assert printed.splitlines()[-1] == f"Ready: data2vec pretrain RECIPE --modality {NAME} data.train={readings}"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["examples"] == sum(found["classes"].values()) == 40


def test_unreadable_examples_are_counted_and_named(readings: str) -> None:
    report = data2vec.check_examples(Torn, readings)
    assert report.unreadable == [f"recording {index}: torn" for index in (0, 10, 20, 30)]
    assert "  examples      40; 36 readable, 4 unreadable" in str(report)
    assert str(report).splitlines()[-1] == (
        "Fix first: 4 examples cannot be read, data.max_corrupt tolerates 1: repair or remove them."
    )


def test_data_with_less_than_a_batch_is_not_ready(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((3, 160, 3)))
    assert "Not ready: a step needs 16" in str(data2vec.check_examples(Sensor, tmp_path / "few.npy"))


def test_data_of_which_nothing_can_be_read_is_a_user_error(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((1, 160, 3)))
    with pytest.raises(UserError, match=r"one\.npy: none of 1 examples can be read, such as recording 0: torn"):
        data2vec.check_examples(Torn, tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--modality", NAME, "--kind", "audio"),
            "--kind: has no effect with --modality, whose settings are key=value; omit it",
        ),
        (
            ("--kind", "text", "modality.window=16"),
            "modality.window: has no effect without --modality, but for recordings",
        ),
        (
            ("--kind", "text", "data.split=5"),
            "data.split: 5 is no text; to name what reads as a number, quote it: 'data.split=\"5\"'",
        ),
        (("--recipe", "vision/v2-tiny"), "--recipe: has no effect on recordings; omit it"),
        (("--modality", NAME, "modality.windw=3"), "did you mean 'window'?"),
    ],
)
def test_option_without_effect_is_refused(
    words: tuple[str, ...], message: str, readings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", readings, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
