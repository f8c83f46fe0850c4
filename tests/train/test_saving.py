"""Every end of a run saves: a checkpoint where one can be written, one line why, and the command to resume."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec import cli
from data2vec.console import progress
from data2vec.errors import Interrupted, RunStopped, Unhealthy, UserError
from data2vec.run_dir import Run, checkpoint_damage
from data2vec.train import checkpoint, logger, provenance, trainer
from helpers.locks import locked_by_another_process

TIMINGS = ("seconds", "samples_per_second", "data_wait")


def pretrain(out: Path, settings: dict[str, Any], resume: bool = False, **more: Any) -> Run:
    return data2vec.pretrain("vision/v1-tiny", overrides=settings | more, out=out, resume=resume)


def measured(run: Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in run.metrics]


def assert_equal(run: Run, expected: Run) -> None:
    assert measured(run) == measured(expected)
    weights, wanted = (load_file(each.model / "model.safetensors") for each in (run, expected))
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def whole_checkpoints(run: Run) -> list[str]:
    return [path.name for path in run.checkpoints if checkpoint_damage(path) is None]


def at_step(number: int, action: Callable[[], Any]) -> pytest.MonkeyPatch:
    """Let `action` happen before step `number` is made; to be undone."""
    patch, step = pytest.MonkeyPatch(), trainer.TrainStep.__call__

    def acting(self: Any, now: int, *rest: Any, **more: Any) -> Any:
        if now == number:
            action()
        return step(self, now, *rest, **more)

    patch.setattr(trainer.TrainStep, "__call__", acting)
    return patch


def stopped_run(out: Path, settings: dict[str, Any], number: int, action: Callable[[], Any], **more: Any) -> Exception:
    """The error with which a run ends if `action` happens before step `number`."""
    patch = at_step(number, action)
    try:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            pretrain(out, settings, **more)
    finally:
        patch.undo()
    return raised.value


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbs."""
    return pretrain(tmp_path_factory.mktemp("whole") / "run", tiny)


@pytest.fixture
def own_pictures(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be changed."""
    return Path(shutil.copytree(pictures, tmp_path / "pictures"))


def test_error_in_a_step_saves_the_last_complete_step_and_resumes_bit_equal(
    tiny: dict[str, Any], whole: Run, tmp_path: Path
) -> None:
    error = stopped_run(tmp_path / "run", tiny, 6, lambda: 1 / 0)
    assert isinstance(error, ZeroDivisionError)
    run = Run(tmp_path / "run")
    assert error.__notes__ == [f"checkpoint saved at step 5; resume with: data2vec pretrain --resume {run.folder}"]
    assert whole_checkpoints(run) == ["step-5", "step-3"]
    assert cli.main(["pretrain", "--resume", str(run.folder)]) == 0
    assert_equal(run, whole)


def test_checkpoints_in_the_background_are_complete_when_a_run_stops_and_resume_bit_equal(
    tiny: dict[str, Any], whole: Run, tmp_path: Path
) -> None:
    settings = tiny | {"train.async_checkpoints": True}
    error = stopped_run(tmp_path / "run", settings, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert isinstance(error, Interrupted)
    assert whole_checkpoints(Run(tmp_path / "run")) == ["step-5", "step-3"]
    error = stopped_run(tmp_path / "run", settings, 7, lambda: 1 / 0, resume=True)
    assert "checkpoint saved at step 6" in error.__notes__[0]
    run = pretrain(tmp_path / "run", settings, resume=True)
    assert whole_checkpoints(run)[0] == whole_checkpoints(whole)[0]
    assert_equal(run, whole)


def test_checkpoint_that_cannot_be_written_in_the_background_stops_the_run(
    tiny: dict[str, Any], whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-6" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(tensors, path)

    settings = tiny | {"train.async_checkpoints": True}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(RunStopped, match=r"disk full: .*the latest complete checkpoint is step-3"):
            pretrain(tmp_path / "run", settings)
    assert_equal(pretrain(tmp_path / "run", settings, resume=True), whole)


def test_run_that_diverges_or_is_interrupted_twice_waits_for_its_checkpoint_in_the_background(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, slow = checkpoint.save_file, threading.Event()
    monkeypatch.setattr(checkpoint, "save_file", lambda *arguments: (slow.wait(0.5), write(*arguments)))
    settings = tiny | {"train.async_checkpoints": True, "train.checkpoint_every": 3}
    metrics = trainer.Trainer._metrics

    def diverges(self: Any, output: Any) -> Any:
        return metrics(self, output) | ({"loss": float("nan")} if self.step == 4 else {})

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_metrics", diverges)
        with pytest.raises(Unhealthy, match="the latest complete checkpoint is step-3"):
            pretrain(tmp_path / "nan", settings)

    def interrupt() -> None:
        raise KeyboardInterrupt

    patch = at_step(4, interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "twice", settings)
    patch.undo()
    assert whole_checkpoints(Run(tmp_path / "twice"))[0] == "step-3"


def test_write_that_fails_while_a_run_diverges_is_said(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, metrics, diverged = checkpoint.save_file, trainer.Trainer._metrics, threading.Event()

    def full(tensors: Any, path: Path) -> None:
        if "step-3" in str(path):
            diverged.wait(60)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(tensors, path)

    def diverges(self: Any, output: Any) -> Any:
        if self.step == 4:
            diverged.set()
        return metrics(self, output) | ({"loss": float("nan")} if self.step == 4 else {})

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(trainer.Trainer, "_metrics", diverges)
    with pytest.raises(Unhealthy, match="the latest complete checkpoint is step-0"):
        pretrain(tmp_path / "run", tiny | {"train.async_checkpoints": True, "train.checkpoint_every": 3})
    assert "disk full" in caplog.text


def test_error_before_the_first_step_leaves_a_checkpoint_of_step_0(tiny: dict[str, Any], whole: Run, tmp_path: Path) -> None:
    error = stopped_run(tmp_path / "run", tiny, 1, lambda: 1 / 0)
    assert "checkpoint saved at step 0" in error.__notes__[0]
    assert_equal(pretrain(tmp_path / "run", tiny, resume=True), whole)


def test_error_in_the_middle_of_an_update_does_not_save_it(
    tiny: dict[str, Any], whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        original = trainer.TrainStep.__init__

        def fails_at_5(self: Any, objective: Any, *rest: Any) -> None:
            original(self, objective, *rest)
            after = objective.after_step
            objective.after_step = lambda step: 1 / 0 if step == 5 else after(step)

        patch.setattr(trainer.TrainStep, "__init__", fails_at_5)
        with pytest.raises(ZeroDivisionError) as raised:
            pretrain(tmp_path / "run", tiny)
    assert raised.value.__notes__[0].startswith("the latest complete checkpoint is step-3; resume with: data2vec pretrain")
    assert_equal(pretrain(tmp_path / "run", tiny, resume=True), whole)


def test_error_in_an_evaluation_keeps_the_metrics_of_its_step(
    tiny: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = tiny | {"data.valid": str(pictures), "data.valid_split": "all", "probe.every": 5}
    with monkeypatch.context() as patch:
        evaluate = data2vec.train.pretrain.PretrainTask.evaluate
        fails = lambda self, step, run: 1 / 0 if step == 5 else evaluate(self, step, run)  # noqa: E731
        patch.setattr(data2vec.train.pretrain.PretrainTask, "evaluate", fails)
        with pytest.raises(ZeroDivisionError) as raised:
            pretrain(tmp_path / "run", valid)
    assert "checkpoint saved at step 5" in raised.value.__notes__[0]
    run = pretrain(tmp_path / "run", valid, resume=True)
    assert [line["step"] for line in run.metrics] == list(range(1, 9))


def test_command_line_reports_why_what_was_saved_and_how_to_resume(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{key}={value}" for key, value in tiny.items()]
    patch = at_step(4, lambda: 1 / 0)
    try:
        assert cli.main(["pretrain", "vision/v1-tiny", "--out", str(tmp_path / "run"), *words]) == 1
    finally:
        patch.undo()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data2vec: failed")]
    assert line.startswith("data2vec: failed: ZeroDivisionError: division by zero (")
    assert f"; checkpoint saved at step 3; resume with: data2vec pretrain --resume {tmp_path}/run" in line


def kill_worker(number: int) -> None:
    worker = multiprocessing.active_children()[0]
    assert worker.pid
    os.kill(worker.pid, number)
    if number == signal.SIGKILL:
        worker.join()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, r"process \d+, which loads data, was killed by SIGKILL; if memory ran out, lower data.workers"),
        (signal.SIGSTOP, r"data.timeout_minutes: the processes that load data delivered nothing for 0.01 minutes"),
    ],
    ids=["killed", "hung"],
)
def test_worker_that_dies_or_hangs_stops_the_run_after_a_checkpoint(
    number: int, reason: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    long = {"train.steps": 1000, "train.checkpoint_every": 1000, "log.every": 500}
    loading = long | {"data.workers": 1, "data.timeout_minutes": 0.01 if number == signal.SIGSTOP else 1.0}
    error = stopped_run(tmp_path / "run", tiny | loading, 4, lambda: kill_worker(number))
    assert isinstance(error, RunStopped)
    assert re.match(reason, str(error))
    run = Run(tmp_path / "run")
    saved = int(whole_checkpoints(run)[0][5:])
    assert saved >= 3
    assert f"checkpoint saved at step {saved}" in error.__notes__[0]
    assert not multiprocessing.active_children()
    pretrain(run.folder, tiny | long, resume=True, **{"train.steps": saved + 1})


def test_workers_that_cannot_start_stop_the_run_with_a_setting_that_helps(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_shared_memory(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(multiprocessing, "Queue", no_shared_memory)
    with pytest.raises(RunStopped, match=r"cannot start .*load in the training process by data\.workers=0") as raised:
        pretrain(tmp_path / "run", tiny, **{"data.workers": 1})
    assert "checkpoint saved at step 0" in raised.value.__notes__[0]


def test_data_that_vanishes_stops_the_run_and_resumes_bit_equal_when_it_is_back(
    tiny: dict[str, Any], whole: Run, own_pictures: Path, tmp_path: Path
) -> None:
    settings = tiny | {"data.train": str(own_pictures)}
    away = tmp_path / "away"
    error = stopped_run(tmp_path / "run", settings, 4, lambda: own_pictures.rename(away))
    assert isinstance(error, RunStopped)
    assert "examples" in str(error)
    assert "can" in str(error)
    assert "checkpoint saved at step 4" in error.__notes__[0]
    away.rename(own_pictures)
    assert_equal(pretrain(tmp_path / "run", settings, resume=True), whole)


@pytest.mark.parametrize("number", [pytest.param(errno.EROFS, marks=pytest.mark.slow), errno.EIO, errno.ENOSPC])
def test_disk_that_cannot_be_written_is_named_with_the_checkpoint_to_resume_from(
    number: int, tiny: dict[str, Any], whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logger.RunLogger.log

    def fails(self: Any, line: Any, *others: Any) -> None:
        if line["step"] == 5:
            patch.setattr(provenance, "_write_starts", cannot_write)
            cannot_write()
        log(self, line, *others)

    def cannot_write(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(logger.RunLogger, "log", fails)
        with pytest.raises(RunStopped, match="the latest complete checkpoint is step-3") as raised:
            pretrain(tmp_path / "run", tiny)
    assert "cannot be written" in str(raised.value) or "disk full" in str(raised.value)
    assert_equal(pretrain(tmp_path / "run", tiny, resume=True), whole)


def test_checkpoint_that_cannot_be_saved_after_an_error_is_reported_with_it(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        monkeypatch.setattr(checkpoint, "save_file", lambda *_: 1 / 0)
        raise MemoryError

    error = stopped_run(tmp_path / "run", tiny, 5, fail)
    assert isinstance(error, RunStopped)
    assert str(error).startswith("out of memory: use a smaller micro-batch")
    assert "no checkpoint could be saved (division by zero); the latest complete checkpoint is step-3" in error.__notes__[0]


def test_hangup_saves_and_is_ignored_under_nohup(tiny: dict[str, Any], tmp_path: Path) -> None:
    def hang_up() -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    error = stopped_run(tmp_path / "run", tiny, 4, hang_up)
    assert isinstance(error, Interrupted)
    assert error.signal == signal.SIGHUP
    assert "checkpoint saved at step 4; resume with: data2vec pretrain" in str(error)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    patch = at_step(6, hang_up)
    try:
        assert pretrain(tmp_path / "run", tiny, resume=True).metrics[-1]["step"] == 8
    finally:
        patch.undo()
        signal.signal(signal.SIGHUP, before)


def test_closed_terminal_does_not_end_a_run(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(progress.tqdm, "write", closed)
    monkeypatch.setattr(progress.tqdm, "update", closed)
    assert pretrain(tmp_path / "run", tiny).metrics[-1]["step"] == 8


def change_size(pictures: Path) -> None:
    with (pictures / "07.png").open("ab") as file:
        file.write(b"more")


def change_name(pictures: Path) -> None:
    (pictures / "07.png").rename(pictures / "99.png")


def change_number(pictures: Path) -> None:
    shutil.copy(pictures / "07.png", pictures / "99.png")


@pytest.mark.parametrize(("change", "said", "streaming"), [
    (change_size, "names, sizes or order", False),
    (change_number, "has changed since", True),
    pytest.param(change_name, "names, sizes or order", False, marks=pytest.mark.slow),
    pytest.param(change_number, "has changed since", False, marks=pytest.mark.slow),
    pytest.param(change_size, "names, sizes or order", True, marks=pytest.mark.slow),
    pytest.param(change_name, "names, sizes or order", True, marks=pytest.mark.slow),
])  # fmt: skip
def test_resume_on_changed_data_is_refused_unless_allowed(
    change: Callable[[Path], None], said: str, streaming: bool, tiny: dict[str, Any], own_pictures: Path, tmp_path: Path
) -> None:
    streamed = {"data.streaming": True, "data.num_streams": 4, "data.shuffle_buffer": 32} if streaming else {}
    settings = tiny | {"data.train": str(own_pictures), "train.steps": 3, "log.every": 100} | streamed
    pretrain(tmp_path / "run", settings)
    change(own_pictures)
    with pytest.raises(UserError, match=r"has changed since step 3: .*data\.allow_changes=true") as raised:
        pretrain(tmp_path / "run", settings, resume=True, **{"train.steps": 5})
    assert said in str(raised.value)
    allowed = {"train.steps": 5, "data.allow_changes": True}
    assert pretrain(tmp_path / "run", settings, resume=True, **allowed).metrics[-1]["step"] == 5
    pretrain(tmp_path / "run", settings, resume=True, **{"train.steps": 6})  # the new data is what counts now


def test_resume_on_data_that_only_moved_in_time_is_exact(
    tiny: dict[str, Any], whole: Run, own_pictures: Path, tmp_path: Path
) -> None:
    settings = tiny | {"data.train": str(own_pictures)}
    stopped_run(tmp_path / "run", settings, 5, lambda: 1 / 0)
    for path in own_pictures.iterdir():
        os.utime(path, (0, 0))
    assert_equal(pretrain(tmp_path / "run", settings, resume=True), whole)


def test_second_process_is_refused_before_anything_is_written(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A run that has only begun, and has not written its recipe yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    with locked_by_another_process(folder / ".lock"):
        with pytest.raises(UserError, match="another process is training in this folder"):
            pretrain(folder, tiny)
        assert [path.name for path in folder.iterdir()] == [".lock"]
    pretrain(folder, tiny, **{"train.steps": 1})


LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_run_holds_the_lock_of_its_folder_while_it_trains(tiny: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCK, str(tmp_path / "run" / ".lock")]
    ends: list[subprocess.CompletedProcess[str]] = []
    patch = at_step(2, lambda: ends.append(subprocess.run(command, capture_output=True, text=True)))
    try:
        pretrain(tmp_path / "run", tiny, **{"train.steps": 2})
    finally:
        patch.undo()
    assert [(end.returncode, "BlockingIOError" in end.stderr) for end in ends] == [(1, True)]
    assert subprocess.run(command).returncode == 0


def test_threads_of_watched_workers_end_with_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    before = threading.active_count()
    pretrain(tmp_path / "run", tiny, **{"data.workers": 1, "train.steps": 2})
    assert threading.active_count() <= before
