"""The plan of a run: amounts of data, steps, batches, sizes and schedules, as its recipe and its data give them.

Nothing here is measured but what `StepMeasurement` holds; the rest is counted.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from data2vec.console.quantities import format_bytes, format_count, format_duration
from data2vec.data.loader import Loader
from data2vec.data.masked_batches import rank_stride
from data2vec.distributed import Process
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.train_settings import TriStage
from data2vec.settings import JsonDict
from data2vec.train.planning.advice import Advice, advise

FLOAT_BYTES = 4


@dataclass(frozen=True)
class StepMeasurement:
    """What a step takes on this machine, measured on one micro-batch."""

    flops: float
    """Floating-point operations of a step over all processes: those of the micro-batch, times the micro-batches of a step."""
    seconds: float
    """Duration of a step without loading data: that of the micro-batch with its update, times those of a process."""
    memory: int
    """Peak memory in bytes: on a CPU of this process, with the interpreter and its libraries; on a GPU of the tensors."""
    copied: int
    """Memory in bytes on top for the copy of a checkpoint while it is written: on a CPU, with train.async_checkpoints."""
    available: int
    """Memory that is there for both, in bytes."""
    load_seconds: float | None
    """Of one process that loads the micro-batches of a step; None for streamed data."""


@dataclass(frozen=True)
class TeacherPlan:
    """How far back the teacher remembers: the steps after which it has forgotten half of its weights."""

    half_life: float | None
    """In steps, at the start; None: it never forgets."""
    end_half_life: float | None
    """In steps, once the decay has changed."""
    anneal_steps: int
    """Steps over which the decay changes."""


@dataclass(frozen=True)
class RunPlan:
    """What a run will be. `str()` is a page of text, `warnings` what would be unwise."""

    modality: str
    objective: str
    train: str
    """Where the training data is."""
    examples: int | None
    """Examples that are trained on, such as clips, images or blocks of text; None when the data is streamed."""
    hours: float | None
    """Of audio, after clips are cropped."""
    tokens: int | None
    """Of text for pre-training."""
    left_out: int
    """Examples that cannot be read."""
    cropped: int
    """Examples longer than the crop."""
    parameters: int
    """Of the student with its head."""
    teacher_parameters: int
    steps: int
    first_step: int
    """Steps that are made already, when a run is resumed."""
    epochs: float | None
    batch: float
    """The global batch, in `batch_unit`."""
    batch_unit: str
    micro_batch: float
    """The micro-batch of a device, in the same units."""
    accumulation: int
    """Micro-batches of a step that each process makes."""
    workers: int
    """Processes that load data, of each training process; 0: itself."""
    device: str
    processes: int
    precision: str
    warmup_steps: int
    teacher: TeacherPlan | None
    warm_start: int
    """Steps in which the input is predicted too; 0: none."""
    input_share: float
    """The share of the loss that predicting the input has to the end; 0 of a warm start, which fades."""
    checkpoints: int
    """Checkpoints on the disk at a time, with the one that is being written."""
    checkpoint_bytes: int
    """Of one of them."""
    measured: StepMeasurement | None
    advice: tuple[Advice, ...]

    @property
    def warnings(self) -> list[str]:
        """A line for each setting that would be unwise: why, and which would be better."""
        return [str(advice) for advice in self.advice]

    @property
    def seconds(self) -> float | None:
        """The time to the end, without loading data, evaluation and checkpoints; None if nothing was measured."""
        return None if self.measured is None else self.measured.seconds * (self.steps - self.first_step)

    @property
    def load_seconds(self) -> float | None:
        """The time in which the workers load a step, if each has a core; None if it was not measured."""
        if self.measured is None or self.measured.load_seconds is None:
            return None
        return shared_by_workers(self.measured.load_seconds, self.workers)

    def to_json(self) -> JsonDict:
        """All numbers, as JSON holds them."""
        return asdict(self) | {"seconds": self.seconds, "warnings": self.warnings}

    def lines(self) -> list[str]:
        """A line for each subject, without the warnings."""
        return [f"  {name:<12}{text}" for name, text in self._rows().items()]

    def __str__(self) -> str:
        unwise = [f"  - {line}" for line in self.warnings] or ["  nothing found"]
        return "\n".join(
            [f"plan: {self.modality}, {self.objective}, {self.train}", *self.lines(), "what would be unwise:", *unwise]
        )

    def _rows(self) -> Mapping[str, str]:
        rows = {"data": self._data(), "model": f"{format_count(self.parameters)} parameters"}
        if self.teacher_parameters:
            rows["model"] += f", and {format_count(self.teacher_parameters)} of the teacher"
        epochs = "" if self.epochs is None else f", {_plain(self.epochs)} epochs"
        rows["steps"] = f"{self.steps:,}{epochs}" + (f"; {self.first_step:,} are made" if self.first_step else "")
        rows["batch"] = (
            f"{_plain(self.batch)} {self.batch_unit}: {self.processes} {'process' if self.processes == 1 else 'processes'} × "
            f"{self.accumulation} micro-batch{'es' * (self.accumulation != 1)} of "
            f"{_plain(self.batch / (self.processes * self.accumulation))}"
        )
        rows["device"] = f"{self.device}, {self.precision}"
        rows["warm-up"] = f"{self.warmup_steps:,} steps, {self.warmup_steps / self.steps:.1%} of the run"
        if self.teacher is not None:
            rows["teacher"] = self._teacher(self.teacher)
        if self.warm_start:
            rows["warm start"] = f"the input is predicted too until step {self.warm_start:,}; the loss may rise as that ends"
        if self.input_share:
            rows["input"] = f"predicted too, with {self.input_share:g} of the loss to the end"
        if (found := self.measured) is not None:
            copied = f", {format_bytes(found.copied)} more while a checkpoint is written" if found.copied else ""
            rows["memory"] = (
                f"{format_bytes(found.memory)} at the peak (measured){copied}, {format_bytes(found.available)} available"
            )
            rows["time"] = (
                f"{format_duration(found.seconds)} a step, {format_duration(self.seconds or 0)} to the end, without loading "
                f"data and evaluation (measured on one micro-batch); {found.flops:.3g} FLOPs a step"
            )
            if (loading := self.load_seconds) is not None:
                compared = "less" if loading < found.seconds else "more"
                rows["loading"] = f"{describe_loading(loading, self.workers)}, {compared} than the step itself"
        total = format_bytes(self.checkpoints * self.checkpoint_bytes)
        rows["disk"] = f"{total}: {self.checkpoints} checkpoints of {format_bytes(self.checkpoint_bytes)}"
        return rows

    def _data(self) -> str:
        if self.examples is None:
            return "streamed, of unknown size"
        amounts = [f"{self.examples:,} examples"]
        amounts += [] if self.hours is None else [f"{_plain(self.hours)} hours"]
        amounts += [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        amounts += [f"{self.cropped:,} longer than the crop"] if self.cropped else []
        amounts += [f"{self.left_out:,} unreadable and left out"] if self.left_out else []
        return ", ".join(amounts)

    def _teacher(self, teacher: TeacherPlan) -> str:
        def half_life(steps: float | None) -> str:
            return "never forgets" if steps is None else f"{_plain(steps)} steps ({steps / self.steps:.1%} of the run)"

        if teacher.anneal_steps == 0 or teacher.half_life == teacher.end_half_life:
            return f"half-life {half_life(teacher.end_half_life)}"
        change = f"after {teacher.anneal_steps:,} steps ({teacher.anneal_steps / self.steps:.0%} of the run)"
        return f"half-life {half_life(teacher.half_life)}, then {half_life(teacher.end_half_life)} {change}"


def shared_by_workers(seconds: float, workers: int) -> float:
    """The time in which the workers load a step, if each has a core; `seconds`: of one process."""
    return seconds / max(1, workers)


def describe_loading(seconds: float, workers: int) -> str:
    """How long loading a step takes, and what loads it, in words."""
    by = "the training process" if workers == 0 else f"{workers} worker{'s' * (workers > 1)}"
    return f"{format_duration(seconds)} a step by {by}"


def plan_run(
    recipe: Recipe,
    loader: Loader,
    objective: AnyTrainingObjective,
    process: Process,
    folder: Path,
    first_step: int = 0,
    measured: StepMeasurement | None = None,
    share: float = 1.0,
) -> RunPlan:
    """The plan of a run in `folder` by a resolved recipe, with its data and its objective.

    `first_step`: the steps that are made already. `share`: of the steps, that of this part of a joint run. Draws no random
    numbers, and reads no data."""
    examples, key = loader.examples, loader.modality.data
    in_seconds = hasattr(key, "batch_seconds")
    steps = recipe.train.steps
    tokens = getattr(examples, "tokens", None)
    target = getattr(recipe.objective, "input_target", None)
    student = {id(p) for p in objective.parameters() if p.requires_grad} | {id(p) for p in objective.student.parameters()}
    sizes = {id(p): p.numel() for p in objective.parameters()}
    parameters = sum(size for name, size in sizes.items() if name in student)
    number = recipe.train.keep_checkpoints + 1
    saves = 1 + math.ceil(steps / recipe.train.checkpoint_every)
    plan = RunPlan(
        modality=recipe.modality.name,
        objective=recipe.objective.name,
        train=str(recipe.data.train),
        examples=None if examples is None else len(examples),
        hours=float(examples.costs.sum()) / 3600 if examples is not None and in_seconds else None,
        tokens=None if tokens is None else len(tokens),
        left_out=0 if examples is None else len(examples.corrupt),
        cropped=0 if examples is None else examples.num_cropped,
        parameters=parameters,
        teacher_parameters=sum(sizes.values()) - parameters,
        steps=steps,
        first_step=first_step,
        epochs=share * steps / loader.steps_per_epoch if loader.steps_per_epoch else None,
        batch=key.batch,
        batch_unit="seconds" if in_seconds else "blocks" if hasattr(key, "block_size") else "examples",
        micro_batch=loader.micro_batch,
        accumulation=loader.per_step // rank_stride(loader.per_step, process.world_size),
        workers=recipe.data.num_workers,
        device=str(process.device),
        processes=process.world_size,
        precision=recipe.train.precision,
        warmup_steps=_warmup_steps(recipe),
        teacher=_teacher_plan(recipe),
        warm_start=math.ceil(target.fade_to * recipe.train.steps) if target is not None and target.fades else 0,
        input_share=target.weight if target is not None and not target.fades else 0.0,
        checkpoints=min(number, saves),
        checkpoint_bytes=checkpoint_bytes(objective),
        measured=measured,
        advice=(),
    )
    return replace(plan, advice=tuple(advise(plan, recipe, loader, folder)))


def _warmup_steps(recipe: Recipe) -> int:
    schedule = recipe.train.schedule
    return round(schedule.warmup * recipe.train.steps) if isinstance(schedule, TriStage) else schedule.warmup_steps


def _teacher_plan(recipe: Recipe) -> TeacherPlan | None:
    if (settings := getattr(recipe.objective, "teacher", None)) is None:
        return None
    schedule = settings.schedule(recipe.train.steps)
    return TeacherPlan(_half_life(schedule.decay), _half_life(schedule.end_decay), schedule.anneal_steps)


def _half_life(decay: float) -> float | None:
    if decay >= 1:
        return None
    return math.log(0.5) / math.log(decay) if decay > 0 else 0.0


def checkpoint_bytes(objective: nn.Module) -> int:
    """All weights, and Adam's two moments of the trained ones."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in objective.state_dict().values())
    return weights + 2 * FLOAT_BYTES * sum(p.numel() for p in objective.parameters() if p.requires_grad)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
