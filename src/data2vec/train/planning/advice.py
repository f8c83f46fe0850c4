"""What would be unwise about a run, each with its reason and with the setting that would be better.

A rule rests on what the run would do, on a measurement of this project, or on the published runs, whose settings the base
recipes have.
"""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data2vec.console.quantities import format_bytes, format_duration
from data2vec.data.check.report import RECIPE_NEEDS
from data2vec.data.loader import Loader
from data2vec.data.masked_batches import rank_stride
from data2vec.data.sources.formats import SignalKind
from data2vec.data.sources.open_dataset import list_splits
from data2vec.data.sources.shards import Request
from data2vec.health.causes import MIN_TEACHER_DECAY, slower_teacher
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.run_length import unfinished_schedules
from data2vec.recipe.task_settings import SupervisedSettings

if TYPE_CHECKING:
    from data2vec.train.planning.run_plan import RunPlan

PUBLISHED_EPOCHS = {
    ("speech", "data2vec"): 440,
    ("speech", "data2vec2"): 58,
    ("vision", "data2vec"): 800,
    ("vision", "data2vec2"): 75,
    ("text", "data2vec"): 40,
    ("text", "data2vec2"): 10,
}
"""Epochs of the published base models: of speech, steps × batch over the 960 h of LibriSpeech; of images, as
published; of text, as BERT's paper (appendix A.2) counts 1,000,000 steps of 256 × 512 tokens of the same data, of which
version 2 takes a quarter."""
MANY_EPOCHS = 5
"""Times the published epochs from which on a run is reported."""
FULL_MEMORY = 0.9
"""The share of the available memory from which on a run is reported: batches differ in length, and evaluation comes on top."""
LONG_SECONDS = 14 * 86400
"""A run that takes longer on a CPU is reported."""
BASE_WIDTH = 768
"""The width of the base models."""
MEDIA: dict[str, SignalKind] = {"speech": "audio", "vision": "image", "text": "text"}


@dataclass(frozen=True)
class Advice:
    """Something unwise."""

    key: str
    """The setting that it is about."""
    reason: str
    better: str
    """What to do instead, with the setting."""

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}; {self.better}"


def advise(plan: "RunPlan", recipe: Recipe, loader: Loader, folder: Path) -> Iterator[Advice]:
    """What would be unwise about this run, the length of the run first."""
    for line in unfinished_schedules(recipe):
        key, _, rest = line.partition(": ")
        reason, _, better = rest.rpartition("; ")
        yield Advice(key, reason, better)
    yield from _teacher(plan, recipe)
    yield from _epochs(plan)
    yield from _amount_of_data(plan, recipe, loader)
    yield from _batch(plan, recipe, loader)
    yield from _validation(recipe, getattr(loader.modality, "kind", None))
    yield from _machine(plan, recipe, folder)


def _teacher(plan: "RunPlan", recipe: Recipe) -> Iterator[Advice]:
    """Reports a teacher that the verdict on the run would call too fast."""
    half_life = None if plan.teacher is None else plan.teacher.half_life
    if half_life is None or half_life >= (shortest := math.log(0.5) / math.log(MIN_TEACHER_DECAY)):
        return
    by_share = getattr(recipe.objective.teacher, "half_life", None) is not None
    yield Advice(
        "objective.teacher.half_life" if by_share else "objective.teacher.decay",
        f"the teacher starts with a half-life of {half_life:.2g} steps, and below {shortest:.2g} it is hardly an average",
        f"set {slower_teacher(plan.steps)}" if by_share else "set objective.teacher.decay=0.99, or more for long runs",
    )


def _epochs(plan: "RunPlan") -> Iterator[Advice]:
    if plan.epochs is None:
        return
    per_epoch = max(1, round(plan.steps / plan.epochs))  # of all steps, of which a part of a joint run makes a share
    if plan.epochs < 1:
        yield Advice(
            "train.steps",
            f"{plan.steps:,} steps are {plan.epochs:.1%} of an epoch, so the other examples are never seen",
            f"set train.steps={per_epoch} for one epoch, or give less data",
        )
    published = PUBLISHED_EPOCHS.get((plan.modality, plan.objective))
    if published is not None and plan.epochs > MANY_EPOCHS * published:
        yield Advice(
            "train.steps",
            f"{plan.steps:,} steps are {plan.epochs:,.0f} epochs, and the published base model was trained for {published}",
            f"set train.steps={max(1, round(published * plan.steps / plan.epochs))}, or give more data",
        )


def _amount_of_data(plan: "RunPlan", recipe: Recipe, loader: Loader) -> Iterator[Advice]:
    """Reports large models with little data, by what `data2vec check` suggests."""
    kind = MEDIA.get(plan.modality)
    supervised = isinstance(recipe.objective, SupervisedSettings)
    if kind is None or plan.examples is None or supervised or recipe.init is not None or recipe.encoder.width < BASE_WIDTH:
        return
    large = RECIPE_NEEDS[kind][0]
    amount = plan.tokens if plan.tokens is not None else plan.hours * 3600 if plan.hours is not None else plan.examples
    if amount < large.enough:
        unit = "hours" if plan.hours is not None else large.unit
        scale = 3600 if plan.hours is not None else 1
        yield Advice(
            "encoder.width",
            f"{recipe.encoder.width} is the width of a base model, which data2vec check suggests from "
            f"{large.enough / scale:,.0f} {unit} on, and there are {amount / scale:,.4g}",
            f"use {plan.modality}/v2-small or {plan.modality}/v2-tiny, or continue a trained model by init=MODEL",
        )
    if plan.cropped > plan.examples / 2:
        yield Advice(
            "data.max_seconds",
            f"{plan.cropped:,} of {plan.examples:,} clips are longer than {getattr(recipe.data, 'max_seconds', 0):g} s, and an "
            "epoch sees a random part of that length of each",
            "split the recordings into shorter clips, or train for more epochs",
        )


def _batch(plan: "RunPlan", recipe: Recipe, loader: Loader) -> Iterator[Advice]:
    per_step, world = loader.per_step, plan.processes
    micro = next((name for name in type(recipe.data).model_fields if name.startswith("micro_batch")), "micro_batch")
    if world > 1 and rank_stride(per_step, world) == 1:
        even = plan.batch / (world * math.ceil(per_step / world))
        yield Advice(
            f"data.{micro}",
            f"a step has {per_step} micro-batches, which {world} processes cannot share evenly, so each process makes a part "
            "of every one of them",
            f"set data.{micro}={_fraction(even, micro)}",
        )
    longest = 0.0 if loader.examples is None else float(loader.examples.costs.max())
    if longest > plan.micro_batch * (1 + 1e-6):
        count = max(1, math.floor(plan.batch / longest))
        better = f"set data.{micro}={plan.batch / count:g}" if plan.batch >= longest else f"set data.max_seconds={plan.batch:g}"
        yield Advice(
            f"data.{micro}",
            f"the longest example has {longest:g} {plan.batch_unit}, more than a micro-batch of {plan.micro_batch:g} (a step "
            f"of {plan.batch:g} in {per_step} parts), so it is one by itself and the step is larger than the recipe says",
            better,
        )


def _fraction(value: float, key: str) -> str:
    return f"{math.ceil(value - 1e-6)}" if key.endswith("size") else f"{value:g}"


def _validation(recipe: Recipe, kind: SignalKind | None) -> Iterator[Advice]:
    data = recipe.data
    if data.valid is None:
        if isinstance(recipe.objective, SupervisedSettings):
            yield Advice(
                "data.valid",
                "without validation data the last model is kept, and not the best one",
                "set data.valid to labelled data that is not trained on",
            )
        return
    if data.train != data.valid or data.train is None or data.train_rows != data.valid_rows or kind is None:
        return
    if data.split == data.valid_split or not list_splits(
        Request(data.train, kind, data.column, follow_links=data.follow_links)
    ):
        yield Advice(
            "data.valid",
            "is the training data, so scores on it say nothing about new data",
            "set data.valid to other data, or select other rows by data.train_rows and data.valid_rows",
        )


def _machine(plan: "RunPlan", recipe: Recipe, folder: Path) -> Iterator[Advice]:
    steps, every = plan.steps, recipe.train.checkpoint_every
    if every > steps:
        yield Advice(
            "train.checkpoint_every",
            f"{every:,} is more than the {steps:,} steps of the run, so a run that is killed starts again from step 0",
            f"set train.checkpoint_every={max(1, steps // 10)}",
        )
    if (recipe.data.workers or 0) > (cores := os.cpu_count() or 1):
        yield Advice(
            "data.workers",
            f"{recipe.data.workers} processes that load data share {cores} cores",
            f"set data.workers={cores}",
        )
    needed, free = plan.checkpoints * plan.checkpoint_bytes, _free_bytes(folder)
    if needed > free:
        yield Advice(
            "train.keep_checkpoints",
            f"the checkpoints need {format_bytes(needed)}, and {format_bytes(free)} are free for {folder}",
            "free some space, choose another --out, or set train.keep_checkpoints=1",
        )
    if (found := plan.measured) is None:
        return
    most = FULL_MEMORY * found.available
    if found.memory <= most < found.memory + found.copied:
        yield Advice(
            "train.async_checkpoints",
            f"the copy of a checkpoint takes {format_bytes(found.copied)} beside the {format_bytes(found.memory)} of a "
            f"micro-batch, of {format_bytes(found.available)} of memory",
            "set train.async_checkpoints=false",
        )
    elif found.memory > most:
        micro = next((name for name in type(recipe.data).model_fields if name.startswith("micro_batch")), "micro_batch")
        yield Advice(
            f"data.{micro}",
            f"a micro-batch takes {format_bytes(found.memory)} of {format_bytes(found.available)} of memory",
            f"set data.{micro}=auto, or train.recompute=true",
        )
    if plan.load_seconds is not None and plan.load_seconds > found.seconds:
        yield Advice(
            "data.workers",
            f"loading a step takes {format_duration(plan.load_seconds)}, and the step itself {format_duration(found.seconds)}",
            "raise data.workers if there are cores left, or store smaller or decoded files",
        )
    left = plan.seconds or 0
    if plan.device == "cpu" and left > LONG_SECONDS:
        fitting = max(1, int(steps * 86400 / left))
        yield Advice(
            "train.steps",
            f"{steps:,} steps take {format_duration(left)} on this CPU",
            f"use a GPU, a smaller recipe ('data2vec recipes'), or train.steps={fitting} for a day",
        )


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
