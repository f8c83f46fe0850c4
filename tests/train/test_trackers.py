"""What is told to trackers: by stand-ins that write down their calls, and by the real packages where they are installed."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import data2vec
from data2vec.errors import UserError
from data2vec.run_dir import Run
from data2vec.train import trainer
from helpers.runs import crash_before


def pretrain(out: Path, settings: dict[str, Any], resume: bool = False, **more: Any) -> Run:
    return data2vec.pretrain("vision/v1-tiny", overrides=settings | more, out=out, resume=resume)


class Standin(SimpleNamespace):
    """In place of wandb or trackio: `calls` is what was asked of it; `log` and `init` raise what `failing` says."""

    class Error(Exception):
        """What wandb's own errors are."""

    def __init__(self) -> None:
        super().__init__(calls=[], failing={})

    def _call(self, what: str, /, *given: Any, **named: Any) -> "Standin":
        self.calls.append((what, given, named))
        if error := self.failing.get(what):
            raise error
        return self

    def init(self, **named: Any) -> "Standin":
        return self._call("init", **named)

    def log(self, values: dict[str, float], **named: Any) -> None:
        self._call("log", values, **named)

    def finish(self) -> None:
        self._call("finish")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The logged values, each with its step."""
        return [{"step": named["step"]} | given[0] for name, given, named in self.calls if name == "log"]

    @property
    def started(self) -> list[dict[str, Any]]:
        return [named for name, _, named in self.calls if name == "init"]


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> dict[str, Standin]:
    both = {name: Standin() for name in ("wandb", "trackio")}
    for name, module in both.items():
        monkeypatch.setitem(sys.modules, name, module)
    return both


BOTH = {"log.trackers": ["wandb", "trackio"]}


def test_trackers_when_several_each_get_every_logged_line(
    standins: dict[str, Standin], tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = pretrain(tmp_path / "mine", tiny | BOTH, **{"train.steps": 3, "log.project": "birds"})
    identity = (run.folder / "tracking_id.txt").read_text()
    for name, tracker in standins.items():
        assert tracker.lines == run.metrics
        (started,) = tracker.started
        assert (started["project"], started["resume"]) == ("birds", "allow")
        assert started["config"]["train"]["steps"] == 3
        assert [call[0] for call in tracker.calls] == ["init", "log", "log", "log", "finish"], name
    assert standins["wandb"].started[0]["id"] == identity
    assert (standins["wandb"].started[0]["name"], standins["wandb"].started[0]["dir"]) == ("mine", run.folder)
    assert standins["trackio"].started[0]["name"] == f"mine-{identity}"


def test_tracker_without_a_known_epoch_gets_no_epoch(
    standins: dict[str, Standin], tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = pretrain(tmp_path / "run", tiny | BOTH, **{"train.steps": 1, "data.streaming": True})
    assert run.metrics[0]["epoch"] is None
    assert "epoch" not in standins["wandb"].lines[0]


def test_tracker_of_a_resumed_run_keeps_its_id_and_of_a_new_run_gets_another(
    standins: dict[str, Standin], tiny: dict[str, Any], tmp_path: Path
) -> None:
    constant = tiny | BOTH | {"train.schedule": {"name": "tri_stage", "warmup": 0, "hold": 1}}
    pretrain(tmp_path / "one" / "run", constant, **{"train.steps": 1})
    pretrain(tmp_path / "one" / "run", constant, resume=True, **{"train.steps": 2})
    pretrain(tmp_path / "two" / "run", constant, **{"train.steps": 1})
    for tracker, key in ((standins["wandb"], "id"), (standins["trackio"], "name")):
        first, again, other = (started[key] for started in tracker.started)
        assert first == again != other
    assert [line["step"] for line in standins["wandb"].lines] == [1, 2, 1]


def test_failing_tracker_is_disabled_and_the_run_continues(
    standins: dict[str, Standin], tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standins["wandb"].failing["log"] = ConnectionResetError("Connection lost")
    standins["trackio"].failing["finish"] = TimeoutError("no answer")
    run = pretrain(tmp_path / "run", tiny | BOTH, **{"train.steps": 3})
    assert [call[0] for call in standins["wandb"].calls] == ["init", "log"]
    assert standins["trackio"].lines == run.metrics
    assert len(run.metrics) == 3
    said = capsys.readouterr().err
    assert said.count("log.trackers: wandb failed (Connection lost) and is disabled for this run") == 1
    assert "log.trackers: trackio failed (no answer)" in said
    assert run.model.is_dir()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_tracker_that_cannot_start_is_refused_and_can_be_removed_on_resume(
    name: str, standins: dict[str, Standin], tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standins[name].failing["init"] = Standin.Error("no\nkey") if name == "wandb" else ValueError("no\nkey")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_train_steps", lambda *_: 1 / 0)
        with pytest.raises(
            UserError, match=rf"^log\.trackers: {name} cannot start \(no key\); fix that or remove it from log\.trackers"
        ):
            pretrain(tmp_path / "run", tiny | {"log.trackers": [name]})
    assert len(pretrain(tmp_path / "run", tiny, resume=True, **{"log.trackers": []}).metrics) == 8


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_missing_tracker_is_refused_before_the_run_folder_exists(
    name: str, module: str, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"log\.trackers: {name} cannot be used .*: pip install 'data2vec\[{name}\]'") as told:
        pretrain(tmp_path / "run", tiny | {"log.trackers": [name]})
    assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_tracker_shadowed_by_a_folder_of_its_name_is_refused(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"log\.trackers: wandb cannot be used"):
        pretrain(tmp_path / "run", tiny | {"log.trackers": ["wandb"]})


def test_tracker_with_an_unknown_name_is_refused_with_the_nearest(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'tensorboard', 'wandb' or 'trackio'.*did you mean 'wandb'"):
        pretrain(tmp_path / "run", tiny | {"log.trackers": ["wandbe"]})


def test_tensorboard_after_crash_and_resume_shows_each_step_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = tiny | {"log.trackers": ["tensorboard"]}

    with crash_before(6):
        pretrain(tmp_path / "run", settings)
    run = pretrain(tmp_path / "run", settings, resume=True)
    shown = events.EventAccumulator(str(run.folder / "tensorboard"))
    shown.Reload()
    assert [(event.step, pytest.approx(event.value)) for event in shown.Scalars("loss")] == [
        (line["step"], line["loss"]) for line in run.metrics
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_installed_tracker_offline_stores_the_run_locally(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip(name)
    command = [sys.executable, "-m", "data2vec", "pretrain", "vision/v1-tiny", "--out", str(tmp_path / "run")]
    settings = tiny | {"train.steps": 3, "log.trackers": f"[{name}]", "log.project": "birds"}
    local = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *(f"{key}={value}" for key, value in settings.items())],
        env=os.environ | local,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    identity = (tmp_path / "run" / "tracking_id.txt").read_text()
    if name == "wandb":
        (stored,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb")
        assert b"prediction_rank" in stored.read_bytes()
    else:
        rows = sqlite3.connect(tmp_path / "trackio" / "birds.db").execute("select run_name, step from metrics order by step")
        assert list(rows) == [(f"run-{identity}", step) for step in (1, 2, 3)]
