"""When a run has to stop."""

import math

import pytest

from data2vec.health.collapse import HealthSettings, health_limits, stop_reason


@pytest.mark.parametrize(
    ("target", "prediction", "step", "expected"),
    [
        (0.05, 1.0, 5000, "the targets hardly differ"),
        (1.0, 0.005, 5000, "the predictions hardly differ"),
        (0.05, 0.005, 4999, None),
        (0.2, 0.02, 9000, None),
        (math.nan, 1.0, 9000, None),
    ],
)
def test_stop_reason_below_a_threshold_after_the_grace_period(
    target: float, prediction: float, step: int, expected: str | None
) -> None:
    line = {"loss": 1.0, "grad_norm": 1.0, "target_std": target, "prediction_std": prediction}
    reason = stop_reason(line, step, HealthSettings())
    assert (reason is None) if expected is None else (reason is not None and expected in reason)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, None])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_stop_reason_of_a_loss_or_gradient_norm_that_is_not_finite_at_any_step(name: str, wrong: float | None) -> None:
    reason = stop_reason({"loss": 1.0, "grad_norm": 1.0, name: wrong}, 1, HealthSettings())
    assert reason is not None and "NaN or inf" in reason


@pytest.mark.parametrize(
    ("warm_start", "grace"),
    [
        ({"objective.input_target": None}, 100),
        ({"objective.input_target.weight": 1.0, "objective.input_target.fade_from": 0.2}, 160),
        ({"objective.input_target.weight": 0.5, "objective.input_target.fade_from": 1.0}, 100),
    ],
)
def test_grace_period_begins_after_the_steps_that_predict_the_input_alone(warm_start: dict[str, float], grace: int) -> None:
    limits = health_limits({"train.steps": 300, "health.grace_steps": 100, "health.min_target_std": 0.2} | warm_start)
    assert (limits.grace_steps, limits.min_target_std) == (grace, 0.2)
