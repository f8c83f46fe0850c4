"""The training loop. It knows steps, files and signals; modality, method and labels belong to the `TrainingTask`."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

import torch

from data2vec.data.loader import Loader
from data2vec.data.streaming import merge_stream_states
from data2vec.distributed import Process, process_group
from data2vec.errors import Interrupted, RunStopped, Unhealthy, get_logger
from data2vec.health.collapse import is_finite
from data2vec.health.verdict import Verdict
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.run_length import unfinished_schedules
from data2vec.report.page import build_report_at_end
from data2vec.run_dir import Run, check_run_dir, create_run_dir, exclusive_lock, latest_checkpoint
from data2vec.settings import JsonDict, JsonMapping
from data2vec.train import trackers
from data2vec.train.checkpoint import load_checkpoint, resume_point, save_checkpoint, stop_when_disk_full
from data2vec.train.logger import NullLogger, RunLogger
from data2vec.train.optimizer import learning_rate
from data2vec.train.provenance import log_start
from data2vec.train.train_step import StepOutput, TrainStep

log = get_logger(__name__)
Metrics = JsonDict


class TrainingTask(Protocol):
    """What a run trains and how it evaluates that. Built on every process, before there is a run folder."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def loader(self) -> Loader:
        """The training batches."""

    @property
    def objective(self) -> AnyTrainingObjective:
        """With the weights to start from."""

    @property
    def init_message(self) -> str | None:
        """Where these weights come from, for the log; None if there is nothing to say."""

    @property
    def evaluate_every(self) -> int | None:
        """Steps between evaluations, besides the first step and the last; None: no evaluation."""

    @property
    def state(self) -> JsonDict:
        """What checkpoints hold for the task, fit for JSON; updated in place."""

    def evaluate(self, step: int, run: Run) -> Metrics:
        """Metrics of the current weights. Every process calls it; may write the model, if it is the best so far."""

    def has_collapsed(self, metrics: Metrics) -> bool:
        """Whether the run must stop, by the metrics of a step."""

    def verdict(self, metrics: Sequence[JsonMapping]) -> Verdict:
        """The health of the run, by its logged steps."""

    def save_model(self, run: Run) -> None:
        """Write the model at the end of the run. Every process calls it."""


def run_training(
    folder: Path, recipe: Recipe, resume: bool, build_task: Callable[[Recipe, Process, bool], TrainingTask]
) -> Run:
    """Train by a resolved recipe in a run folder, from the start or from its latest complete checkpoint.

    `build_task`: the task, from the recipe, this process, and whether a checkpoint will be loaded."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    resume = resume or (restarted and (folder / "recipe.yaml").is_file())
    with process_group(recipe.train.device) as process:
        process.on_main_process(lambda: check_run_dir(folder, recipe, resume))
        process.on_main_process(lambda: trackers.require_trackers(recipe.log.trackers))
        process.on_main_process(lambda: _warn_unfinished(recipe))
        checkpoint = process.on_main_process(lambda: latest_checkpoint(folder))
        trainer = Trainer(build_task(recipe, process, checkpoint is not None), process, checkpoint)
        run = process.on_main_process(lambda: create_run_dir(folder, recipe))
        try:
            with exclusive_lock(folder, process):
                trainer.train(run)
        except Unhealthy:
            process.on_main_process(lambda: build_report_at_end(run.folder, recipe))
            raise
        del trainer
        process.on_main_process(lambda: build_report_at_end(run.folder, recipe))
    return run


def _warn_unfinished(recipe: Recipe) -> None:
    for line in unfinished_schedules(recipe):
        log.warning("%s", line)


class Trainer:
    """Trains a task, from the start or from a checkpoint."""

    def __init__(self, task: TrainingTask, process: Process, checkpoint: Path | None = None):
        self.task, self.process, self.checkpoint = task, process, checkpoint
        self.recipe, self.settings, self.loader = task.recipe, task.recipe.train, task.loader
        self.make_step = TrainStep(task.objective, self.settings, process)
        self.step = 0
        self.stream_states: dict[str, list[int]] = {}
        self.seconds = 0.0
        self.samples = torch.zeros((), dtype=torch.float64, device=process.device)

    def train(self, run: Run) -> None:
        """Make all remaining steps, and write the model. Raises RunStopped when the run ends before its last step."""
        self.run = run
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        self.logger: RunLogger | NullLogger = NullLogger()
        self.process.on_main_process(self._open_logger)
        if self.task.init_message is not None:
            self.logger.info(self.task.init_message)
        try:
            started = log_start(run.folder, self.process, self.step)
            with stop_when_disk_full(run.folder), started, stop_signals() as signals:
                self._train_steps(signals)
                self.task.save_model(run)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            raise RunStopped(
                f"out of memory on {self.process.device}: use a smaller micro-batch in `data` ({reason})"
            ) from None
        finally:
            if self.process.is_main_process and run.metrics:
                self.logger.info(str(self.task.verdict(run.metrics)))
            self.logger.close()

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.task.objective, self.make_step.optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        self.samples += state["samples"]
        self.loader.corrupt.names |= dict.fromkeys(state["corrupt"])
        self.make_step.scaler.load_state_dict(state["scaler"])
        self.stream_states = state["stream_states"]
        self.task.state.update(state["task"])

    def _open_logger(self) -> None:
        opened = trackers.open_trackers(self.run.folder, self.recipe, self.step)
        self.logger = RunLogger(self.run.folder, self.step, self.settings.steps, opened)

    def _train_steps(self, signals: list[int]) -> None:
        begin = logged_at = time.monotonic()
        seconds_before, waited, samples = self.seconds, 0.0, float(self.samples)
        batches = self.loader.steps(self.step, self.stream_states)
        while self.step < self.settings.steps:
            requested = time.monotonic()
            micro_batches = next(batches)
            waited += time.monotonic() - requested
            step = self.step + 1
            last = step == self.settings.steps
            every = self.task.evaluate_every
            evaluate = every is not None and (last or step == 1 or step % every == 0)
            log = last or step == 1 or step % self.recipe.log.every == 0 or evaluate
            save = last or step % self.settings.checkpoint_every == 0
            output = self.make_step(step, micro_batches, measure=log, norm=log or save)
            self.step = step
            self.samples += output.counts[1]
            self.logger.advance()
            if log or save:
                self._synchronize_loader()
            line = self._metrics(output) if log or save else {}
            collapsed = bool(line) and self.task.has_collapsed(line)
            log = log or collapsed
            now = time.monotonic()
            self.seconds = seconds_before + now - begin
            if log:
                throughput = {"samples_per_second": (line["samples"] - samples) / (now - logged_at)}
                throughput |= {"seconds": self.seconds, "data_wait": waited / (now - logged_at)}
                line |= self.task.evaluate(step, self.run) if evaluate else {}
                line |= {key: round(value, 4) for key, value in throughput.items()}
                self.logger.log(line, list(self.loader.corrupt.names))
                logged_at, waited, samples = time.monotonic(), 0.0, line["samples"]
            if collapsed:
                self._stop_unhealthy(line)
            stop = self.process.max(signals[0] if signals else 0)
            if save or stop:
                self._save_checkpoint(self.settings.keep_checkpoints)
            if stop:
                message = f"interrupted; checkpoint saved at step {step}; resume with --out {self.run.folder} --resume"
                raise KeyboardInterrupt(message) if stop == signal.SIGINT else Interrupted(stop, message)

    def _stop_unhealthy(self, line: Metrics) -> NoReturn:
        """Raise Unhealthy with the symptom and its cause; earlier checkpoints are kept."""
        finding = self.process.on_main_process(lambda: self.task.verdict(self.run.metrics)).findings[0]
        if not is_finite(line):
            raise Unhealthy(f"collapsed: {finding}; {resume_point(self.run.folder)}")
        self._save_checkpoint(keep=None)
        raise Unhealthy(f"collapsed: {finding}")

    def _metrics(self, output: StepOutput) -> Metrics:
        """The metrics of a step over all processes, on the host; the same on every process."""
        process = self.process
        loss, *stats = process.sum(torch.stack([output.loss, *output.stats.values()])).tolist()
        assert output.grad_norm is not None
        grad_norm = float(output.grad_norm)
        scaler = self.make_step.scaler
        scaling = {"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}
        skipped = (
            not math.isfinite(grad_norm) and scaling.get("loss_scale", 0) >= 1
        )  # the scaler lowers the scale and continues
        return {
            "step": self.step,
            "samples": int(self.samples),
            "epoch": round(self.step / self.loader.steps_per_epoch, 4) if self.loader.steps_per_epoch else None,
            "loss": loss / float(output.counts[0]),
            "lr": learning_rate(self.settings, self.step),
            **({"ema_decay": decay} if (decay := self.task.objective.ema_decay(self.step)) is not None else {}),
            **({} if skipped else {"grad_norm": grad_norm}),
            **scaling,
            **{name: value / process.world_size for name, value in zip(output.stats, stats, strict=True)},
            "corrupt": len(self.loader.corrupt.names),
        }

    def _synchronize_loader(self) -> None:
        """Give the loader the corrupt examples and positions of all processes. Raises RunStopped when too many are corrupt."""
        self.loader.synchronize(self.process.all_gather(list(self.loader.corrupt.names)), self._stream_states())

    def _stream_states(self) -> dict[str, list[int]]:
        """The positions in streamed data, over all processes."""
        return merge_stream_states(self.process.all_gather([self.loader.stream_states]))

    def _save_checkpoint(self, keep: int | None) -> None:
        state = {"samples": int(self.samples), "seconds": self.seconds, "corrupt": list(self.loader.corrupt.names)}
        state |= {"scaler": self.make_step.scaler.state_dict(), "stream_states": self._stream_states(), "task": self.task.state}
        optimizer = self.make_step.optimizer
        save_checkpoint(self.run.folder, self.step, self.task.objective, optimizer, state, keep, self.process)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT (Ctrl-C), SIGTERM or SIGUSR1, so that the step is completed; a second one acts at once."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in numbers:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
