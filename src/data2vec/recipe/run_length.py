"""Runs that are too short for what their recipe schedules, with settings that fit."""

from data2vec.objective.teacher import DecaySchedule
from data2vec.recipe.recipe import Recipe

MOST_INITIAL = 0.6
"""A teacher that still holds more of its initial weights at the end has taught little else."""

MEASURED_STEPS = 100_000
"""Steps at which the decay of a longer run is measured."""


def unfinished_schedules(recipe: Recipe) -> list[str]:
    """A line for each schedule that the run ends too early for: warm-up, teacher and frozen encoder; [] if there is none."""
    steps, lines = recipe.train.steps, list[str]()
    warmup = getattr(recipe.train.schedule, "warmup_steps", 0)
    if warmup >= steps:
        lines.append(
            f"train.steps: {steps} ends within the warm-up, train.schedule.warmup_steps: {warmup}, so the learning rate does "
            f"not reach train.lr; set train.schedule.warmup_steps={min(steps - 1, max(1, steps // 20))}, or more steps"
        )
    if (teacher := getattr(recipe.objective, "teacher", None)) is not None:
        schedule = teacher.schedule(steps)
        annealed, initial = schedule.anneal_steps, _initial_share(schedule, steps)
        symptoms = []
        if annealed > steps:
            symptoms.append(f"its decay would increase until step {annealed} (objective.teacher.anneal_steps)")
        if initial > MOST_INITIAL:
            symptoms.append(f"it would still hold {initial:.0%} of its initial weights")
        if symptoms:
            lines.append(
                f"train.steps: {steps} is too short for the teacher: {' and '.join(symptoms)}; set "
                "objective.teacher.half_life=0.05, which fits any number of steps"
            )
    frozen = getattr(recipe.objective, "freeze_steps", 0) if recipe.init is not None else 0
    if frozen >= steps and not getattr(recipe.objective, "freeze_encoder", False):
        lines.append(
            f"train.steps: {steps} ends while only the head is trained, objective.freeze_steps: {frozen}; set "
            f"objective.freeze_steps={steps // 10}, or more steps"
        )
    return lines


def _initial_share(schedule: DecaySchedule, steps: int) -> float:
    """The share of the initial weights that the teacher holds after these steps, or the first one of at most MOST_INITIAL."""
    share, part = 1.0, max(1, steps // MEASURED_STEPS)
    for step in range(1, steps + 1, part):
        share *= schedule(step) ** part
        if share <= MOST_INITIAL:
            break
    return share
