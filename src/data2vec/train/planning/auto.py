"""`auto`: numbers of a recipe that are chosen for the data and the memory at hand, before a run starts.

The run folder's recipe has the chosen numbers, so a run that is resumed or repeated has the same. The global batch never
changes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data2vec.console.quantities import format_bytes
from data2vec.data.bucketing import MicroBatch
from data2vec.data.loader import Loader
from data2vec.data.masked_batches import micro_batches_per_step
from data2vec.distributed import Process
from data2vec.errors import UserError, get_logger
from data2vec.modalities.custom_classes import CustomClass
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict, JsonMapping
from data2vec.train.planning.advice import PUBLISHED_EPOCHS
from data2vec.train.planning.measure import available_memory, copied_bytes, peak_memory
from data2vec.train.train_step import TrainStep

log = get_logger(__name__)

FINETUNING_EPOCHS = {"vision": 100, "text": 10}
"""Of classification: the published base models on ImageNet-1K and on GLUE."""
FEWEST_STEPS = 500
"""The shortest of the shipped runs, vision/v2-tiny."""
CONTINUED_SHARE = 0.1
"""Of the published epochs and steps, for a run that starts from a trained model. A rule of thumb."""
MOST_MEMORY = 0.7
"""The share of the available memory that a micro-batch may take; evaluation and longer batches come on top."""
SLOWER = 1.1
"""A larger micro-batch is chosen unless it is slower by this factor, by the example, than the fastest; timings vary as much."""
MOST_SECONDS = 60.0
"""Spent on measurements; the last one may end later."""


@dataclass(frozen=True)
class Auto:
    """What is `auto` in a recipe, which has a preliminary number there."""

    keys: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    """Settings of the call, which are not scaled with the steps."""
    recipe_steps: int | None = None
    """`train.steps` of the recipe as it is, by which its other counts of steps are scaled; None: not at all."""
    also_scaled: frozenset[str] = frozenset()
    """Settings that are scaled too, besides those named _steps."""


NOTHING_AUTO: Auto = Auto()


class Task(Protocol):
    """What of a `TrainingTask` is needed here."""

    @property
    def loader(self) -> Loader: ...
    @property
    def objective(self) -> AnyTrainingObjective: ...


def find_auto(recipe: str | Path | Recipe, overrides: JsonMapping, keys: set[str], modality: CustomClass | None) -> Auto:
    """What to choose in a recipe with these overrides; `keys`: what `load_recipe` found to be auto."""
    if not keys:
        return NOTHING_AUTO
    in_recipe: set[str] = set()
    steps = load_recipe(recipe, modality=modality, auto=in_recipe).train.steps
    return Auto(frozenset(keys), frozenset(overrides), None if "train.steps" in in_recipe else steps)


def resolve_auto(recipe: Recipe, auto: Auto, build_task: Callable[[Recipe, Process, bool], Any], process: Process) -> Recipe:
    """The recipe with numbers for what is auto, as the main process chooses them.

    Raises UserError where there is no rule, and as building the task does."""
    if not auto.keys:
        return recipe
    chosen = process.on_main_process(lambda: _choose(recipe, auto, build_task, process))
    return load_recipe(recipe, chosen)


def _choose(recipe: Recipe, auto: Auto, build_task: Callable[[Recipe, Process, bool], Task], process: Process) -> JsonDict:
    trial = load_recipe(recipe, {"data.workers": 0, "probe.data": None, "data.valid": None, "train.shard": False})
    with torch.random.fork_rng():
        task = build_task(trial, process.alone, False)
        if task.loader.examples is None:
            raise UserError(f"{min(auto.keys)}: auto needs data that is indexed, and data.streaming is true; set a number")
        chosen: JsonDict = {}
        if "train.steps" in auto.keys:
            steps = choose_steps(recipe, task.loader)
            chosen |= {"train.steps": steps} | _scaled(recipe, auto, steps)
        for key in auto.keys - {"train.steps"}:
            chosen[key] = choose_micro_batch(trial, key, task, process)
    log.warning("auto: %s", ", ".join(f"{key}={value:g}" for key, value in chosen.items()))  # warnings are always shown
    return chosen


def _scaled(recipe: Recipe, auto: Auto, steps: int) -> JsonDict:
    """The recipe's other counts of steps, scaled with `train.steps`; without those that the call sets."""
    if auto.recipe_steps is None:
        return {}
    counts = {
        key: value for key, value in recipe.flat().items() if value and (key.endswith("_steps") or key in auto.also_scaled)
    }
    free = {key: value for key, value in counts.items() if key not in auto.fixed and not key.startswith("health.")}
    return {key: max(1, round(value * steps / auto.recipe_steps)) for key, value in free.items()}


def choose_steps(recipe: Recipe, loader: Loader) -> int:
    """As many epochs as the published base model of this modality and objective was trained for, or CONTINUED_SHARE of them for
    a run that starts from a trained model; at least FEWEST_STEPS, and at most as many steps as published, or that share of
    them. Raises UserError where nothing is published."""
    modality, name = recipe.modality.name, recipe.objective.name
    assert loader.steps_per_epoch is not None
    if name == "classify" and modality in FINETUNING_EPOCHS:
        return max(FEWEST_STEPS, FINETUNING_EPOCHS[modality] * loader.steps_per_epoch)
    if (epochs := PUBLISHED_EPOCHS.get((modality, name))) is None:
        raise UserError(f"train.steps: auto has no rule for {name} on {modality}; set a number")
    published = load_recipe(f"{modality}/{'v1' if name == 'data2vec' else 'v2'}-base").train.steps
    share = 1.0 if recipe.init is None else CONTINUED_SHARE
    return max(1, min(round(share * published), max(FEWEST_STEPS, round(share * epochs * loader.steps_per_epoch))))


def choose_micro_batch(recipe: Recipe, key: str, task: Task, process: Process) -> float:
    """The largest micro-batch that fits into MOST_MEMORY and is not SLOWER, by measuring steps with 1, 2, 4, … of the longest
    examples, for about MOST_SECONDS; such that equal micro-batches make up the global batch, and processes share them evenly if
    they can.

    Changes the weights of the task's objective. Raises errors for a lack of memory when a single example does not fit."""
    loader, device = task.loader, process.device
    assert loader.examples is not None
    order = np.argsort(-loader.examples.costs, kind="stable")
    longest = max(float(loader.examples.costs[order[0]]), getattr(recipe.data, "max_seconds", 0.0))
    most_rows = max(1, min(len(order), math.floor(recipe.data.batch / longest + 1e-6)))
    make_step = TrainStep(task.objective, recipe.train, process.alone)
    copied = copied_bytes(recipe, task.objective, device)
    begin, rows, previous = time.monotonic(), 1, 0
    seconds: dict[int, float] = {}
    while rows <= most_rows:
        try:
            memory, duration = _measure(make_step, loader, order[:rows], device)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            break
        available = MOST_MEMORY * available_memory(device) - copied
        log.debug("auto: %d rows take %s and %.3g s", rows, format_bytes(memory), duration)
        if rows > 1 and memory > available:
            break
        seconds[rows] = duration / rows
        doubled = memory + 2 * (memory - previous if previous else 0)
        if doubled > available or time.monotonic() - begin > MOST_SECONDS:
            break
        rows, previous = 2 * rows, memory
    best = max(rows for rows, each in seconds.items() if each <= SLOWER * min(seconds.values()))
    return even_micro_batch(recipe.data.batch, best * longest, longest, process.world_size, key.endswith("_size"))


def even_micro_batch(batch: float, largest: float, longest: float, world: int, whole: bool) -> float:
    """The largest micro-batch of at most `largest`, with room for the `longest` example, of which equal parts make up `batch`;
    as many as a multiple of `world` processes if that is possible. `whole`: an integer, so the last part may be smaller."""
    fewest = max(1, math.ceil(batch / largest - 1e-6))
    most = max(1, math.floor(batch / longest + 1e-6))
    for parts in range(fewest, most + 1):
        size = math.ceil(batch / parts - 1e-6) if whole else batch / parts
        if micro_batches_per_step(batch, size) % world == 0:
            return size
    size = max(longest, batch / min(fewest, most))
    return math.ceil(size - 1e-6) if whole else size


def _measure(make_step: TrainStep, loader: Loader, indices: np.ndarray, device: torch.device) -> tuple[int, float]:
    """Peak memory in bytes, and seconds, of a step with these examples in one micro-batch."""
    assert loader.examples is not None
    limit = float(loader.examples.costs[indices].min())
    loaded: Any = loader.batches[MicroBatch(indices, slice(None), limit, (loader.seed, 0, 0))]
    if isinstance(loaded, Exception):
        raise loaded
    durations = []
    with peak_memory(device) as peak:
        float(make_step(1, [loaded.batch], measure=True, norm=True).loss)
        for _ in range(2):
            begin = time.perf_counter()
            float(make_step(1, [loaded.batch], measure=False, norm=False).loss)
            durations.append(time.perf_counter() - begin)
    return peak.bytes, min(durations)
