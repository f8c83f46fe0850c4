import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.finetuning.verdict import judge_run

RECIPE = load_recipe("speech/ctc-tiny", {"train.steps": 1000})


def lines(rates: Sequence[float | None], every: int = 100, **more: Any) -> list[dict[str, Any]]:
    found = enumerate(rates, start=1)
    return [{"step": every * i, "loss": 1.0, "valid_wer": rate, "data_wait": 0.0, **more} for i, rate in found]


def test_improving_run_is_healthy() -> None:
    assert judge_run(lines([0.9, 0.6, 0.5, 0.45, 0.44, 0.43]), RECIPE).state == "healthy"


def test_run_before_half_of_its_steps_is_too_early_to_tell() -> None:
    found = judge_run(lines([0.9, 0.6, 0.5, 0.45], every=10), RECIPE)
    assert (found.state, found.findings) == ("too early to tell", ())
    assert "step 40: scores are judged from step 500 on, half of train.steps. So far: loss 1 at step 10" in found.note
    found = judge_run(lines([0.9, 0.6], every=500), RECIPE)
    assert (found.state, found.note.partition(",")[0]) == ("too early to tell", "2 logged steps")


def test_run_that_trained_only_the_head_is_too_early_to_tell(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE, {"objective.freeze_steps": 600, "init": str(tmp_path)})
    assert "only the head is trained until step 600" in judge_run(lines([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), recipe).note
    assert judge_run(lines([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), load_recipe(recipe, {"init": None})).state == "healthy"


def test_validation_that_never_improved_is_reported_after_half_of_the_steps() -> None:
    (found,) = judge_run(lines([0.5, 0.52, 0.5, 0.51, 0.53]), RECIPE).findings
    assert "validation never improved (wer 0.5 at step 100, 0.53 at step 500, 5 validations)" in found.symptom
    assert "more train.steps" in found.suggestion
    assert judge_run(lines([0.5, 0.52, 0.5, 0.51], every=20), RECIPE).findings == ()
    assert judge_run(lines([0.5, 0.52, 0.49, 0.51, 0.53]), RECIPE).findings == ()
    assert judge_run(lines([0.0] * 6), RECIPE).findings == (), "it cannot improve"


def test_run_that_was_good_at_its_first_validation_need_not_improve() -> None:
    early = load_recipe(RECIPE, {"objective.patience": 2, "train.schedule.warmup": 0.05})
    assert judge_run(lines([0.1, 0.12, 0.1], every=90), early).findings == ()
    (found,) = judge_run(lines([0.8, 0.82, 0.8], every=90), early).findings
    assert "validation never improved (wer 0.8 at step 90" in found.symptom
    classify = load_recipe("speech/classify-tiny", {"train.steps": 500, "train.schedule.warmup_steps": 50})

    def findings(accuracy: float, chance: float) -> int:
        scores = {"valid_accuracy": accuracy, "valid_chance_accuracy": chance}
        return len(judge_run([line | scores for line in lines([1.0] * 4)], classify).findings)

    assert (findings(0.6, chance=0.1), findings(0.6, chance=0.3), findings(0.4, chance=0.1)) == (0, 1, 1)


def test_run_stopped_by_validations_that_are_nan_is_judged_and_they_are_named() -> None:
    recipe = load_recipe("speech/classify-tiny", {"train.steps": 5000, "objective.patience": 3, "train.lr": 0.1})
    recipe = load_recipe(recipe, {"train.schedule.warmup_steps": 50})
    scored = [{"step": 100, "loss": 1.0, "data_wait": 0.0, "valid_accuracy": 0.9}]
    failed = [scored[0] | {"step": step, "valid_accuracy": None} for step in (200, 300, 400)]
    found = judge_run([*scored, *failed], recipe)
    (finding,) = found.findings
    assert finding.symptom == "validation accuracy is NaN or infinite at step 400, and in 3 of 4 validations"
    assert "train.lr=0.1 is too high" in finding.cause and finding.suggestion.startswith("train.lr=0.01")
    again = judge_run([*scored, *failed, failed[0] | {"step": 500, "valid_accuracy": 0.95}], recipe)
    assert (again.findings, again.state) == ((), "too early to tell"), "it goes on, and is better"


def test_run_that_ends_in_its_warm_up_is_reported() -> None:
    recipe = load_recipe("speech/classify-tiny", {"train.steps": 500, "train.schedule.warmup_steps": 800})
    (found,) = judge_run([{"step": 10, "loss": 1.0, "data_wait": 0.0}], recipe).findings
    assert found.symptom == "the run does not leave its warm-up (800 steps, of 500)"
    assert found.suggestion == "train.schedule.warmup_steps=25, or train.steps=16000"


def test_overfitting_is_reported_with_the_best_step() -> None:
    (found,) = judge_run(lines([0.9, 0.5, 0.6, 0.7, 0.8]), RECIPE).findings
    assert "wer 0.5 at step 200, 0.8 at step 500" in found.symptom and found.suggestion.startswith("train.steps=200")


def test_a_worse_accuracy_within_its_standard_errors_is_no_overfitting() -> None:
    recipe = load_recipe("speech/classify-tiny", {"train.steps": 500, "train.schedule.warmup_steps": 50})

    def found(examples: int) -> list[str]:
        logged = [{"valid_accuracy": 1 - line.pop("valid_wer")} | line for line in lines([0.7, 0.6, 0.61, 0.64, 0.67])]
        return [each.symptom for each in judge_run([line | {"valid_examples": examples} for line in logged], recipe).findings]

    assert found(80) == []
    (symptom,) = found(8000)
    assert symptom == "validation is getting worse (accuracy 0.4 at step 200, 0.33 at step 500)"


def test_a_score_that_is_not_finite_is_no_overfitting() -> None:
    later = [line | {"step": 200 + line["step"]} for line in lines([None, 0.5])]
    assert judge_run([*lines([0.9, 0.5]), *later], RECIPE).findings == ()


def judged(step: int, recipe: Any = RECIPE, **scores: float) -> list[str]:
    """The findings on a run whose validation at this step of 1000 has these scores and evidence."""
    last = {f"valid_{name}": value for name, value in ({"examples": 100} | scores).items()}
    found = judge_run([{"step": step, "loss": 1.0, "data_wait": 0.0, **last}], recipe).findings
    return [f"{finding.symptom}: {finding.suggestion}" for finding in found]


RECOGNIZED = {"wer": 0.6, "wer_uncased": 0.6, "wer_shuffled": 1.1, "empty": 0.0, "blank": 0.7}


def test_blank_transcripts_after_half_of_the_steps_are_reported() -> None:
    blank = {"wer": 1.0, "wer_uncased": 1.0, "wer_shuffled": 1.0, "empty": 1.0, "blank": 1.0}
    assert judged(200, **blank) == []  # it is too early to say
    (found,) = judged(600, **blank)
    assert found.startswith("at step 600 all transcripts are blank (100% are empty, the blank is the best label of 100%")
    assert "more train.steps" in found
    (found,) = judged(600, **blank | {"blank": 0.0})
    assert "all transcripts are empty (100% are empty, the blank is the best label of 0% of the frames, and one that" in found
    assert judged(600, **RECOGNIZED) == []


def test_transcripts_at_chance_are_those_that_fit_other_recordings_as_well() -> None:
    (found,) = judged(600, **RECOGNIZED | {"wer": 0.98, "wer_uncased": 0.98, "wer_shuffled": 1.0})
    assert "the transcripts are at chance (word error rate 98%, 100% against the transcripts of other recordings)" in found
    assert judged(600, **RECOGNIZED | {"wer": 1.2, "wer_uncased": 1.2, "wer_shuffled": 1.9}) == [], "bad, but not by chance"
    without = {key: value for key, value in RECOGNIZED.items() if key != "wer_shuffled"}
    assert judged(600, **without | {"wer": 1.0}) == []


def test_errors_of_case_are_reported_as_a_case_mismatch() -> None:
    (found,) = judged(600, **RECOGNIZED | {"wer": 0.99, "wer_uncased": 0.2, "wer_shuffled": 1.0})
    assert "most errors are a case mismatch (word error rate 99%, 20% without regard to case)" in found
    assert "objective.vocabulary" in found
    assert judged(600, **RECOGNIZED | {"wer": 0.05, "wer_uncased": 0.01}) == []


def test_classes_predicted_by_chance_are_reported() -> None:
    recipe = load_recipe("speech/classify-tiny", {"train.steps": 1000})
    (found,) = judged(600, recipe, accuracy=0.55, chance_accuracy=0.5)
    assert "the classes are not predicted more often than by chance (accuracy 55.0%, 50.0% by chance, on 100 examples)" in found
    assert judged(600, recipe, accuracy=0.65, chance_accuracy=0.5) == []
    assert judged(600, recipe, accuracy=0.55, chance_accuracy=0.5, examples=10000) == []
    (found,) = judged(600, recipe, map=0.1, chance_map=0.09)
    assert "not predicted better than by chance (map 10.0%" in found


def test_non_finite_loss_is_a_collapse() -> None:
    assert judge_run([*lines([0.9]), {"step": 200, "loss": None}], RECIPE).state == "collapsed"


def test_pre_training_runs_use_the_pre_training_checks() -> None:
    recipe = load_recipe("vision/v2-tiny")
    still = [{"step": step, "loss": 1.0, "target_std": 0.0001, "prediction_std": 1.0} for step in range(100, 700, 100)]
    assert judge_run(still, recipe).state == "collapsed"


@pytest.mark.parametrize(("name", "symptom"), [("speech/ctc-tiny", "wer 0.5"), ("speech/v2-tiny", "target_std")])
def test_run_verdict_judges_a_run_by_the_checks_of_its_task(name: str, symptom: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(load_recipe(name).to_yaml(), encoding="utf-8")
    logged = [line | {"target_std": 0.6 / line["step"]} for line in lines([0.9, 0.5, 0.6, 0.7, 0.8])]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged), encoding="utf-8")
    found = data2vec.run_verdict(tmp_path)
    assert any(symptom in finding.symptom for finding in found.findings)
    assert data2vec.run_verdict(data2vec.Run(tmp_path)) == found


def test_run_verdict_of_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        data2vec.run_verdict(tmp_path)
