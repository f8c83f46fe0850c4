from typing import Any

from data2vec.recipe.loading import load_recipe
from data2vec.tasks.finetuning.verdict import judge_run

RECIPE = load_recipe("speech/ctc-tiny", {"train.steps": 1000})


def lines(rates: list[float], **more: Any) -> list[dict[str, Any]]:
    found = enumerate(rates, start=1)
    return [{"step": 100 * i, "loss": 1.0, "valid_wer": rate, "data_wait": 0.0, **more} for i, rate in found]


def test_improving_run_is_healthy() -> None:
    assert judge_run(lines([0.9, 0.6, 0.5, 0.45, 0.44, 0.43]), RECIPE).state == "healthy"


def test_overfitting_is_reported_with_the_best_step() -> None:
    (found,) = judge_run(lines([0.9, 0.5, 0.6, 0.7, 0.8]), RECIPE).findings
    assert "wer 0.5 at step 200, 0.8 at step 500" in found.symptom and found.suggestion.startswith("train.steps=200")


def test_wer_of_one_after_half_of_the_steps_is_reported() -> None:
    assert judge_run(lines([1.0, 1.0]), RECIPE).state == "healthy"  # it is too early to say
    (found,) = judge_run(lines([1.0] * 6), RECIPE).findings
    assert "hardly any word is recognised (word error rate 100% at step 600)" in found.symptom


def test_non_finite_loss_is_a_collapse() -> None:
    assert judge_run([*lines([0.9]), {"step": 200, "loss": None}], RECIPE).state == "collapsed"


def test_pre_training_runs_use_the_pre_training_checks() -> None:
    recipe = load_recipe("vision/v2-tiny")
    still = [{"step": step, "loss": 1.0, "target_std": 0.0001, "prediction_std": 1.0} for step in range(100, 700, 100)]
    assert judge_run(still, recipe).state == "collapsed"
