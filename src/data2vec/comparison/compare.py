"""`compare()`: several objectives or settings at an equal budget, evaluated alike."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from data2vec.atomic_io import write_text
from data2vec.comparison.check_sets import check_sets
from data2vec.comparison.page import write_page
from data2vec.comparison.plan import TRIVIAL, Outcomes, Plan
from data2vec.comparison.result import Comparison, summarize
from data2vec.comparison.run import read_outcomes, run_plan
from data2vec.comparison.settings import load_comparison, recipes_as_arms
from data2vec.distributed import Process, resolve_device
from data2vec.errors import UserError, did_you_mean
from data2vec.recipe.yaml_format import dump_yaml
from data2vec.run_dir import exclusive_lock
from data2vec.settings import JsonMapping
from data2vec.train.provenance import describe_machine


def compare(
    comparison: str | Path | JsonMapping | Sequence[str],
    out: str | Path,
    data: str | Path | None = None,
    overrides: Iterable[str] | JsonMapping = (),
    only: Sequence[str] = (),
    processes: int = 1,
) -> Comparison:
    """Train all arms of a comparison at an equal budget with several seeds, evaluate them alike, and write tables to `out`.

    `comparison`: a comparison file, the name of a shipped one, the same as a mapping, or a list of recipes to compare. `data`:
    the folder that its paths are relative to; None: the working folder. `overrides`: "budget.flops=1e12", or settings of all
    recipes, such as "data.train=clips/". `only`: names of arms to run; the others are left as they are. `processes`: jobs that
    run at a time, each with its share of the cores.

    The same call resumes an interrupted comparison, and does nothing on a finished one. Writes results.json, table.md and
    compare.html. A run that fails is reported as failed; the others go on. Raises UserError for wrong settings."""
    plan = build_plan(comparison, out, data, overrides, only, processes)
    plan.out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(plan.out, Process(resolve_device("auto")), "another comparison runs"):
        _write_settings(plan)

        def say(line: str, outcomes: Outcomes) -> None:
            print(f"data2vec: {line}", file=sys.stderr, flush=True)
            write_results(plan, outcomes, only)

        run_plan(plan, only, say)
        return write_results(plan, read_outcomes(plan, only), only)


def build_plan(
    comparison: str | Path | JsonMapping | Sequence[str],
    out: str | Path,
    data: str | Path | None = None,
    overrides: Iterable[str] | JsonMapping = (),
    only: Sequence[str] = (),
    processes: int = 1,
) -> Plan:
    """The plan of a comparison, with arguments as for `compare`. Raises UserError for wrong ones."""
    if isinstance(comparison, Sequence) and not isinstance(comparison, str):
        comparison = recipes_as_arms(comparison)
    if processes < 1:
        raise UserError(f"--processes {processes}: must be at least 1")
    settings = load_comparison(comparison, overrides, data)
    plan = Plan(settings, Path(out).resolve(), processes)
    known = plan.selected()
    if wrong := [arm for arm in only if arm not in known]:
        hint = did_you_mean(wrong[0], known)
        raise UserError(f"--only {wrong[0]!r}: is not an arm{hint}; one of {', '.join(known)}")
    return plan


def write_results(plan: Plan, outcomes: Outcomes, only: Sequence[str] = ()) -> Comparison:
    """Write results.json, table.md and compare.html of all outcomes so far."""
    result = summarize(plan, outcomes, _machine(), only)
    result.write(plan.out / "results.json")
    write_text(plan.out / "table.md", str(result))
    write_page(result, plan.out / "compare.html")
    return result


def describe_plan(plan: Plan, only: Sequence[str] = ()) -> str:
    """The arms with steps, operations a step and estimated time, and the number of jobs; costs are counted and timed.

    Raises UserError as the start of the comparison does, also for the data of evaluations."""
    from data2vec.comparison.table import markdown

    check_sets(plan.settings, plan.selected(only))
    list(plan.jobs({}, only))  # whose recipes are checked
    settings, rows, total = plan.settings, [], 0.0
    for arm in plan.selected(only):
        if arm == TRIVIAL or not settings.arms[arm].is_trained:
            rows.append([arm, "–", "–", "–", "–", "–"])
            continue
        for combination in (every := plan.combinations(arm)):
            cost, steps = plan.cost(arm, combination), plan.steps(arm, combination)
            runs = len(settings.seeds) / len(every) + (settings.tune.budget if len(every) > 1 else 0)
            seconds = steps * cost.seconds
            total += runs * seconds
            shown = ", ".join(f"{key}={value}" for key, value in combination.items()) or "–"
            rows.append([arm, shown, f"{steps}", f"{cost.flops:.3g}", f"{steps * cost.flops:.3g}", f"{seconds:.0f}"])
    table = markdown(["arm", "settings", "steps", "FLOPs per step", "FLOPs", "seconds per run"], rows)
    jobs = plan.job_count(only)
    return (
        f"{table}\n\n{jobs} jobs, seeds {', '.join(map(str, settings.seeds))}. Pre-training takes about "
        f"{total / plan.processes / 60:.1f} minutes with {plan.processes} jobs at a time; evaluations come on top."
    )


def _write_settings(plan: Plan) -> None:
    raw = plan.settings.model_dump(mode="json")
    write_text(plan.out / "comparison.json", plan.settings.model_dump_json(indent=1) + "\n")
    budget = {key: value for key, value in raw["budget"].items() if value is not None}
    write_text(plan.out / "comparison.yaml", dump_yaml(raw | {"budget": budget}))


def _machine() -> dict[str, object]:
    return describe_machine(Process(resolve_device("auto"))) | {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
