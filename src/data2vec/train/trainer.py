"""The training loop. It knows steps, files and signals; modality, method and labels belong to the `TrainingTask`."""

import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch

from data2vec.batch import Batch
from data2vec.console.progress import say
from data2vec.data.loader import Loader
from data2vec.data.streaming import merge_stream_states
from data2vec.distributed import Process, is_collective_failure, lost_processes, process_group, report_end
from data2vec.errors import Interrupted, RunStopped, Unhealthy, Unwritable, UserError, get_logger, printable
from data2vec.health.collapse import is_finite
from data2vec.health.verdict import Verdict
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.joint import with_keys_of_part
from data2vec.recipe.recipe import Recipe
from data2vec.report.page import build_report_at_end
from data2vec.run_dir import (
    ResumePoint,
    Run,
    check_run_dir,
    create_run_dir,
    exclusive_lock,
    open_checkpoint,
    read_state,
    set_aside_damaged,
)
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.validation import describe_validation
from data2vec.train import trackers
from data2vec.train.checkpoint import BackgroundWriter, load_checkpoint, resume_point, save_checkpoint, stop_when_unwritable
from data2vec.train.logger import NullLogger, RunLogger
from data2vec.train.optimizer import learning_rate
from data2vec.train.parallel import is_sharded
from data2vec.train.planning.auto import NOTHING_AUTO, Auto, resolve_auto
from data2vec.train.planning.loading_rate import LoadingRate
from data2vec.train.planning.run_plan import plan_run
from data2vec.train.provenance import log_start
from data2vec.train.resumed_recipe import describe_new_length, verb_of
from data2vec.train.train_step import StepOutput, TrainStep

log = get_logger(__name__)
Metrics = JsonDict
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What asks a run to stop: Ctrl-C, job schedulers, and a terminal that is closed."""


class TrainingLoader(Protocol):
    """What gives the batches of each step: `Loader`, or several of them."""

    @property
    def corrupt_names(self) -> list[str]: ...
    @property
    def stream_states(self) -> Mapping[str, list[int]]: ...

    def fingerprint(self) -> JsonDict: ...
    def describe_change(self, before: Any, now: JsonMapping) -> str | None: ...
    def recall_corrupt(self, names: Iterable[str]) -> None: ...
    def next_epoch_states(self, first_step: int, stream_states: Mapping[str, list[int]]) -> dict[str, list[int]]: ...
    def steps(self, first_step: int = 0, stream_states: Mapping[str, list[int]] | None = None) -> Generator[list[Batch]]: ...
    def synchronize(self, corrupt: Iterable[str], stream_states: Mapping[str, list[int]]) -> None: ...


class TrainedPart(Protocol):
    """What is trained on one kind of data: all of a run, or a part of it."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def loader(self) -> Loader: ...
    @property
    def objective(self) -> AnyTrainingObjective: ...

    @property
    def evaluate_every(self) -> int | None:
        """Steps between evaluations, besides the first step and the last; None: no evaluation."""

    @property
    def evaluate_also(self) -> Collection[int]:
        """Further steps to evaluate at."""


class TrainingTask(Protocol):
    """What a run trains and how it evaluates that. Built on every process, before there is a run folder."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def loader(self) -> TrainingLoader:
        """The training batches."""

    @property
    def parts(self) -> Mapping[str, TrainedPart]:
        """What shares the steps of the run, by name; the task itself, named "", if nothing does."""

    def part_of(self, step: int) -> str:
        """The part that makes step number `step`, counted from 1."""

    def place(self, step: int) -> tuple[int, bool]:
        """Which step of its part step number `step` is, counted from 1, and whether it is the part's last one."""

    @property
    def objective(self) -> AnyTrainingObjective:
        """With the weights to start from."""

    @property
    def init_message(self) -> str | None:
        """Where these weights come from, for the log; None if there is nothing to say."""

    @property
    def early_stop(self) -> str | None:
        """Why the run ends now, before its last step, by its evaluations; None if it does not."""

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
    folder: Path,
    recipe: Recipe,
    resume: bool,
    build_task: Callable[[Recipe, Process, bool], TrainingTask],
    source: JsonDict | None = None,
    auto: Auto = NOTHING_AUTO,
) -> Run:
    """Train by a resolved recipe in a run folder, from the start or from its latest complete checkpoint; a finished run is left
    as it is.

    `build_task`: the task, from the recipe, this process, and whether a checkpoint will be loaded. `source`: the recipe that
    the caller has named, as it is written, for a check when the run is resumed. `auto`: the settings of a new run's
    recipe that are chosen now."""
    with process_group(recipe.train.device, 60 * recipe.train.timeout_minutes) as process:
        process.on_main_process(lambda: check_run_dir(folder, resume))
        process.on_main_process(lambda: trackers.require_trackers(recipe.log.trackers))
        with exclusive_lock(folder, process):
            process.on_main_process(lambda: check_run_dir(folder, resume))  # which another process may have begun since
            process.on_main_process(lambda: _greet(recipe, process))
            with stop_without_memory():
                recipe = resolve_auto(recipe, auto, build_task, process)
            point = process.on_main_process(lambda: open_checkpoint(folder, recipe, source) if resume else None)
            if point is not None and process.on_main_process(lambda: _is_finished(Run(folder), recipe, point)):
                return Run(folder)
            checkpoint = None if point is None else point.checkpoint
            trainer = Trainer(build_task(recipe, process, checkpoint is not None), process, checkpoint, source)
            run = process.on_main_process(lambda: create_run_dir(folder, recipe))
            try:
                trainer.train(run)
            except Unhealthy:
                process.on_main_process(lambda: build_report_at_end(run.folder, recipe))
                raise
            del trainer
            process.on_main_process(lambda: build_report_at_end(run.folder, recipe))
    return run


def _greet(recipe: Recipe, process: Process) -> None:
    """Say at once what starts, before the data is read, which may take long."""
    from data2vec import __version__

    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else str(process.device)
    what = f"{recipe.objective.name} on {recipe.modality.name}"
    say(f"data2vec {__version__}, {device}: {what}; reading {printable(recipe.training_data)}")


def _is_finished(run: Run, recipe: Recipe, point: ResumePoint) -> bool:
    """Whether there is nothing left to do; reports this, or a new length of the run, on stderr."""
    steps = recipe.train.steps
    ended = run.starts[-1].get("exit_reason") if run.starts else None
    early = None if point.checkpoint is None else read_state(point.checkpoint).get("early_stop")
    if getattr(recipe.objective, "patience", None) != getattr(point.recipe.objective, "patience", None):
        early = None
    if (point.step == steps or early) and ended == "finished" and run.has_model:
        to_change = "objective.patience=null" if early else f"train.steps={2 * steps}"
        longer = f"data2vec {verb_of(recipe)} --resume {shlex.quote(str(run.folder))} {to_change}"
        where = f"{point.step} of {steps}{f' ({early})' if early else ''}"
        said = f"{run.folder} is finished, at step {where}: nothing is changed; to train it longer: {longer}"
        print(f"data2vec: {printable(said)}", file=sys.stderr)
        return True
    if change := describe_new_length(point.recipe, recipe, point.step):
        print(f"data2vec: {printable(change)}", file=sys.stderr)
    return False


class SingleTask:
    """What tasks have in common whose steps are all of one kind."""

    recipe: Recipe
    loader: Loader
    objective: Any
    evaluate_every: int | None
    evaluate_also: Collection[int]

    @property
    def parts(self) -> Mapping[str, TrainedPart]:
        """The task itself."""
        return {"": self}

    def part_of(self, step: int) -> str:
        """The name of the task itself."""
        return ""

    def place(self, step: int) -> tuple[int, bool]:
        """The step itself, and whether it is the last one."""
        return step, step == self.recipe.train.steps


class Trainer:
    """Trains a task, from the start or from a checkpoint."""

    def __init__(self, task: TrainingTask, process: Process, checkpoint: Path | None = None, source: JsonDict | None = None):
        self.task, self.process, self.checkpoint, self.source = task, process, checkpoint, source
        self.recipe, self.settings, self.loader = task.recipe, task.recipe.train, task.loader
        self.make_step = TrainStep(task.objective, self.settings, process)
        self.step = 0
        self.stream_states: dict[str, list[int]] = {}
        """The positions in streamed data, over all processes, when they were last exchanged."""
        self.step_states: dict[str, list[int]] = {}
        """Those of this process after the last complete step."""
        self.seconds = 0.0
        self.num_corrupt = 0
        """Of the corrupt examples that the loader knows, those found up to the last complete step."""
        self.unlogged: JsonDict | None = None
        """The metrics of the last step, until they are logged."""
        self.samples = {part: torch.zeros((), dtype=torch.float64, device=process.device) for part in task.parts}
        in_background = self.settings.async_checkpoints
        self.background = BackgroundWriter(process, is_sharded(task.objective)) if in_background else None

    def _show_plan(self) -> None:
        """Report what the run will be, and warn of what would be unwise."""
        for name, part in self.task.parts.items():
            share = getattr(self.recipe, "shares", {}).get(name, 1.0)
            plan = plan_run(part.recipe, part.loader, part.objective, self.process, self.run.folder, self.step, share=share)
            self.logger.info("\n".join([*([f"{name}, {share:.1%} of the steps:"] if name else []), *plan.lines()]))
            for line in plan.warnings if self.process.is_main_process else ():
                log.warning("%s", f"{name}: {with_keys_of_part(name, line)}" if name else line)

    def train(self, run: Run) -> None:
        """Make all remaining steps, and write the model. Raises RunStopped when the run ends before its last step."""
        self.run = run
        self.fingerprint = self.process.on_main_process(self.loader.fingerprint)
        if self.checkpoint is not None:
            self._resume(self.checkpoint)
        self.logger: RunLogger | NullLogger = NullLogger()
        self.process.on_main_process(self._open_logger)
        if self.task.init_message is not None:
            self.logger.info(self.task.init_message)
        try:
            self._show_plan()
            started = log_start(run.folder, self.process, self.step)
            with (
                started,
                stop_signals() as signals,
                self._save_on_error(),
                stop_when_unwritable(run.folder),
                stop_without_memory(),
            ):
                if self.checkpoint is None:
                    self._save_checkpoint(self.settings.keep_checkpoints)
                with closing(self.loader.steps(self.step, self.stream_states)) as batches:
                    self._train_steps(batches, signals)
                self._complete_checkpoint()
                self.task.save_model(run)
        finally:
            with ExitStack() as stack:
                if self.background is not None:
                    stack.callback(self.background.close)
                stack.callback(self.logger.close)
                if self.process.is_main_process and run.metrics:
                    if validation := describe_validation(run.metrics, self.recipe):
                        self.logger.info(validation)
                    self.logger.info(str(self.task.verdict(run.metrics)))

    def _resume(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.task.objective, self.make_step.optimizer)
        try:
            self.step, self.seconds = state["step"], state["seconds"]
            samples = state["samples"] if isinstance(state["samples"], dict) else {"": state["samples"]}
            for part, count in samples.items():
                self.samples[part] += count
            self.loader.recall_corrupt(state["corrupt"])
            self.make_step.scaler.load_state_dict(state["scaler"])
            self.stream_states = state["stream_states"]
            self.task.state.update(state["task"])
            self.source = state.get("source", self.source)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"checkpoint {checkpoint}: its state.json is damaged ({error!r}); rename it to resume from an earlier one"
            ) from None
        self.num_corrupt = len(self.loader.corrupt_names)
        if change := self.loader.describe_change(state.get("data"), self.fingerprint):
            if not self.recipe.data.allow_changes:
                raise UserError(
                    f"--resume: the training data {self.recipe.data.train} has changed since step {self.step}: {change}; "
                    "restore it, or continue on the data as it is by data.allow_changes=true"
                )
            log.warning("data.allow_changes: the training data has changed since step %d: %s", self.step, change)
            self.stream_states = self.loader.next_epoch_states(self.step, self.stream_states)
        self.process.on_main_process(lambda: set_aside_damaged(self.run.folder, self.step))

    def _open_logger(self) -> None:
        opened = trackers.open_trackers(self.run.folder, self.recipe, self.step)
        self.logger = RunLogger(self.run.folder, self.step, self.settings.steps, opened)

    def _train_steps(self, batches: Iterator[list[Batch]], signals: list[int]) -> None:
        begin = logged_at = time.monotonic()
        seconds_before, waited, samples = self.seconds, 0.0, self._total_samples()
        rate = LoadingRate({name: part.loader for name, part in self.task.parts.items()})
        ended, forked = self.task.early_stop, set[str]()
        while self.step < self.settings.steps and ended is None:
            if (name := self.task.part_of(self.step + 1)) not in forked:  # a loader forks its workers at its first step
                self._complete_checkpoint()  # no process is forked while a thread writes
                forked.add(name)
            requested = time.monotonic()
            micro_batches = next(batches)
            waited += time.monotonic() - requested
            step = self.step + 1
            number, last = self.task.place(step)
            part = self.task.part_of(step)
            every, also = self.task.parts[part].evaluate_every, self.task.parts[part].evaluate_also
            evaluate = every is not None and (last or number in (1, *also) or number % every == 0)
            is_logged = last or number == 1 or number % self.recipe.log.every == 0 or evaluate
            save = step == self.settings.steps or step % self.settings.checkpoint_every == 0
            output = self.make_step(step, micro_batches, measure=is_logged, norm=is_logged or save)
            self.step = step
            self.samples[part] += output.counts[1]
            self.num_corrupt, self.step_states = len(self.loader.corrupt_names), dict(self.loader.stream_states)
            self.logger.advance()
            if is_logged or save:
                self._synchronize_loader()
                if self.background is not None:
                    self.process.on_main_process(self.background.check)
            line = self._metrics(output) if is_logged or save else {}
            collapsed = bool(line) and self.task.has_collapsed(line)
            is_logged = is_logged or collapsed
            now = time.monotonic()
            self.seconds = seconds_before + now - begin
            rate.add(part, now - requested)
            for text in rate.describe() if is_logged else ():
                self.logger.info(text)
            if is_logged:
                total = self._total_samples()
                throughput = {"samples_per_second": (total - samples) / (now - logged_at)}
                throughput |= {"seconds": self.seconds, "data_wait": waited / (now - logged_at)}
                line |= {key: round(value, 4) for key, value in throughput.items()}
                self.unlogged = line
                if evaluate:
                    self._complete_checkpoint()  # evaluation may fork processes too
                    line = line | self.task.evaluate(step, self.run)
                self.unlogged = None
                self.logger.log(line, self.loader.corrupt_names, part)
                logged_at, waited, samples = time.monotonic(), 0.0, total
            if collapsed:
                self._stop_unhealthy(line)
            stop = self.process.max(signals[0] if signals else 0)
            ended = self.task.early_stop
            if save or stop or ended:
                self._save_checkpoint(self.settings.keep_checkpoints)
            if ended:
                self.logger.info(f"stopped early at step {step} of {self.settings.steps}: {ended}")
            elif stop:
                self._complete_checkpoint()
                message = f"interrupted; checkpoint saved at step {step}; resume with: {self._resume_command()}"
                raise KeyboardInterrupt(message) if stop == signal.SIGINT else Interrupted(stop, message)

    def _stop_unhealthy(self, line: Metrics) -> NoReturn:
        """Raise Unhealthy with the symptom and its cause; earlier checkpoints are kept."""
        finding = self.process.on_main_process(lambda: self.task.verdict(self.run.metrics)).findings[0]
        if not is_finite(line):
            try:
                self._complete_checkpoint()
            except Exception as error:  # a checkpoint that could not be written is not among those to resume from
                log.warning("%s", error)
            raise Unhealthy(f"collapsed: {finding}; {resume_point(self.run.folder)}")
        self._save_checkpoint(keep=None)
        self._complete_checkpoint()
        raise Unhealthy(f"collapsed: {finding}")

    def _metrics(self, output: StepOutput) -> Metrics:
        """The metrics of a step over all processes, on the host; the same on every process."""
        process = self.process
        loss, *stats = process.sum(torch.stack([output.loss, *output.stats.values()])).tolist()
        assert output.grad_norm is not None
        grad_norm = float(output.grad_norm)
        scaler = self.make_step.scaler
        scaling = {"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}
        name = self.task.part_of(self.step)
        part = self.task.parts[name]
        number, per_epoch = self.task.place(self.step)[0], part.loader.steps_per_epoch
        skipped = (
            not math.isfinite(grad_norm) and scaling.get("loss_scale", 0) >= 1
        )  # the scaler lowers the scale and continues
        return {
            "step": self.step,
            "samples": int(self.samples[name]),
            "epoch": round(number / per_epoch, 4) if per_epoch else None,
            "loss": loss / float(output.counts[0]),
            "lr": learning_rate(self.settings, self.step, self.task.objective.lr_scale),
            **({"ema_decay": decay} if (decay := self.task.objective.ema_decay(self.step)) is not None else {}),
            **({} if skipped else {"grad_norm": grad_norm}),
            **scaling,
            **{name: value / process.world_size for name, value in zip(output.stats, stats, strict=True)},
            "corrupt": len(part.loader.corrupt_names),
        }

    def _total_samples(self) -> float:
        """The examples that all parts have seen."""
        return float(sum(self.samples.values()))

    def _synchronize_loader(self) -> None:
        """Give the loader the corrupt examples and positions of all processes. Raises RunStopped when too many are corrupt."""
        self.loader.synchronize(self.process.all_gather(self.loader.corrupt_names), self._stream_states())

    def _stream_states(self) -> dict[str, list[int]]:
        """The positions in streamed data, over all processes."""
        self.stream_states = merge_stream_states([self.stream_states, *self.process.all_gather([self.loader.stream_states])])
        return self.stream_states

    def _save_checkpoint(self, keep: int | None) -> None:
        names = self.loader.corrupt_names
        self._write_checkpoint(keep, names, self._stream_states(), self.process, self.background)

    def _write_checkpoint(
        self,
        keep: int | None,
        corrupt: list[str],
        stream_states: dict[str, list[int]],
        process: Process,
        background: BackgroundWriter | None = None,
    ) -> None:
        samples = {part: int(count) for part, count in self.samples.items()}
        state: JsonDict = {"samples": samples if len(samples) > 1 else samples[""], "seconds": self.seconds, "corrupt": corrupt}
        state |= {"stream_states": stream_states}
        state |= {"scaler": self.make_step.scaler.state_dict(), "task": self.task.state, "data": self.fingerprint}
        state |= {"recipe": self.recipe.model_dump(mode="json"), "source": self.source, "early_stop": self.task.early_stop}
        save_checkpoint(
            self.run.folder,
            self.step,
            self.task.objective,
            self.make_step.optimizer,
            state,
            keep,
            process,
            self._save_files,
            background,
        )

    def _complete_checkpoint(self) -> None:
        """Wait until the latest checkpoint is on the disk, if it is written in the background."""
        if self.background is not None:
            self.process.on_main_process(self.background.wait)
            self.background.wait()  # for the shards of this process

    def _save_files(self, folder: Path) -> dict[str, str]:
        """Write what a model needs besides its weights, such as a tokenizer; returns the file of each setting."""
        files: dict[str, str] = {}
        for name, part in self.task.parts.items():
            written = part.recipe.build_modality().save(folder, part.loader.examples)
            if both := files.keys() & written.keys():
                raise UserError(f"modality.parts.{name}: a run holds one data.{min(both)}, and another part has one already")
            files |= written
        return files

    @contextmanager
    def _save_on_error(self) -> Iterator[None]:
        """A block whose errors leave a checkpoint of the last complete step, if one can be written, and say how to resume.

        Such errors may be of this process alone, so nothing here needs the others. The main process saves; if it does not
        answer, the first that does. With sharded weights no process has all of them, and the latest checkpoint has to do."""
        try:
            yield
        except (Interrupted, Unhealthy):
            raise
        except Exception as error:
            process, reason = self.process, " ".join(str(error).split())[:300] or type(error).__name__
            others_lost = process.world_size > 1 and is_collective_failure(error)
            if process.world_size > 1:
                report_end(process, "" if others_lost else reason)
            if process.is_main_process:
                error.add_note(saved := self._save_alone(error))
            if not others_lost:
                if not process.is_main_process and lost_processes(process, 2.0).get(0) != reason:  # otherwise it is printed
                    print(f"data2vec: rank {process.rank}: {printable(reason)}", file=sys.stderr)
                raise
            lost = lost_processes(process)
            stopped = RunStopped(_describe_lost(lost, process.timeout_seconds) or reason)
            if process.is_main_process:
                stopped.add_note(saved)
            elif all(rank in lost for rank in range(process.rank)):
                print(f"data2vec: rank {process.rank}: {stopped}; {self._save_alone(error)}", file=sys.stderr)
            raise stopped from None

    def _save_alone(self, error: Exception) -> str:
        """Save the last complete step without the other processes; what to resume from and how, in words."""
        resume = f"resume with: {self._resume_command()}"
        objective = self.task.objective
        if isinstance(error, Unwritable):  # which says what there is
            return resume
        if self.background is not None and not is_sharded(objective):
            self.background.wait_or_warn()
        latest = f"{resume_point(self.run.folder)}; {resume}"
        if self.make_step.updating or is_sharded(objective):
            return latest
        if not all(bool(parameter.isfinite().all()) for parameter in objective.parameters()):
            return latest
        try:
            if self.unlogged:
                self.logger.log(self.unlogged, self.loader.corrupt_names[: self.num_corrupt], self.task.part_of(self.step))
            states = merge_stream_states([self.stream_states, self.step_states])
            corrupt = self.loader.corrupt_names[: self.num_corrupt]
            self._write_checkpoint(self.settings.keep_checkpoints, corrupt, states, self.process.alone)
        except Exception as failure:
            return f"no checkpoint could be saved ({' '.join(str(failure).split())[:200]}); {latest}"
        return f"checkpoint saved at step {self.step}; {resume}"

    def _resume_command(self) -> str:
        """The command that resumes this run."""
        world, local = self.process.world_size, int(os.environ.get("LOCAL_WORLD_SIZE", self.process.world_size))
        nodes = f"--nnodes {world // local} " if world > local else ""
        start = "data2vec" if world == 1 else f"torchrun {nodes}--nproc_per_node {local} -m data2vec"
        command = f"{start} {verb_of(self.recipe)} --resume {shlex.quote(str(self.run.folder))}"
        custom = {"modality": self.recipe.modality.name, "objective": self.recipe.objective.name}  # no file may name a class
        return " ".join([command, *(f"--{key} {shlex.quote(name)}" for key, name in custom.items() if ":" in name)])


def _describe_lost(lost: Mapping[int, str], timeout_seconds: float) -> str:
    """Which other processes ended or do not answer, in one line; "" if all of them do."""
    ended = "; ".join(f"rank {rank} ended: {' '.join(reason.split())[:300]}" for rank, reason in lost.items() if reason)
    if ended:
        return ended
    silent = ", ".join(str(rank) for rank in lost)
    return (
        f"rank {silent} does not answer: killed, stopped or hung (train.timeout_minutes: {timeout_seconds / 60:g})"
        if silent
        else ""
    )


@contextmanager
def stop_without_memory() -> Iterator[None]:
    """Turns errors for a lack of memory into a RunStopped that says what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in reason:
            raise
        raise RunStopped(f"out of memory: use a smaller micro-batch in `data`, or fewer data.workers ({reason})") from None


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT (Ctrl-C), SIGTERM, SIGUSR1 or SIGHUP, so that the step is completed; a second one acts at once.

    A signal that is ignored, as nohup does with SIGHUP, stays so."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    if threading.current_thread() is not threading.main_thread():
        before = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()
