"""The plan of a comparison: what every run costs, how many steps it gets, and which jobs there are.

A job is a run with its evaluations, in a folder with a fixed name. Which jobs there are depends on the outcomes of others: the
runs of the grid select the settings of the runs with the seeds of the comparison.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from data2vec.atomic_io import write_json
from data2vec.comparison.evaluations import FinetuneEvaluation, Scores
from data2vec.comparison.settings import Combination, ComparisonSettings, arm_recipe, combinations, online_probe
from data2vec.errors import UserError, without_repeats
from data2vec.recipe.joint import JointRecipe
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict, JsonMapping
from data2vec.train.planning.step_cost import StepCost, step_cost

POINTS = 5
"""Probes along a run, and checkpoints."""
TRIVIAL = "trivial baselines"
"""The name of what stands beside the arms: hand-made features, and the most frequent class."""


@dataclass(frozen=True)
class EvaluationTask:
    """An evaluation in a job."""

    name: str
    definition: JsonDict
    """Its section of the comparison file, so that a changed one is noticed."""
    settings: Combination
    """A combination of the evaluation's grid."""
    extra_flops: float = 0.0
    """Operations by which fine-tuning is prolonged."""


@dataclass(frozen=True)
class Job:
    """A unit of work: pre-training, or a model of another job; then evaluations."""

    folder: str
    """Relative to the output folder: the job's name."""
    arm: str
    seed: int
    train: bool
    """Whether there is something to pre-train."""
    recipe: JsonDict | None
    """The complete recipe of pre-training; or of the encoder with new weights."""
    model: str | None
    """The folder of the job whose model is evaluated; None: of this job, or new weights."""
    evaluations: tuple[EvaluationTask, ...]

    def to_json(self) -> JsonDict:
        """As JSON reads it back."""
        result: JsonDict = json.loads(json.dumps(asdict(self)))
        return result


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: JsonDict
    """The job as it was."""
    failed: str | None
    """Why pre-training failed."""
    collapsed: bool
    """Whether that was a collapse, which would happen again."""
    seconds: float
    """Duration of pre-training."""
    curve: list[tuple[int, float]]
    """(step, accuracy of the linear probe on dev) along the run."""
    evaluations: dict[str, JsonDict]
    """By evaluation, its Scores, or {"failed": reason}."""

    @property
    def must_repeat(self) -> bool:
        """Whether it failed for a reason that may be gone, such as a missing file; a collapse would happen again."""
        failed = self.failed is not None and not self.collapsed
        return failed or any("failed" in scores for scores in self.evaluations.values())

    def scores(self, evaluation: str) -> Scores | None:
        """The scores of an evaluation, if it succeeded."""
        found = self.evaluations.get(evaluation)
        return None if found is None or "failed" in found else Scores(**found)


Outcomes = Mapping[str, Outcome]
"""By folder of the job."""


class Plan:
    """The jobs of a comparison in an output folder, where costs are kept if it exists."""

    def __init__(self, settings: ComparisonSettings, out: Path, processes: int = 1):
        """`processes`: jobs that will run at a time; steps are timed with as many cores as one of them gets."""
        self.settings, self.out, self.processes = settings, out, processes
        self._recipes: dict[str, Recipe] = {}
        self._measured: dict[str, JsonMapping] = {}
        self._logged: set[str] = set()  # messages on the data of all arms
        slugs = [folder_name(name) for name in (*settings.arms, *settings.evaluations, TRIVIAL)]
        if len(set(slugs)) < len(slugs):
            raise UserError(f"arms, evaluations: folders {', '.join(slugs)} would coincide; use names that differ in letters")

    def arm_recipe(self, arm: str, combination: Combination) -> Recipe:
        """The recipe of an arm, with what its modality reads off the training data. Raises UserError as training does."""
        recipe = arm_recipe(self.settings, arm, combination)
        if isinstance(recipe, JointRecipe):
            raise UserError(f"arms.{arm}: joint recipes cannot be compared; use recipes of one modality")
        if recipe.data.train is None:
            return recipe
        raw = recipe.model_dump(mode="json")
        key = json.dumps([raw["modality"], raw["data"]], sort_keys=True)
        if key not in self._measured:
            with without_repeats(self._logged):
                self._measured[key] = recipe.build_modality().measure(str(recipe.data.train))
        return load_recipe(recipe, self._measured[key])

    @cached_property
    def _costs(self) -> dict[str, StepCost]:
        path = self.out / "costs.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {key: StepCost(**value) for key, value in known.items()}

    def cost(self, arm: str, combination: Combination) -> StepCost:
        """What a step of an arm costs, counted once."""
        recipe = self.arm_recipe(arm, combination)
        raw = recipe.model_dump(mode="json")
        raw = {key: raw[key] for key in ("modality", "encoder", "objective", "data")} | {"precision": recipe.train.precision}
        key = f"{arm} {hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:16]}"
        if key not in self._costs:
            if recipe.data.train is None:
                raise UserError("data.train: no training data; set it in `data` of the file, or as data.train=DATA")
            with _threads(self.processes), without_repeats(self._logged):
                self._costs[key] = step_cost(recipe)
            if self.out.exists():
                costs = {key: asdict(cost) for key, cost in self._costs.items()}
                write_json(self.out / "costs.json", costs)
        return self._costs[key]

    def steps(self, arm: str, combination: Combination, share: float = 1.0) -> int:
        """The steps that the budget, or a share of it, gives an arm. Raises UserError for less than one."""
        budget, cost = self.settings.budget, self.cost(arm, combination)
        if budget.steps is not None:
            return max(1, round(budget.steps * share))
        name, total, each = (
            ("flops", budget.flops, cost.flops) if budget.flops is not None else ("seconds", budget.seconds, cost.seconds)
        )
        assert total is not None
        if (steps := math.floor(total * share / each)) < 1:
            raise UserError(f"budget.{name}: {total * share:.3g} is less than one step of {arm!r}, which costs {each:.3g}")
        return steps

    def recipe(self, arm: str, combination: Combination, seed: int, share: float = 1.0, probe: bool = False) -> Recipe:
        """The complete recipe of a run: steps by the budget, and step counts of the recipe scaled with them."""
        key = json.dumps([arm, combination, seed, share, probe], sort_keys=True)
        if key not in self._recipes:
            self._recipes[key] = self._sized_recipe(arm, combination, seed, share, probe)
        return self._recipes[key]

    def _sized_recipe(self, arm: str, combination: Combination, seed: int, share: float, probe: bool) -> Recipe:
        recipe, steps = self.arm_recipe(arm, combination), self.steps(arm, combination, share)
        literal = (*self.settings.data, *self.settings.arms[arm].settings, *combination)
        sizes: JsonDict = {}
        for key, value in recipe.flat().items():
            if not key.endswith("_steps") or not isinstance(value, int):
                continue
            if not any(f"{key}.".startswith(f"{each}.") for each in literal):
                sizes[key] = round(value * steps / recipe.train.steps)
            elif value > steps and not key.startswith("health."):
                raise UserError(
                    f"arms.{arm}: {key} is {value}, more than the {steps} steps of the budget; lower it, or leave it to "
                    "the recipe, which is scaled"
                )
        every = max(1, math.ceil(steps / POINTS))
        files = {"train.checkpoint_every": every, "train.keep_checkpoints": 1, "log.every": max(1, steps // 50)}
        probes = online_probe(self.settings) | {"probe.every": every} if probe else {}
        run = {"train.steps": steps, "train.seed": seed, "log.report": False}
        return load_recipe(recipe, sizes | files | probes | run)

    def flops(self, arm: str, combination: Combination) -> float:
        """What pre-training of an arm costs."""
        return self.steps(arm, combination) * self.cost(arm, combination).flops

    def combinations(self, arm: str) -> list[Combination]:
        """The combinations of an arm's pre-training grid."""
        settings = self.settings.arms[arm]
        return combinations(settings.grid if settings.is_trained else {})

    def tuning_folder(self, arm: str, combination: Combination) -> str:
        """The job of a combination of an arm's grid."""
        return f"{folder_name(arm)}/tune/{combination_name(combination)}"

    def seed_folder(self, arm: str, seed: int) -> str:
        """The job of a seed of the comparison."""
        return f"{folder_name(arm)}/seed-{seed}"

    def chosen(self, arm: str, outcomes: Outcomes) -> Combination | None:
        """The combination with the best dev score; None while runs of the grid are missing, or when all have failed."""
        every = self.combinations(arm)
        if len(every) == 1:
            return every[0]
        return self._best({self.tuning_folder(arm, each): each for each in every}, self.selecting, outcomes)

    @property
    def selecting(self) -> str:
        """The evaluation that selects among pre-training settings."""
        return self.settings.tune.by or next(iter(self.settings.evaluations))

    def finetune_combinations(self, arm: str, evaluation: str) -> list[Combination]:
        """The combinations of the grid of an evaluation by fine-tuning."""
        settings, found = self.settings.arms[arm], self.settings.evaluations[evaluation]
        assert isinstance(found, FinetuneEvaluation)
        return combinations(settings.grid if settings.scratch and settings.grid else found.grid)

    def finetune_folder(self, arm: str, evaluation: str, name: str) -> str:
        """The job of an evaluation by fine-tuning; `name`: of a combination or a seed."""
        return f"{folder_name(arm)}/{folder_name(evaluation)}/{name}"

    def finetune_tuning_folder(self, arm: str, evaluation: str, combination: Combination) -> str:
        """The job of a combination of the grid of fine-tuning."""
        return self.finetune_folder(arm, evaluation, f"tune/{combination_name(combination)}")

    def finetune_chosen(self, arm: str, evaluation: str, outcomes: Outcomes) -> Combination | None:
        """The combination of fine-tuning with the best dev score; None as in `chosen`."""
        every = self.finetune_combinations(arm, evaluation)
        if len(every) == 1:
            return every[0]
        folders = {self.finetune_tuning_folder(arm, evaluation, each): each for each in every}
        return self._best(folders, evaluation, outcomes)

    def _best(self, folders: Mapping[str, Combination], evaluation: str, outcomes: Outcomes) -> Combination | None:
        if any(folder not in outcomes for folder in folders):
            return None
        best: tuple[float, Combination] | None = None
        for folder, combination in folders.items():
            if (scores := outcomes[folder].scores(evaluation)) is not None:
                metric, value = next(iter(scores.dev.items()))
                value = value if scores.higher_is_better[metric] else -value
                if best is None or value > best[0]:
                    best = value, combination
        return None if best is None else best[1]

    def jobs(self, outcomes: Outcomes, only: Sequence[str] = ()) -> Iterator[Job]:
        """All jobs that these outcomes allow, done ones included; those of some arms only, if `only` names them."""
        for arm in self.selected(only):
            if arm == TRIVIAL:
                yield from self._trivial_jobs()
                continue
            yield from self._pretraining_jobs(arm, outcomes)
            for evaluation in self.finetunings(arm):
                yield from self._finetuning_jobs(arm, evaluation, outcomes)

    def selected(self, only: Sequence[str] = ()) -> list[str]:
        """The names of what has jobs: all arms and the trivial baselines, or those in `only`."""
        return list(only) or [*self.settings.arms, *([TRIVIAL] if self.settings.trivial else [])]

    def started(self, only: Sequence[str] = ()) -> list[str]:
        """Those in `only`, and those that have a folder already; all without `only`."""
        return [arm for arm in self.selected() if not only or arm in only or (self.out / folder_name(arm)).exists()]

    def trivial_folder(self, evaluation: str, seed: int) -> str:
        """The job of the trivial baselines of an evaluation."""
        return f"{folder_name(TRIVIAL)}/{folder_name(evaluation)}/seed-{seed}"

    def _trivial_jobs(self) -> Iterator[Job]:
        for evaluation in self.settings.evaluations:
            for seed in self.settings.seeds:
                tasks = (self._task(evaluation),)
                yield Job(self.trivial_folder(evaluation, seed), TRIVIAL, seed, False, None, None, tasks)

    def _task(self, evaluation: str, settings: Combination | None = None, extra_flops: float = 0.0) -> EvaluationTask:
        definition = self.settings.evaluations[evaluation].model_dump(mode="json")
        return EvaluationTask(evaluation, definition, settings or {}, extra_flops)

    def finetunings(self, arm: str) -> list[str]:
        """The evaluations that have jobs of their own: those by fine-tuning, of arms that take part in it."""
        evaluations = self.settings.evaluations.items()
        return [
            name for name, each in evaluations if isinstance(each, FinetuneEvaluation) and self.settings.takes_part(arm, name)
        ]

    def _pretraining_jobs(self, arm: str, outcomes: Outcomes) -> Iterator[Job]:
        settings, tune = self.settings.arms[arm], self.settings.tune
        probes = [name for name, each in self.settings.evaluations.items() if not isinstance(each, FinetuneEvaluation)]
        tasks = tuple(self._task(name) for name in probes)
        if settings.untrained:
            for seed in self.settings.seeds:
                recipe = self.arm_recipe(arm, {}).model_dump(mode="json")
                yield Job(self.seed_folder(arm, seed), arm, seed, False, recipe, None, tasks)
        if not settings.is_trained:
            return
        every = self.combinations(arm)
        for combination in every if len(every) > 1 else ():
            raw = self.recipe(arm, combination, tune.seed, tune.budget).model_dump(mode="json")
            selecting = (self._task(self.selecting),)
            yield Job(self.tuning_folder(arm, combination), arm, tune.seed, True, raw, None, selecting)
        if (combination := self.chosen(arm, outcomes)) is not None:  # type: ignore[assignment]
            for seed in self.settings.seeds:
                raw = self.recipe(arm, combination, seed, probe=True).model_dump(mode="json")
                yield Job(self.seed_folder(arm, seed), arm, seed, True, raw, None, tasks)

    def _finetuning_jobs(self, arm: str, evaluation: str, outcomes: Outcomes) -> Iterator[Job]:
        settings, tune = self.settings.arms[arm], self.settings.tune
        recipe, extra = None, 0.0
        if settings.scratch:
            models: dict[int, str | None] = dict.fromkeys(self.settings.seeds)
            if settings.recipe or self.settings.recipe:
                recipe = self.arm_recipe(arm, {}).model_dump(mode="json")
            if settings.equal_flops:
                if (reference := self.chosen(self.settings.reference_arm, outcomes)) is None:
                    return
                extra = self.flops(self.settings.reference_arm, reference)
        else:
            folders = {seed: self.seed_folder(arm, seed) for seed in self.settings.seeds}
            models = {seed: each for seed, each in folders.items() if each in outcomes and outcomes[each].failed is None}

        def job(name: str, seed: int, model: str | None, combination: Combination) -> Job:
            folder = self.finetune_folder(arm, evaluation, name)
            return Job(folder, arm, seed, False, recipe, model, (self._task(evaluation, combination, extra),))

        every, first = self.finetune_combinations(arm, evaluation), self.settings.seeds[0]
        if len(every) > 1 and first in models:
            for combination in every:
                yield job(f"tune/{combination_name(combination)}", tune.seed, models[first], combination)
        if (chosen := self.finetune_chosen(arm, evaluation, outcomes)) is not None:
            for seed, model in models.items():
                yield job(f"seed-{seed}", seed, model, chosen)

    def job_count(self, only: Sequence[str] = ()) -> int:
        """The number of jobs, if none fails."""
        total, seeds = 0, len(self.settings.seeds)
        for arm in self.selected(only):
            if arm == TRIVIAL:
                total += seeds * len(self.settings.evaluations)
                continue
            sizes = [len(self.finetune_combinations(arm, each)) for each in self.finetunings(arm)]
            sizes += [] if self.settings.arms[arm].scratch else [len(self.combinations(arm))]
            total += sum(seeds + (size if size > 1 else 0) for size in sizes)
        return total


@contextmanager
def _threads(processes: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def folder_name(name: str) -> str:
    """The name of an arm or an evaluation as that of a folder."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.").lower() or "unnamed"


def combination_name(combination: Combination) -> str:
    """A combination as the name of a folder: the last part of each key, and the value."""
    return folder_name(" ".join(f"{key.rpartition('.')[2]}={value}" for key, value in combination.items())) or "recipe"
