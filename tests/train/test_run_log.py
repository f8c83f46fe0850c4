"""RUN/log.txt: what it holds, how much, and what it never writes into."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec.errors import get_logger
from data2vec.train import logger
from data2vec.train.logger import RunLog
from helpers.command import exit_status
from helpers.runs import crash_before


def test_log_holds_the_plan_the_steps_and_the_warnings_of_all_starts(tiny2: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with crash_before(5):
        data2vec.pretrain("vision/v2-tiny", overrides=tiny2, out=run)
    data2vec.pretrain("vision/v2-tiny", overrides=tiny2, out=run, resume=True)
    text = (run / "log.txt").read_text(encoding="utf-8")
    assert text.count("data        40 examples") == 2
    assert [text.count(f"STATUS step {step}/8: loss") for step in (1, 4, 5, 8)] == [1, 1, 1, 1]
    assert "WARNING train.steps: 8 is too short for the teacher" in text
    assert logging.getLogger("data2vec").handlers == []


def test_steps_are_shown_with_the_time_that_is_left(
    tiny2: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data2vec.pretrain("vision/v2-tiny", overrides=tiny2, out=tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.endswith(" left") for line in lines] == [False, *[True] * 6, False]


def test_a_quiet_run_prints_results_alone_and_logs_all(
    tiny2: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{key}={value}" for key, value in tiny2.items()]
    assert exit_status("pretrain", "vision/v2-tiny", "--quiet", "--out", str(tmp_path / "run"), *words) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"model: {tmp_path}/run/model" in printed.out
    assert "step 8/8" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")


def test_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "MAX_LOG_BYTES", 1000)
    log = RunLog(tmp_path)
    for number in range(200):
        log.status(f"message {number}")
    log.close()
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert len(text) < 1100
    assert text.splitlines()[-1].endswith("message 199")
    assert all(line.startswith("20") for line in text.splitlines()), "whole lines are kept"


def test_nothing_is_written_through_a_link_or_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine", encoding="utf-8")
    for make in (lambda path: path.symlink_to(tmp_path / "other"), os.mkfifo):
        path = tmp_path / "log.txt"
        make(path)
        log = RunLog(tmp_path)
        log.status("message")
        log.close()
        path.unlink()
    assert (tmp_path / "other").read_text(encoding="utf-8") == "mine"


def test_names_in_messages_are_one_line_of_text(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    get_logger("data2vec.test").warning("skipped: %s", "a\x1b[31m\n2026 STATUS b")
    log.close()
    assert len((tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()) == 1


def test_warnings_are_printed_as_without_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []  # those of pytest
    try:
        log = RunLog(tmp_path)
        get_logger("data2vec.test").warning("a warning")
        log.close()
    finally:
        root.handlers = handlers
    assert capsys.readouterr().err == "a warning\n"
