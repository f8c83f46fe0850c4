"""The training loop. It knows steps, files and signals; it knows nothing of the method or of the signal's kind."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from data2vec import run_dir as folder
from data2vec.data.loader import Loader
from data2vec.data.streaming import merge_stream_states
from data2vec.distributed import Process, process_group
from data2vec.errors import Interrupted, RunStopped, Unhealthy, UserError
from data2vec.health.verdict import Verdict, verdict
from data2vec.modalities.base import Modality
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import build_encoder
from data2vec.objective import build_objective
from data2vec.objective import diagnostics as health
from data2vec.recipe.loading import load_recipe, recipe_names
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.report.page import build_report_at_end
from data2vec.run_dir import Run
from data2vec.tasks.probing.online import OnlineProbe
from data2vec.train import checkpoint, trackers
from data2vec.train import provenance as machine
from data2vec.train.init_from import start_from, tokenizer_of
from data2vec.train.logger import Journal, Silence
from data2vec.train.optimizer import learning_rate
from data2vec.train.parallel import all_weights
from data2vec.train.train_step import Measured, Step


def pretrain(
    recipe: str | Path | Recipe,
    data: str | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    resume: bool = False,
) -> Run:
    """Pre-train a model, and write it with all that happened into a run folder.

    `recipe`: a shipped name such as "vision/v2-base", a YAML file, or a Recipe. `data`: what to learn from, in place of
    the recipe's `data.train`. `overrides`: {"train.lr": 1e-3} or ["train.lr=1e-3"]. `out`: the run folder, by default
    runs/ and the recipe's name. `resume`: go on after the newest whole checkpoint in `out`, to the last bit as if the run
    had never stopped.

    Under torchrun every process calls this, and one that torchrun has started again goes on by itself. Raises UserError
    for a mistake in what was given, RunStopped when the run ends before its last step. Ctrl-C, SIGTERM and SIGUSR1 save a
    checkpoint first; the last two raise Interrupted."""
    resolved = _resolve(recipe, data, overrides)
    if isinstance(resolved.objective, SupervisedSettings):
        raise UserError(f"{recipe}: is a recipe of fine-tuning; use 'data2vec finetune', with --model")
    return run_in(Path(out) if out is not None else Path("runs") / _name(recipe, resolved), resolved, resume, Training)


def run_in(place: Path, resolved: Recipe, resume: bool, training_of: "type[Training]") -> Run:
    """Train by a resolved recipe in the run folder `place`, from the start or from its newest whole checkpoint."""
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    resume = resume or (restarted and (place / "recipe.yaml").is_file())
    with process_group(resolved.train.device) as process:
        process.on_main_process(lambda: folder.check(place, resolved, resume))
        newest = process.on_main_process(lambda: checkpoint.latest(place))
        training = training_of(resolved, process, newest)
        run = process.on_main_process(lambda: folder.open_run(place, resolved))
        try:
            with folder.only_one(place, process):
                training.go(run)
        except Unhealthy:
            process.on_main_process(lambda: build_report_at_end(run.folder, resolved))
            raise
        del training
        process.on_main_process(lambda: build_report_at_end(run.folder, resolved))
    return run


class Training:
    """A run: what it is made of, and where it stands; it goes on after a checkpoint, or starts."""

    def __init__(self, recipe: Recipe, process: Process, newest: Path | None = None):
        self.recipe, self.process, self.settings = recipe, process, recipe.train
        process.on_main_process(lambda: trackers.check(recipe.log.trackers))
        self.modality = modality = recipe.build_modality()
        self.loader = self._open(modality)
        torch.manual_seed(self.settings.seed)
        self.objective: Any = self._build(modality)
        self.newest = newest
        self.origin = self._start() if newest is None else None
        self.make_step = Step(self.objective, self.settings, process)
        self.probe, self.probe_every = self._probe()
        self.noted: dict[str, Any] = {}
        """What a checkpoint holds for this kind of run besides."""
        self.step = 0
        self.stream_states: dict[str, list[int]] = {}
        self.seconds = 0.0
        self.samples = torch.zeros((), dtype=torch.float64, device=process.device)

    def _open(self, modality: Modality) -> Loader:
        """The batches."""
        rows, method = modality.rows(str(self.recipe.data.train)), self.recipe.objective
        process, pin = self.process, self.process.device.type == "cuda"
        return Loader(modality, method.mask, rows, self.settings.seed, process.rank, process.world_size, pin, method.masks)

    def _build(self, modality: Modality) -> Any:
        """The objective, with fresh weights."""
        return build_objective(build_encoder(modality, self.recipe.encoder), self.recipe.objective)

    def _start(self) -> str | None:
        """Weights to start from, put into the objective; and in words where they come from."""
        return start_from(self.recipe.init, self.objective, self.recipe) if self.recipe.init is not None else None

    def _probe(self) -> tuple[Any, int]:
        """What measures the weights now and then, if anything does, and every how many steps."""
        there = self.recipe.probe.data is not None
        return OnlineProbe(self.recipe, self.loader.examples, self.process) if there else None, self.recipe.probe.every

    def go(self, run: Run) -> None:
        """To the last step."""
        self.run = run
        if self.newest is not None:
            state = checkpoint.load(self.newest, self.objective, self.make_step.optimizer)
            self.step, self.seconds = state["step"], state["seconds"]
            self.samples += state["samples"]
            self.loader.corrupt.names |= dict.fromkeys(state["corrupt"])
            self.make_step.scaler.load_state_dict(state["scaler"])
            self.stream_states = state["stream_states"]
            self.noted |= state.get("noted", {})
        self.journal: Journal | Silence = Silence()
        self.process.on_main_process(self._open_journal)
        if self.origin is not None:
            self.journal.say(self.origin)
        try:
            noted = machine.recorded(run.folder, self.process, self.step)
            with checkpoint.told_when_full(run.folder), noted, stop_signals() as stops:
                self._steps(stops)
                self._save_model()
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            raise RunStopped(
                f"out of memory on {self.process.device}: make the micro-batch in `data` smaller ({reason})"
            ) from None
        finally:
            if self.process.is_main_process and self.run.metrics:
                self.journal.say(str(self._verdict()))
            self.journal.close()

    def _open_journal(self) -> None:
        opened = trackers.open_trackers(self.run.folder, self.recipe, self.step)
        self.journal = Journal(self.run.folder, self.step, self.settings.steps, opened)

    def _steps(self, stops: list[int]) -> None:
        """Make the steps that are left."""
        begin = logged_at = time.monotonic()
        before, waited, samples = self.seconds, 0.0, float(self.samples)
        batches = self.loader.steps(self.step, self.stream_states)
        while self.step < self.settings.steps:
            asked = time.monotonic()
            micro_batches = next(batches)
            waited += time.monotonic() - asked
            step = self.step + 1
            last = step == self.settings.steps
            probe = self.probe if last or step == 1 or step % self.probe_every == 0 else None
            log = last or step == 1 or step % self.recipe.log.every == 0 or probe is not None
            save = last or step % self.settings.checkpoint_every == 0
            measured = self.make_step(step, micro_batches, measure=log, norm=log or save)
            self.step = step
            self.samples += measured.counts[1]
            self.journal.step()
            line = self._line(measured) if log or save else {}
            over = bool(line) and self._collapsed(line) is not None
            log = log or over
            now = time.monotonic()
            self.seconds = before + now - begin
            if log:
                pace = {"samples_per_second": (line["samples"] - samples) / (now - logged_at)}
                pace |= {"seconds": self.seconds, "data_wait": waited / (now - logged_at)}
                line |= self._measure(probe) if probe else {}
                self.journal.log(line | {key: round(value, 4) for key, value in pace.items()}, list(self.loader.corrupt.names))
                logged_at, waited, samples = time.monotonic(), 0.0, line["samples"]
            if over:
                self._give_up(line)
            stop = self.process.max(stops[0] if stops else 0)
            if save or stop:
                self._save(self.settings.keep_checkpoints)
            if stop == signal.SIGINT:
                raise KeyboardInterrupt
            if stop:
                raise Interrupted(stop, f"asked to stop at step {step}; {checkpoint.safe(self.run.folder)}; go on by --resume")

    def _collapsed(self, line: dict[str, Any]) -> str | None:
        return health.collapsed(line, self.step, self.recipe.objective.health)

    def _measure(self, probe: Any) -> dict[str, Any]:
        return probe(all_weights(self.objective.student))

    def _verdict(self) -> Verdict:
        return verdict(self.run.metrics, self.recipe.flat())

    def _give_up(self, line: dict[str, Any]) -> NoReturn:
        """Raise Unhealthy with what has collapsed, and why; the healthy checkpoints before it stay."""
        found = self.process.on_main_process(self._verdict).findings[0]
        if not health.finite(line):
            raise Unhealthy(f"collapsed: {found}; {checkpoint.safe(self.run.folder)}")
        self._save(keep=None)
        raise Unhealthy(f"collapsed: {found}")

    def _line(self, measured: Measured) -> dict[str, Any]:
        """The measurements of a step over all processes, on the host; the same on every process."""
        process, corrupt = self.process, self.loader.corrupt
        loss, *stats = process.sum(torch.stack([measured.loss, *measured.stats.values()])).tolist()
        assert measured.grad_norm is not None
        grad_norm = float(measured.grad_norm)
        scaler = self.make_step.scaler
        scaling = {"loss_scale": scaler.get_scale()} if scaler.is_enabled() else {}
        skipped = not math.isfinite(grad_norm) and scaling.get("loss_scale", 0) >= 1  # it was too large, and is smaller now
        self.loader.synchronize(process.all_gather(list(corrupt.names)), self._stream_states())
        return {
            "step": self.step,
            "samples": int(self.samples),
            "epoch": round(self.step / self.loader.steps_per_epoch, 4) if self.loader.steps_per_epoch else None,
            "loss": loss / float(measured.counts[0]),
            "lr": learning_rate(self.settings, self.step),
            **({"ema_decay": decay} if (decay := self.objective.ema_decay(self.step)) is not None else {}),
            **({} if skipped else {"grad_norm": grad_norm}),
            **scaling,
            **{name: value / process.world_size for name, value in zip(measured.stats, stats, strict=True)},
            "corrupt": len(corrupt.names),
        }

    def _stream_states(self) -> dict[str, list[int]]:
        """Where the run stands in streamed data, over all processes."""
        return merge_stream_states(self.process.all_gather([self.loader.stream_states]))

    def _save(self, keep: int | None) -> None:
        """Write a checkpoint."""
        state = {"samples": int(self.samples), "seconds": self.seconds, "corrupt": list(self.loader.corrupt.names)}
        state |= {"scaler": self.make_step.scaler.state_dict(), "stream_states": self._stream_states()}
        state |= {"noted": self.noted}
        optimizer = self.make_step.optimizer
        checkpoint.save(self.run.folder, self.step, self.objective, optimizer, state, keep, self.process)

    def _save_model(self) -> None:
        recipe, modality = self.recipe, self.modality
        weights = all_weights(self.objective)
        student = build_encoder(modality, recipe.encoder)
        student.load_state_dict({name[8:]: value for name, value in weights.items() if name.startswith("student.")})
        rest = {name: value for name, value in weights.items() if not name.startswith("student.")}
        model = Model(student, modality, recipe, pretraining=rest)
        self.process.on_main_process(lambda: save_model_folder(model, self.run.model, self.loader.examples, self.run.metrics))


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects the first Ctrl-C, SIGTERM or SIGUSR1, so that the step at hand ends well; a second one acts at once."""
    received: list[int] = []
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in wanted}

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in wanted:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resolve(recipe: str | Path | Recipe, data: str | None, overrides: Iterable[str] | Mapping[str, Any]) -> Recipe:
    """The recipe of this run, with the places of data made absolute, so that it can be run again from anywhere."""
    resolved = load_recipe(recipe, overrides)
    train = data if data is not None else resolved.data.train
    if train is None:
        raise UserError(
            "data.train: where is the training data? A folder, a file or the name of a data set: data.train=photos/"
        )
    places = {
        "init": resolved.init,
        "data.train": train,
        "probe.data": resolved.probe.data,
        "probe.valid": resolved.probe.valid,
    }
    here = {key: str(Path(place).resolve()) for key, place in places.items() if place is not None and Path(place).exists()}
    resolved = load_recipe(resolved, {"data.train": train} | here)
    if resolved.init is not None and getattr(resolved.data, "tokenizer", "none") is None:
        resolved = load_recipe(resolved, {"data.tokenizer": tokenizer_of(resolved.init)})
    return resolved


def _name(recipe: str | Path | Recipe, resolved: Recipe) -> str:
    if isinstance(recipe, Recipe):
        return resolved.modality.name
    return str(recipe).replace("/", "-") if str(recipe) in recipe_names() else Path(recipe).stem
