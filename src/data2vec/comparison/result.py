"""The result of a comparison: every score by seed, with differences to the reference; chosen settings and costs."""

import json
import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data2vec.atomic_io import write_json
from data2vec.comparison.evaluations import Scores
from data2vec.comparison.plan import TRIVIAL, Outcome, Outcomes, Plan
from data2vec.comparison.settings import Arm
from data2vec.settings import JsonDict

DEV = "dev"
"""The name of the set that choices are made on, beside those of the test sets."""


@dataclass(frozen=True)
class Row:
    """A metric of one arm on one set, over the seeds."""

    arm: str
    evaluation: str
    set: str
    """`dev`, or the name of a test set."""
    metric: str
    higher_is_better: bool
    values: dict[int, float]
    """By seed."""
    mean: float
    std: float | None
    """Standard deviation over the seeds; None for a single one."""
    stderr: float | None
    """Standard error of the mean."""
    difference: float | None
    """Mean over the seeds of the difference to the reference with the same seed; None of the reference itself."""
    difference_stderr: float | None
    """Its standard error."""


@dataclass(frozen=True)
class ArmResult:
    """What an arm is, what it cost, and what became of it."""

    name: str
    kind: str
    """trained, untrained, scratch or trivial."""
    recipe: str | None
    """The complete recipe of the first seed, as YAML."""
    settings: JsonDict | None
    """The combination of the grid that was chosen on dev; None if there is none, or not yet."""
    tuning: list[JsonDict]
    """Each combination with its dev score, or why it failed."""
    finetuning: dict[str, JsonDict]
    """By evaluation, the chosen combination and the scores of all."""
    steps: int | None
    """Optimizer steps of a pre-training run."""
    flops_per_step: float | None
    flops: float | None
    """Operations of a pre-training run."""
    seconds: dict[int, float]
    """Duration of pre-training, by seed."""
    failed: dict[str, str]
    """Why jobs failed, by their folder."""
    to_repeat: list[str]
    """The folders of the failed jobs that the next call tries again; a collapse would happen again."""
    missing: int
    """Jobs that have not run."""
    curves: dict[int, list[list[float]]]
    """By seed: [operations, accuracy of a linear probe on dev] along the run."""
    command: str
    """Runs this arm again, in a new folder."""


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison; `str()` of it is a table in Markdown."""

    reference: str
    """The arm that differences are against."""
    seeds: list[int]
    arms: list[ArmResult]
    rows: list[Row]
    machine: JsonDict
    """Hardware and versions."""
    settings: JsonDict
    """The comparison file, with absolute paths."""

    def __str__(self) -> str:
        from data2vec.comparison.table import format_tables

        return format_tables(self)

    def row(self, arm: str, evaluation: str, set: str, metric: str) -> Row:
        """One row. Raises KeyError."""
        for each in self.rows:
            if (each.arm, each.evaluation, each.set, each.metric) == (arm, evaluation, set, metric):
                return each
        raise KeyError((arm, evaluation, set, metric))

    def write(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: str | Path) -> "Comparison":
        """Read what `write` has written."""
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        raw["arms"] = [ArmResult(**_with_seeds(arm, "seconds", "curves")) for arm in raw["arms"]]
        raw["rows"] = [Row(**_with_seeds(row, "values")) for row in raw["rows"]]
        return Comparison(**raw)


def _with_seeds(raw: JsonDict, *keys: str) -> JsonDict:
    return raw | {key: {int(seed): value for seed, value in raw[key].items()} for key in keys}


def summarize(plan: Plan, outcomes: Outcomes, machine: JsonDict, only: Sequence[str] = ()) -> Comparison:
    """The result of all outcomes so far, of the arms in `only` and of those that have a folder."""
    settings = plan.settings
    scores = {arm: _scores(plan, arm, outcomes) for arm in settings.arms}
    reference = settings.reference_arm
    for evaluation in settings.evaluations:
        for seed in settings.seeds:
            if (outcome := outcomes.get(plan.trivial_folder(evaluation, seed))) is None:
                continue
            for name in outcome.evaluations:
                if (found := outcome.scores(name)) is not None:
                    scores.setdefault(name, {}).setdefault(evaluation, {})[seed] = found
    rows = [
        row
        for evaluation in settings.evaluations
        for arm in scores
        for row in _rows(
            arm, evaluation, scores[arm].get(evaluation, {}), scores.get(reference, {}).get(evaluation, {}), reference
        )
    ]
    arms = [_arm(plan, arm, outcomes) for arm in plan.started(only)]
    return Comparison(reference, list(settings.seeds), arms, rows, machine, settings.model_dump(mode="json"))


def _scores(plan: Plan, arm: str, outcomes: Outcomes) -> dict[str, dict[int, Scores]]:
    """By evaluation and seed."""
    found: dict[str, dict[int, Scores]] = {}
    for evaluation in plan.settings.evaluations:
        for seed in plan.settings.seeds:
            for folder in (plan.seed_folder(arm, seed), plan.finetune_folder(arm, evaluation, f"seed-{seed}")):
                if folder in outcomes and (scores := outcomes[folder].scores(evaluation)) is not None:
                    found.setdefault(evaluation, {})[seed] = scores
    return found


def _rows(
    arm: str, evaluation: str, scores: Mapping[int, Scores], reference: Mapping[int, Scores], reference_arm: str
) -> list[Row]:
    if not scores:
        return []
    first, rows = next(iter(scores.values())), []
    values, others = {seed: _by_set(each) for seed, each in scores.items()}, {s: _by_set(each) for s, each in reference.items()}
    for key in _by_set(first):
        own = {seed: each[key] for seed, each in values.items() if key in each}
        paired = [value - others[seed][key] for seed, value in own.items() if seed in others and key in others[seed]]
        is_reference = arm == reference_arm
        difference = None if is_reference or not paired else statistics.mean(paired)
        rows.append(
            Row(
                arm, evaluation, *key, first.higher_is_better.get(key[1], True), own, statistics.mean(own.values()),
                std(list(own.values())), standard_error(list(own.values())), difference,
                None if difference is None else standard_error(paired),
            )
        )  # fmt: skip
    return rows


def _by_set(scores: Scores) -> dict[tuple[str, str], float]:
    sets = {DEV: scores.dev, **scores.test}
    return {(name, metric): value for name, metrics in sets.items() for metric, value in metrics.items()}


def std(values: list[float]) -> float | None:
    """Sample standard deviation; None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def standard_error(values: list[float]) -> float | None:
    """Standard error of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _arm(plan: Plan, arm: str, outcomes: Outcomes) -> ArmResult:
    settings = Arm(untrained=True) if arm == TRIVIAL else plan.settings.arms[arm]
    kind = "trivial" if arm == TRIVIAL else "untrained" if settings.untrained else "scratch" if settings.scratch else "trained"
    chosen = plan.chosen(arm, outcomes) if settings.is_trained else None
    trained: JsonDict = {"recipe": None, "steps": None, "flops_per_step": None, "flops": None}
    if chosen is not None:
        recipe = plan.recipe(arm, chosen, plan.settings.seeds[0], probe=True)
        cost = plan.cost(arm, chosen).flops
        trained = {"recipe": recipe.to_yaml(), "steps": recipe.train.steps, "flops_per_step": cost}
        trained["flops"] = cost * recipe.train.steps
    own = list(plan.jobs(outcomes, [arm]))
    folders = {seed: plan.seed_folder(arm, seed) for seed in plan.settings.seeds}
    runs = {seed: outcomes[folder] for seed, folder in folders.items() if folder in outcomes}
    tuning = []
    if settings.is_trained and len(every := plan.combinations(arm)) > 1:
        tuning = [_tried(each, outcomes.get(plan.tuning_folder(arm, each)), plan.selecting) for each in every]
    command = f"data2vec compare {shlex.quote(str(plan.out / 'comparison.yaml'))} --only {shlex.quote(arm)}"
    return ArmResult(
        name=arm,
        kind=kind,
        **trained,
        settings=chosen,
        tuning=tuning,
        finetuning={name: _finetuning(plan, arm, name, outcomes) for name in ([] if arm == TRIVIAL else plan.finetunings(arm))},
        seconds={seed: run.seconds for seed, run in runs.items() if settings.is_trained},
        failed={job.folder: reason for job in own if (reason := failure(outcomes.get(job.folder))) is not None},
        to_repeat=[job.folder for job in own if job.folder in outcomes and outcomes[job.folder].must_repeat],
        missing=sum(job.folder not in outcomes for job in own),
        curves={
            seed: [[step * trained["flops_per_step"], value] for step, value in run.curve]
            for seed, run in runs.items()
            if run.curve and chosen is not None
        },
        command=f"{command} --out {shlex.quote(str(plan.out.with_name(plan.out.name + '-again')))}",
    )


def failure(outcome: Outcome | None) -> str | None:
    """Why a job failed, or None."""
    if outcome is None:
        return None
    reasons = [f"{name}: {each['failed']}" for name, each in outcome.evaluations.items() if "failed" in each]
    return outcome.failed or (reasons[0] if reasons else None)


def _tried(combination: JsonDict, outcome: Outcome | None, evaluation: str) -> JsonDict:
    scores = None if outcome is None else outcome.scores(evaluation)
    result: JsonDict = {"settings": combination, "dev": None if scores is None else next(iter(scores.dev.values()))}
    return result | ({"failed": reason} if (reason := failure(outcome)) is not None else {})


def _finetuning(plan: Plan, arm: str, evaluation: str, outcomes: Outcomes) -> JsonDict:
    every = plan.finetune_combinations(arm, evaluation)
    tried: list[Any] = []
    if len(every) > 1:
        folders = [plan.finetune_tuning_folder(arm, evaluation, each) for each in every]
        tried = [_tried(each, outcomes.get(folder), evaluation) for each, folder in zip(every, folders, strict=True)]
    return {"settings": plan.finetune_chosen(arm, evaluation, outcomes), "tuning": tried}
