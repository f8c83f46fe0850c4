"""Steps, schedules and jobs of a comparison."""

from pathlib import Path
from typing import Any

import pytest

from data2vec.comparison.plan import Outcome, Plan
from data2vec.comparison.settings import load_comparison
from data2vec.errors import UserError, get_logger
from data2vec.recipe.recipe import Recipe
from data2vec.train.planning.step_cost import StepCost

PROBE = {"kind": "probe", "train": "train", "dev": "dev", "test": {"test": "test"}}


@pytest.fixture(autouse=True)
def _fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data2vec.comparison.plan.step_cost", lambda recipe: StepCost(1e6 * recipe.encoder.layers, 0.5))


def plan(tmp_path: Path, **changes: Any) -> Plan:
    raw: dict[str, Any] = {"recipe": "vision/v1-tiny", "budget": {"flops": 1e9}, "seeds": [1, 2], "arms": {"a": {}}}
    raw |= {"evaluations": {"shade": PROBE}, "data": {"data.train": "train"}}
    return Plan(load_comparison(raw | changes), tmp_path)


def outcome(dev: float | None) -> Outcome:
    scores = {"failed": "it"} if dev is None else {"dev": {"accuracy": dev}, "test": {}, "details": {}}
    return Outcome({}, None, False, 1.0, [], {"shade": scores})


@pytest.mark.parametrize(("budget", "steps"), [({"flops": 1e8}, (25, 50)), ({"seconds": 10}, (20, 20)), ({"steps": 7}, (7, 7))])
def test_steps_follow_from_the_budget(tmp_path: Path, budget: dict[str, Any], steps: tuple[int, int]) -> None:
    arms = {"deep": {"settings": {"encoder.layers": 4}}, "flat": {"settings": {"encoder.layers": 2}}}
    found = plan(tmp_path, budget=budget, arms=arms)
    assert (found.steps("deep", {}), found.steps("flat", {})) == steps


def test_warnings_of_several_arms_on_the_same_data_are_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cost(recipe: Recipe) -> StepCost:
        get_logger("data2vec.test").warning("%d of %d clips are shorter", 1, 2)
        return StepCost(1e6, 0.5)

    monkeypatch.setattr("data2vec.comparison.plan.step_cost", cost)
    found = plan(tmp_path, arms={"a": {}, "b": {"settings": {"encoder.layers": 2}}})
    for arm in ("a", "b"):
        found.cost(arm, {})
    assert caplog.messages == ["1 of 2 clips are shorter"]
    get_logger("data2vec.test").warning("%d of %d clips are shorter", 1, 2)
    assert len(caplog.messages) == 2


def test_steps_of_a_budget_below_one_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than one step of 'a'"):
        plan(tmp_path, budget={"flops": 10}).steps("a", {})


def test_joint_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"arms\.a: joint recipes cannot be compared; use recipes of one modality"):
        plan(tmp_path, recipe="joint/v2-tiny", data={}).steps("a", {})


def test_recipe_scales_its_step_counts_with_the_run(tmp_path: Path) -> None:
    found = plan(tmp_path, budget={"steps": 100}, data={"data.train": "train", "train.schedule.warmup_steps": 7})
    default = found.settings
    recipe = found.recipe("a", {}, 3)
    from data2vec.comparison.settings import arm_recipe

    base = arm_recipe(default, "a", {})
    assert recipe.health.grace_steps == round(base.health.grace_steps * 100 / base.train.steps)
    assert (recipe.train.schedule.warmup_steps, recipe.train.steps, recipe.train.seed) == (7, 100, 3)


def test_recipe_with_a_literal_warmup_longer_than_the_run_is_refused(tmp_path: Path) -> None:
    found = plan(tmp_path, budget={"steps": 10}, arms={"a": {"settings": {"train.schedule.warmup_steps": 11}}})
    with pytest.raises(UserError, match=r"arms.a: train.schedule.warmup_steps is 11, more than the 10 steps"):
        found.recipe("a", {}, 1)


def test_jobs_with_a_grid_start_with_the_seed_of_tuning(tmp_path: Path) -> None:
    found = plan(tmp_path, arms={"a": {"grid": {"train.lr": [1e-3, 2e-3]}}}, trivial=False)
    assert [job.folder for job in found.jobs({})] == ["a/tune/lr=0.001", "a/tune/lr=0.002"]
    scores = {"a/tune/lr=0.001": outcome(0.5), "a/tune/lr=0.002": outcome(0.6)}
    jobs = list(found.jobs(scores))[2:]
    assert [(job.folder, job.seed, job.recipe["train"]["lr"]) for job in jobs if job.recipe] == [
        ("a/seed-1", 1, 2e-3),
        ("a/seed-2", 2, 2e-3),
    ]
    assert found.job_count() == 4


def test_jobs_ignore_failed_combinations(tmp_path: Path) -> None:
    found = plan(tmp_path, arms={"a": {"grid": {"train.lr": [1e-3, 2e-3]}}})
    assert found.chosen("a", {"a/tune/lr=0.001": outcome(0.5), "a/tune/lr=0.002": outcome(None)}) == {"train.lr": 1e-3}
    assert found.chosen("a", {"a/tune/lr=0.001": outcome(None), "a/tune/lr=0.002": outcome(None)}) is None


def test_recipe_of_a_seed_is_probed_five_times_along_the_run(tmp_path: Path) -> None:
    recipe = plan(tmp_path, budget={"steps": 80}).recipe("a", {}, 1, probe=True)
    assert (recipe.probe.data, recipe.probe.valid, recipe.probe.every) == ("train", "dev", 16)
