"""The conformance kit: modalities that keep the contract pass, and each broken one fails at the check of what it breaks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data2vec
from data2vec import cli
from data2vec.conformance.checks import CHECKS
from helpers.broken_modalities import BROKEN, Padded, Streamed
from helpers.command import exit_status
from helpers.recordings import write_folder
from helpers.sensor_modality import Sensor

NAME = "helpers.sensor_modality:Sensor"


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """64 recordings of three sensors, 160 samples each."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("readings") / "readings.npy"
    waves = np.sin(np.arange(160)[:, None] / 5 + 6 * rng.random((64, 1, 3)))
    np.save(path, (waves + 0.1 * rng.standard_normal((64, 160, 3))).astype(np.float32))
    return str(path)


def statuses(report: data2vec.ModalityReport) -> dict[str, str]:
    return {result.name: result.status for result in report.results}


def stop_after(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the checks after this one, which a broken modality may fail, too."""
    names = list(CHECKS)[: list(CHECKS).index(check) + 1]
    monkeypatch.setattr("data2vec.conformance.check_modality.CHECKS", {name: CHECKS[name] for name in names})


def test_every_check_is_reported_in_order_for_a_modality_that_keeps_the_contract(readings: str) -> None:
    report = data2vec.check_modality(Sensor, readings, {"data.label": "mean"})
    assert list(statuses(report)) == list(CHECKS)
    assert not report.failed, str(report)
    skipped = {name for name, status in statuses(report).items() if status == "skipped"}
    assert skipped == {"padding", "chunks", "input features", "streams"}
    assert str(report).splitlines()[-1] == f"{NAME}: {len(CHECKS) - 4} ok, 0 failed, 4 skipped"


@pytest.mark.parametrize(("modality", "check"), [(Padded, "padding"), (Streamed, "streams")])
def test_modality_that_pads_or_streams_passes_what_is_skipped_otherwise(
    modality: type[Sensor], check: str, readings: str
) -> None:
    report = data2vec.check_modality(modality, readings)
    assert not report.failed, str(report)
    assert statuses(report)[check] == "ok"


@pytest.mark.parametrize(("modality", "check"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", None))
def test_broken_modality_fails_first_at_the_check_of_what_it_breaks(
    modality: type[Sensor], check: str, readings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(check, monkeypatch)
    report = data2vec.check_modality(modality, readings, {"data.label": "mean"})
    assert report.failed == [check], str(report)
    assert all("\n" not in result.text and result.text for result in report.results)


@pytest.fixture
def vision_data(tmp_path: Path, picture: Any) -> Path:
    for index in range(8):
        picture(seed=index).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def text_data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(" ".join(rng.choice(words, rng.integers(3, 20))) for _ in range(80)))
    return tmp_path


@pytest.fixture
def speech_data(clips: Any) -> Path:
    folder: Path = clips(8, first=0.5)
    return folder


@pytest.fixture
def signal_data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "recordings", seconds=4)


BUILT_IN = {
    "vision": {"data.batch_size": 4, "data.micro_batch_size": 4},
    "text": {"modality.vocab_size": 300, "data.batch_size": 2, "data.micro_batch_size": 2, "data.block_size": 16},
    "speech": {"data.batch_seconds": 2, "data.micro_batch_seconds": 2, "data.max_seconds": 1},
    "signal": {"data.batch_size": 4, "data.micro_batch_size": 4, "modality.window_seconds": 1.28},
}


@pytest.mark.parametrize("modality", BUILT_IN)
def test_built_in_modality_keeps_the_contract(modality: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(f"{modality}_data")
    report = data2vec.check_modality(modality, str(data), BUILT_IN[modality] | {"data.workers": 0})
    assert not report.failed, str(report)
    assert sum(status == "ok" for status in statuses(report).values()) >= 15, str(report)


def test_command_prints_a_line_a_check_and_exits_with_0(
    readings: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after("shapes", monkeypatch)
    assert cli.main(["check-modality", NAME, "--data", readings, "modality.window=16", "data.label=mean"]) == 0
    *lines, summary = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in list(CHECKS)[: len(lines)]]
    assert lines[-1].split()[1] == "shapes"
    assert "input (4, 10, 16, 3)" in "\n".join(lines)
    assert summary.startswith(f"{NAME}: ")


def test_command_names_what_to_fix_and_exits_with_2(
    readings: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after("load", monkeypatch)
    assert cli.main(["check-modality", "helpers.broken_modalities:GlobalRandomness", "--data", readings]) == 2
    printed = capsys.readouterr()
    assert "failed  load" in printed.out and "draw from `rng` alone" in printed.out
    assert printed.err == "data2vec: error: helpers.broken_modalities:GlobalRandomness fails 1 of 3 checks: load\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere:Thing", "--data", "x.npy"), "'nowhere:Thing' cannot be imported"),
        (("pathlib:Path", "--data", "x.npy"), "is not a subclass of data2vec.modalities.base.Modality"),
        ((NAME, "--data", "x.npy", "modality.windw=3"), "did you mean 'window'?"),
        ((NAME,), "the following arguments are required: --data"),
    ],
)
def test_command_with_a_wrong_argument_is_a_user_error(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("check-modality", *words) == 2
    assert message in capsys.readouterr().err
