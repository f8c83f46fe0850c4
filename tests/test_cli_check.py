"""The command `data2vec check`."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data2vec import cli
from helpers.command import exit_status

COMMAND = (sys.executable, "-m", "data2vec", "check")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Nine clips of a second, two of them the same, and one cut short."""
    import soundfile

    folder = tmp_path / "clips"
    folder.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal((9, 16000))
    for i, clip in enumerate(noise):
        soundfile.write(folder / f"{i}.flac", noise[0] if i == 8 else clip, 16000)
    torn = (folder / "1.flac").read_bytes()[:10000]
    (folder / "torn.flac").write_bytes(torn)
    return folder


def test_check_reports_counts_duplicates_and_unreadable_files(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", str(clips), "--workers", "0", "--json", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[1].split() == ["examples", "10;", "9", "readable,", "1", "unreadable;", *lines[1].split()[-2:]]
    assert any("0.flac = 8.flac" in line for line in lines)
    assert any("torn.flac: " in line for line in lines)
    assert lines[-1] == f"Ready: data2vec pretrain speech/v2-tiny data.train={clips}"
    assert json.loads((tmp_path / "found.json").read_text())["parts"][0]["examples"] == 10


def test_check_suggests_a_command_that_trains(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(clips), "--workers", "0"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("Ready: data2vec ").split()
    small = ["encoder.width=16", "encoder.layers=3", "encoder.heads=2", "encoder.ffn_width=32", "train.device=cpu"]
    run = ["--out", str(tmp_path / "run"), "train.steps=1", "data.workers=0", "objective.target.top_k=2", "log.report=false"]
    assert cli.main([*command, *run, *small]) == 0


def test_check_of_invalid_input_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.xyz").write_text("none")
    for words, printed in (
        ([f"{tmp_path}/nowhere"], "there is no such folder or file"),
        ([str(tmp_path / "other")], "no audio, image or text found; found"),
        ([str(tmp_path), "--tokenizer", str(tmp_path)], "no tokenizer in this folder"),
    ):
        assert cli.main(["check", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("data2vec: error: ") and printed in line


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_leaves_no_worker(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "d").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "d" / "0.png")
    for i in range(1, 3000):
        (tmp_path / "d" / f"{i}.png").symlink_to(tmp_path / "d" / "0.png")
    child = subprocess.Popen(
        [*COMMAND, str(tmp_path / "d"), "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    while not children.read_text():
        time.sleep(0.05)
    workers = children.read_text().split()
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=300)
    assert child.returncode == 130
    assert printed.splitlines() == ["data2vec: stopped: interrupted"]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_check_by_a_built_in_modality_measures_its_settings(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["modality.fbank.bins=16", "modality.frames=64", "data.batch_seconds=6", "data.micro_batch_seconds=6"]
    assert cli.main(["check", str(clips), "--modality", "sound", "data.max_corrupt=0.5", *small]) == 0
    printed = capsys.readouterr().out
    assert "examples      10; 9 readable, 1 unreadable" in printed and "(96, 16) (9)" in printed
    assert "measured      modality.mean=" in printed and " modality.std=" in printed
    assert "data2vec pretrain sound/v2-tiny" in printed
    assert cli.main(["check", str(clips), "--modality", "sond"]) == 2


def test_data_train_is_refused_beside_the_data_that_is_checked(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--kind", "recording"), ("--modality", "sound")):
        assert exit_status("check", str(clips), *words, f"data.train={clips.parent}") == 2
        assert "DATA and data.train name the data twice; omit data.train" in capsys.readouterr().err
