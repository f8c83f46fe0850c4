"""The command `data2vec adapt`."""

import json
from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec import cli
from helpers.command import exit_status
from helpers.pictures import write_pictures

TINY: dict[str, Any] = {
    **{"train.steps": 3, "train.device": "cpu", "log.report": False, "data.workers": 0},
    **{"encoder.width": 16, "encoder.layers": 3, "encoder.heads": 2, "encoder.ffn_width": 32},
    **{"objective.decoder.width": 16, "objective.target.top_k": 2, "data.batch_size": 8, "data.micro_batch_size": 8},
}
SMALL = ("data.workers=0", "log.report=false")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"), 20)


@pytest.fixture(scope="module")
def released(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "released"
    return data2vec.pretrain("vision/v2-tiny", str(images), TINY, folder).folder


def errors(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert exit_status("adapt", *words) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_adapt_prints_a_table_and_where_the_results_are(
    released: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ("adapt", str(released), "--data", str(images), "--out", str(out), "--steps", "3", "--device", "cpu", *SMALL)
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((out / "adapt.json").read_text())["rows"]}
    assert f"{rows['adapted']['valid_loss']:.4f}" in printed
    assert f"all numbers: {out / 'adapt.json'}" in printed and f"model: {out / 'model'}" in printed
    assert cli.main(["adapt", "--resume", str(out)]) == 0
    assert f"{rows['adapted']['valid_loss']:.4f}" in capsys.readouterr().out


def test_dry_run_prints_the_plan_and_writes_nothing(
    released: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(["adapt", str(released), "--data", str(images), "--out", str(out), "--dry-run", *SMALL]) == 0
    assert "warm-up     50 steps" in capsys.readouterr().out and not out.exists()


def test_wrong_words_are_refused_in_one_line(
    released: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "MODEL is missing" in errors(capsys, "--data", str(images))
    assert "no training data" in errors(capsys, str(released))
    run = ("--resume", str(released))
    assert "--data: is recorded in the run" in errors(capsys, *run, "--data", str(images))
    assert "cannot be used with --resume" in errors(capsys, *run, "--dry-run")
    assert "is not the run of an adaptation" in errors(capsys, *run)
    assert "--keep-labels colour has no effect" in errors(
        capsys, str(released), "--data", str(images), "--keep-labels", "colour"
    )
    (tmp_path / "taken").write_text("")
    assert "is a file" in errors(capsys, str(released), "--data", str(images), "--out", str(tmp_path / "taken"))
