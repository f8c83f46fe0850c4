"""When a run is stopped: loss or gradients that are NaN or inf, or representations that have collapsed."""

import math
from typing import Annotated

from pydantic import Field

from data2vec.settings import JsonMapping, Settings

NON_FINITE = "loss or gradient norm is NaN or inf"


class HealthSettings(Settings):
    """The `health:` section: thresholds at which pre-training stops. Defaults: the released code's. 0 turns a check off."""

    min_target_std: Annotated[float, Field(ge=0)] = 0.1
    """Stop when the standard deviation of the targets falls below this (fairseq: min_target_var)."""
    min_prediction_std: Annotated[float, Field(ge=0)] = 0.01
    """Stop when the standard deviation of the predictions falls below this (fairseq: min_pred_var)."""
    grace_steps: Annotated[int, Field(ge=0)] = 5000
    """These two checks start at this step."""


def untrained_steps(recipe: JsonMapping) -> int:
    """The steps in which a warm start has all of the loss, so that nothing is learned of the teacher's vectors; of a run with
    these settings by dotted key."""
    if recipe.get("objective.input_target.weight", 0) < 1:
        return 0
    return math.ceil(recipe["objective.input_target.fade_from"] * recipe["train.steps"])


def health_settings(recipe: JsonMapping) -> HealthSettings:
    """The `health:` section of a run, from its settings by dotted key."""
    return HealthSettings(**{key: recipe[name] for key in HealthSettings.model_fields if (name := f"health.{key}") in recipe})


def health_limits(recipe: JsonMapping) -> HealthSettings:
    """The same, with a grace period that begins after the `untrained_steps`."""
    limits = health_settings(recipe)
    return limits.model_copy(update={"grace_steps": limits.grace_steps + untrained_steps(recipe)})


def stop_reason(line: JsonMapping, step: int, settings: HealthSettings) -> str | None:
    """Why a run has to stop at this step, or None. `line`: the metrics of the step."""
    if not is_finite(line):
        scale = f" (the loss scale is {line['loss_scale']:g})" if "loss_scale" in line else ""
        return f"{NON_FINITE}{scale}"
    if step < settings.grace_steps:
        return None
    if line.get("target_std", math.inf) < settings.min_target_std:
        return (
            f"the targets hardly differ between positions (target_std {line['target_std']:.4f}, below "
            f"health.min_target_std={settings.min_target_std:g})"
        )
    if line.get("prediction_std", math.inf) < settings.min_prediction_std:
        return (
            f"the predictions hardly differ between positions (prediction_std {line['prediction_std']:.4f}, below "
            f"health.min_prediction_std={settings.min_prediction_std:g})"
        )
    return None


def is_finite(line: JsonMapping) -> bool:
    """Whether loss and gradient norm are finite, if they are logged; a file of metrics has null for NaN and inf."""
    values = [line.get(name, 0.0) for name in ("loss", "grad_norm")]
    return all(value is not None and math.isfinite(value) for value in values)
