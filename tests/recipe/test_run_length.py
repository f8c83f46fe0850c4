from typing import Any

import pytest

from data2vec.recipe.joint import JointRecipe
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.run_length import unfinished_schedules
from data2vec.recipe.shipped import recipe_names


def lines(name: str, **changes: Any) -> list[str]:
    return unfinished_schedules(load_recipe(name, {key.replace("__", "."): value for key, value in changes.items()}))


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_finish_their_schedules(name: str) -> None:
    recipe = load_recipe(name)
    parts = recipe.parts.values() if isinstance(recipe, JointRecipe) else [recipe]
    assert [line for part in parts for line in unfinished_schedules(load_recipe(part, {"init": "a-model"}))] == []


def test_a_run_that_ends_within_its_warm_up_is_reported_with_a_setting_that_fits() -> None:
    (found,) = lines("vision/mae-base", train__steps=1000)
    assert found.startswith("train.steps: 1000 ends within the warm-up, train.schedule.warmup_steps: 12520")
    assert "set train.schedule.warmup_steps=50, or more steps" in found
    assert lines("vision/mae-base", train__steps=1000, train__schedule__warmup_steps=50) == []
    assert lines("vision/mae-base", train__steps=1, train__schedule__warmup_steps=0) == []


@pytest.mark.parametrize("name", ["speech/v2-base", "text/v1-base", "vision/v2-base", "vision/v1-large"])
def test_a_run_that_is_too_short_for_its_teacher_is_reported_with_a_setting_that_fits(name: str) -> None:
    short = {"train__steps": 1000, "train__schedule__warmup_steps": 50}
    (found,) = lines(name, **short)
    assert "train.steps: 1000 is too short for the teacher: " in found
    teacher = load_recipe(name).objective.teacher
    annealed = f"its decay would increase until step {teacher.anneal_steps} (objective.teacher.anneal_steps)"
    assert (annealed in found) == (teacher.anneal_steps > 1000)
    assert ("of its initial weights" in found) == (teacher.decay**1000 > 0.5)
    assert "set objective.teacher.half_life=0.05" in found
    assert lines(name, **short, objective__teacher__half_life=0.05) == []


def test_the_share_of_initial_weights_is_that_of_the_decays() -> None:
    (found,) = lines("vision/v1-large", train__steps=1000, train__schedule__warmup_steps=50)
    assert f"it would still hold {0.9998**1000:.0%} of its initial weights" in found


def test_a_fine_tuning_run_that_only_trains_the_head_is_reported() -> None:
    (found,) = lines("speech/ctc-v1-base-10h", init="a-model", train__steps=2000)
    assert "ends while only the head is trained, objective.freeze_steps: 10000; set objective.freeze_steps=200" in found
    assert lines("speech/ctc-v1-base-10h", train__steps=2000) == [], "nothing is frozen in an encoder with new weights"
    assert lines("speech/ctc-v1-base-10h", init="a-model", train__steps=2000, objective__freeze_encoder=True) == []
