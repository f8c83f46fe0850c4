import math
from typing import Any

import pytest

from data2vec.recipe.loading import load_recipe
from data2vec.tasks.metrics import validations_since_best
from data2vec.tasks.validation import describe_scores, describe_validation
from data2vec.train.logger import _status

CLASSIFY = load_recipe("vision/classify-tiny", {"train.steps": 500, "objective.patience": 2})
CTC = load_recipe("speech/ctc-tiny")


def lines(metric: str, *values: float | None) -> list[dict[str, Any]]:
    return [{"step": 100 * i, f"valid_{metric}": value} for i, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "waited"),
    [([], 0), ([0.5], 0), ([0.5, 0.6], 0), ([0.6, 0.5, 0.6], 2), ([0.6, 0.5, 0.7, 0.7, 0.7], 2), ([math.nan, 0.1, 0.1], 1)],
)
def test_validations_since_best_counts_those_without_an_improvement(values: list[float], waited: int) -> None:
    assert validations_since_best("accuracy", values) == waited
    assert validations_since_best("wer", [-value for value in values]) == waited


def test_describe_validation_names_the_best_score_its_step_and_chance() -> None:
    metrics = [line | {"valid_chance_accuracy": 0.25} for line in lines("accuracy", 0.5, 0.75, None, 0.7)]
    said = "best validation: accuracy 75.0% at step 200; 70.0% at step 400, the last"
    recipe = load_recipe(CLASSIFY, {"objective.patience": 3})
    assert describe_validation(metrics, recipe) == f"{said}; NaN or infinite in 1 of 4 validations; 25.0% by chance"
    assert describe_validation(lines("wer", 1.0, 0.4, 0.4), CTC) == "best validation: wer 40.0% at step 300, the last"
    assert describe_validation([{"step": 1, "loss": 1.0}], CTC) is None
    assert describe_validation(lines("wer", None, None), CTC) == "2 validations, in which wer was NaN or infinite"


def test_describe_validation_says_that_a_run_was_stopped_early() -> None:
    said = describe_validation(lines("accuracy", 0.5, 0.75, 0.7, 0.7), CLASSIFY)
    assert said is not None and said.endswith("stopped early at step 400 of 500 (objective.patience=2)")
    unfinished = describe_validation(lines("accuracy", 0.75, None, None), CLASSIFY)
    assert unfinished is not None and unfinished.endswith(" of 500 (objective.patience=2)"), "NaN counts as not better"
    assert "early" not in str(describe_validation(lines("accuracy", 0.5, 0.75, 0.7), CLASSIFY))
    assert "early" not in str(describe_validation(lines("accuracy", 0.5, 0.75, 0.7, 0.7, 0.7), CLASSIFY)), "at its last step"


def test_describe_validation_of_pre_training_is_its_held_out_loss() -> None:
    recipe = load_recipe("vision/v2-tiny")
    assert (
        describe_validation(lines("loss", 0.9, 0.5, 0.6), recipe)
        == "held-out loss 0.6000 at step 300, lowest 0.5000 at step 200"
    )
    assert describe_validation(lines("loss", 0.9, 0.5), recipe) == "held-out loss 0.5000 at step 200, the lowest"


def test_status_of_a_validated_step_has_its_scores_and_the_best() -> None:
    line = {"step": 300, "loss": 0.5, "samples_per_second": 10.0, "data_wait": 0.0, "corrupt": 0}
    scored = line | {"valid_accuracy": 0.7, "valid_matthews": 0.61, "valid_chance_accuracy": 0.1}
    scored |= {"valid_best_accuracy": 0.75, "valid_best_step": 200}
    assert describe_scores(scored) == "accuracy 70.0%, matthews 0.61, best accuracy 75.0% at step 200"
    assert describe_scores(line) == ""
    assert _status(scored, describe_scores(scored)).startswith(
        "loss 0.5000, 10.0 samples/s, accuracy 70.0%, matthews 0.61, best"
    )
