import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import data2vec
from data2vec.batch import MaskedBatch
from data2vec.errors import Interrupted, RunStopped, UserError
from data2vec.health.verdict import Verdict, verdict
from data2vec.recipe.loading import load_recipe
from data2vec.report import page
from data2vec.run_dir import Run
from data2vec.train import trainer
from helpers.runs import crash_before, measured


def pretrain(out: Path, settings: dict[str, Any], resume: bool = False, **more: Any) -> Run:
    return data2vec.pretrain("vision/v1-tiny", overrides=settings | more, out=out, resume=resume)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbs."""
    return pretrain(tmp_path_factory.mktemp("whole") / "run", tiny)


def test_run_folder_has_metrics_checkpoints_and_model(whole: Run) -> None:
    assert [line["step"] for line in whole.metrics] == list(range(1, 9))
    assert [line["samples"] for line in whole.metrics] == [16 * step for step in range(1, 9)]
    last = whole.metrics[-1]
    stages = ("local_encoder", "student", "target", "prediction")
    assert {"epoch", "loss", "lr", "ema_decay", "grad_norm", "corrupt", "seconds"} <= last.keys()
    assert {"samples_per_second", "data_wait"} <= last.keys()
    assert 0 < last["update_ratio"] < 0.1
    assert sum(last[f"target_{part}_variance"] for part in ("position", "input", "within")) == pytest.approx(1)
    assert last["content_r2"] <= 1
    assert last["local_encoder_fraction_with_grad"] == 1
    assert all(last[f"{stage}_std"] > 0 and last[f"{stage}_rank"] >= 1 for stage in stages)
    assert last["epoch"] == 4
    assert 0 <= last["data_wait"] <= 1
    assert sorted(path.name for path in (whole.folder / "checkpoints").iterdir()) == ["step-6", "step-8"]
    weights = {"model.safetensors", "pretraining.safetensors"}
    assert {path.name for path in whole.model.iterdir()} == {"config.json", "README.md", *weights}


def test_run_from_its_own_recipe_is_bit_equal(whole: Run, tmp_path: Path) -> None:
    again = data2vec.pretrain(whole.recipe, out=tmp_path / "again")
    assert measured(again) == measured(whole)
    assert same(weights(again), weights(whole))


def test_killed_and_resumed_run_is_bit_equal(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny | {"train.steps": 40, "train.checkpoint_every": 4}
    command = [sys.executable, "-m", "data2vec", "pretrain", "vision/v1-tiny", "--out", str(tmp_path / "killed")]
    command += [f"{key}={value}" for key, value in settings.items()]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = Run(tmp_path / "killed")
    while len(killed.metrics) < 10:
        assert child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    # What a kill in the middle of writing leaves: half a line, and a checkpoint that is not whole.
    reached = killed.metrics[-1]["step"]
    assert reached < 40
    with (killed.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    torn = killed.folder / "checkpoints" / "step-39"
    torn.mkdir()
    (torn / "objective.safetensors").write_bytes(b"half")

    resumed = pretrain(killed.folder, settings, resume=True, **{"data.workers": 1})
    unharmed = pretrain(tmp_path / "unharmed", settings)
    assert [line["step"] for line in resumed.metrics] == list(range(1, 41))
    assert measured(resumed) == measured(unharmed)
    assert same(weights(resumed), weights(unharmed))


def test_resumed_version_2_run_is_bit_equal(tiny2: dict[str, Any], tmp_path: Path) -> None:
    """With dropout, noise in the decoder, and masks of its own for every step."""

    def run(name: str, **more: Any) -> Run:
        return data2vec.pretrain("vision/v2-tiny", overrides=tiny2, out=tmp_path / name, **more)

    unharmed = run("unharmed")
    with crash_before(6):
        run("halted")
    assert {path.name for path in (tmp_path / "halted" / "checkpoints").iterdir()} == {"step-3", "step-5"}
    resumed = run("halted", resume=True)
    assert [line["step"] for line in resumed.metrics] == list(range(1, 9))
    assert measured(resumed) == measured(unharmed)
    assert same(weights(resumed), weights(unharmed))


def test_resume_with_more_steps_equals_a_longer_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    constant = tiny | {"train.schedule": {"name": "tri_stage", "warmup": 0, "hold": 1}}
    pretrain(tmp_path / "run", constant, **{"train.steps": 4})
    longer = pretrain(tmp_path / "run", constant, resume=True, **{"train.steps": 7})
    assert measured(longer) == measured(pretrain(tmp_path / "straight", constant, **{"train.steps": 7}))


def test_resume_without_a_checkpoint_starts_from_step_0(
    whole: Run, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_checkpoint", lambda *_: os.kill(os.getpid(), 0) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain(tmp_path / "run", tiny)
    assert measured(pretrain(tmp_path / "run", tiny, resume=True)) == measured(whole)


def test_resume_of_a_finished_run_changes_nothing(whole: Run, tiny: dict[str, Any]) -> None:
    before = (whole.folder / "metrics.jsonl").read_text(), weights(whole)
    pretrain(whole.folder, tiny, resume=True)
    assert (whole.folder / "metrics.jsonl").read_text() == before[0]
    assert same(weights(whole), before[1])


def test_gradient_accumulation_equals_one_large_batch(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny | {
        "encoder.dropout": 0,
        "encoder.drop_path": 0,
        "data.color_jitter": 0,
        "train.clip_norm": 0.1,
        "objective.mask.patches": 6,
    }
    parts = pretrain(tmp_path / "parts", settings | {"data.micro_batch_size": 16})
    halves = _in_halves(tmp_path / "halves", settings | {"data.micro_batch_size": 16})
    for one, other in zip(parts.metrics, halves.metrics, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def _in_halves(out: Path, settings: dict[str, Any]) -> Run:
    """The same run with each batch given to the step in two uneven parts."""
    with pytest.MonkeyPatch.context() as patch:
        steps = trainer.Loader.steps

        def halved(self: Any, *place: Any) -> Any:
            for (batch,) in steps(self, *place):
                halves = []
                for rows in (slice(0, 5), slice(5, None)):
                    mask = batch.mask[rows]
                    indices = mask.flatten().nonzero().squeeze(1)
                    halves.append(MaskedBatch(batch.input[rows], mask=mask, predicted_indices=indices))
                yield halves

        patch.setattr(trainer.Loader, "steps", halved)
        return pretrain(out, settings)


def test_bf16_keeps_weights_in_fp32(tiny: dict[str, Any], whole: Run, tmp_path: Path) -> None:
    run = pretrain(tmp_path / "run", tiny, **{"train.precision": "bf16"})
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
    for one, other in zip(run.metrics, whole.metrics, strict=True):
        assert one["loss"] != other["loss"]
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


def test_nan_loss_stops_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        RunStopped, match=r"loss or gradient norm is NaN or inf.*train\.lr=1e\+30.*the latest complete checkpoint is step-0"
    ) as stopped:
        pretrain(tmp_path / "run", tiny, **{"train.lr": 1e30, "train.checkpoint_every": 100, "train.clip_norm": 0})
    assert len(str(stopped.value).splitlines()) == 1
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert Run(tmp_path / "run").metrics[-1]["loss"] is None


def test_nan_loss_is_not_saved(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="loss or gradient norm is NaN or inf"):
        pretrain(tmp_path / "run", tiny, **{"train.lr": 1e30, "log.every": 100})
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0"]


def judged(run: Run) -> Verdict:
    return verdict(run.metrics, load_recipe(run.recipe).flat())


def test_run_ends_with_its_verdict(tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = judged(pretrain(tmp_path / "run", tiny, **{"objective.teacher.decay": 0.0}))
    assert found.state == "watch"
    assert "objective.teacher.decay=0 is too low" in str(found)
    assert str(found) in capsys.readouterr().err


def test_collapsed_run_reports_cause_and_suggestion(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = {"health": {"min_target_std": 100.0, "grace_steps": 7}}
    with pytest.raises(RunStopped) as stopped:
        pretrain(tmp_path / "run", tiny, **limits, **{"train.lr": 3.0})
    found = judged(Run(tmp_path / "run"))
    assert found.state == "collapsed"
    assert str(stopped.value) == f"collapsed: {found.findings[0]}"
    assert found.findings[0].cause == "train.lr=3 is far too high"
    assert str(found) in capsys.readouterr().err


def test_collapsed_run_keeps_its_checkpoints(tiny: dict[str, Any], tmp_path: Path) -> None:
    health = {"health": {"min_target_std": 100.0, "grace_steps": 7}, "train.keep_checkpoints": 1}
    with pytest.raises(RunStopped, match="collapsed: at step 7 the targets hardly differ"):
        pretrain(tmp_path / "run", tiny, **health)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-6", "step-7"]
    assert Run(tmp_path / "run").metrics[-1]["step"] == 7


def test_report_is_written_at_the_end_of_healthy_and_collapsed_runs(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(page, "build_report", drawn.append)
    asked = {"log.report": True, "train.steps": 3}
    pretrain(tmp_path / "good", tiny, **asked)
    with pytest.raises(RunStopped, match="collapsed: at step 2"):
        pretrain(tmp_path / "bad", tiny, **asked, **{"health": {"min_target_std": 100.0, "grace_steps": 2}})
    pretrain(tmp_path / "unasked", tiny, **{"train.steps": 1})
    assert drawn == [tmp_path / "good", tmp_path / "bad"]


def test_report_failure_is_one_line_on_stderr(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "build_report", lambda run: 1 / 0)
    run = pretrain(tmp_path / "run", tiny, **{"log.report": True, "train.steps": 1})
    assert run.model.is_dir()
    line = capsys.readouterr().err.splitlines()[-1]
    assert "report.html could not be built (ZeroDivisionError: division by zero)" in line
    assert f"data2vec report {run.folder}" in line


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Interrupted),
        pytest.param(signal.SIGUSR1, Interrupted, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, Interrupted, marks=pytest.mark.slow),
    ],
)
def test_stop_signal_to_all_processes_saves_a_checkpoint_first(
    number: int, error: type[BaseException], tiny: dict[str, Any], whole: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")

    def interrupt() -> None:
        while len(run.metrics) < 4:
            time.sleep(0.001)
        workers = [child.pid for child in multiprocessing.active_children() if child.pid]
        for process in (*workers, os.getpid()):  # as terminals and job schedulers do
            os.kill(process, number)
        assert workers

    before = signal.getsignal(number)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(error):
        pretrain(run.folder, tiny, **{"train.steps": 1000, "train.checkpoint_every": 1000, "data.workers": 1})
    thread.join()
    assert signal.getsignal(number) == before
    reached = run.metrics[-1]["step"]
    assert (run.folder / "checkpoints" / f"step-{reached}" / "complete.json").exists()
    pretrain(run.folder, tiny, resume=True, **{"train.steps": reached + 1, "train.checkpoint_every": 1000})
    assert run.metrics[-1]["step"] == reached + 1


@pytest.mark.slow
def test_second_process_in_a_run_folder_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny | {"train.steps": 10000, "train.checkpoint_every": 10000}
    command = [sys.executable, "-m", "data2vec", "pretrain", "vision/v1-tiny", "--out", str(tmp_path / "run")]
    child = subprocess.Popen([*command, *(f"{key}={value}" for key, value in settings.items())], stderr=subprocess.DEVNULL)
    run = Run(tmp_path / "run")
    while len(run.metrics) < 3:
        assert child.poll() is None
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is training in this folder"):
        pretrain(run.folder, settings, resume=True)
    assert child.poll() is None
    child.kill()
    child.wait()
    pretrain(run.folder, settings, resume=True, **{"train.steps": 2})


def test_process_restarted_by_torchrun_resumes(tiny: dict[str, Any], whole: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        step = trainer.TrainStep.__call__
        patch.setattr(
            trainer.TrainStep, "__call__", lambda self, number, *a, **k: 1 / 0 if number == 5 else step(self, number, *a, **k)
        )
        with pytest.raises(ZeroDivisionError):
            pretrain(tmp_path / "run", tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        pretrain(tmp_path / "run", tiny)
        pretrain(tmp_path / "never begun", tiny, **{"train.steps": 1})
    assert measured(Run(tmp_path / "run")) == measured(whole)


def test_corrupt_file_is_counted_and_named(tiny: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in pictures.iterdir():
        (folder / picture.name).write_bytes(picture.read_bytes())
    (folder / "00.png").write_bytes((folder / "00.png").read_bytes()[:100])
    run = pretrain(tmp_path / "run", tiny, **{"data.train": str(folder)})
    assert run.metrics[-1]["corrupt"] == 1
    assert "00.png" in (run.folder / "corrupt_files.txt").read_text()
    for name in ("01.png", "02.png"):
        (folder / name).write_bytes(b"no picture")
    with pytest.raises(RunStopped, match=r"more than data\.max_corrupt"):
        pretrain(tmp_path / "another", tiny, **{"data.train": str(folder)})


def test_existing_run_folder_is_never_overwritten(whole: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    before = measured(whole)
    with pytest.raises(UserError, match="already contains a run"):
        pretrain(whole.folder, tiny)
    assert measured(whole) == before
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="is not empty"):
        pretrain(tmp_path, tiny)
    with pytest.raises(UserError, match="is a file"):
        pretrain(tmp_path / "letter.txt", tiny)


def test_resume_with_a_changed_setting_is_refused(whole: Run, tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        pretrain(tmp_path / "nothing", tiny, resume=True)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(UserError) as told:
        pretrain(whole.folder, tiny, resume=True, **{"train.lr": 3.0, "encoder.width": 32, "log.every": 7})
    lines = str(told.value).splitlines()
    assert len(lines) == 2
    assert any("train.lr is 3.0, but" in line and "keep 0.003" in line for line in lines)
    assert any("encoder.width is 32" in line for line in lines)


def test_missing_data_leaves_no_run_folder(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        pretrain(tmp_path / "run", tiny, **{"data.train": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match=r"data\.train: no training data"):
        pretrain(tmp_path / "run", tiny, **{"data.train": None})
    assert not (tmp_path / "run").exists()


def test_run_folder_defaults_to_the_recipe_name(tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = data2vec.pretrain("vision/v1-tiny", data=tiny["data.train"], overrides=tiny | {"train.steps": 1})
    assert run.folder == Path("runs/vision-v1-tiny")
    assert run.model.is_dir()


def test_unavailable_device_is_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    for device, said in (("gpu", "is not a device"), ("cuda:99", "not available"), ("meta", "not supported")):
        with pytest.raises(UserError, match=rf"train\.device.*{said}"):
            pretrain(tmp_path / "run", tiny, **{"train.device": device})
