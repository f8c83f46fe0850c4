"""The verdict on excerpts of real runs, a few figures each."""

from typing import Any

import pytest

from data2vec.health.collapse import HealthSettings, stop_reason
from data2vec.health.verdict import Finding, Verdict, verdict
from data2vec.recipe.loading import load_recipe

DECAYS = {"objective.teacher.decay": 0.99, "objective.teacher.end_decay": 0.9995, "objective.teacher.anneal_steps": 150}
SPEECH = load_recipe("speech/v2-tiny", {"train.steps": 150, "objective.input_target": None} | DECAYS).flat()
STEPS = (1, 10, 20, 40, 70, 100, 120, 150)
HEALTHY: dict[str, Any] = {
    "step": STEPS,
    "samples": tuple(8 * step for step in STEPS),
    "epoch": tuple(step / 200 for step in STEPS),
    "corrupt": (0,) * 8,
    "data_wait": (0.5, 0.03, 0.02, 0.03, 0.03, 0.02, 0.03, 0.03),
    "loss": (10.65, 8.61, 8.12, 7.87, 7.60, 6.78, 6.78, 6.07),
    "grad_norm": (8.99, 3.36, 1.56, 0.49, 0.99, 1.87, 1.61, 2.00),
    "ema_decay": (0.9901, 0.9906, 0.9913, 0.9925, 0.9944, 0.9963, 0.9976, 0.9995),
    "update_ratio": (0.003, 0.008, 0.004, 0.002, 0.006, 0.006, 0.002, 0.000),
    "local_encoder_fraction_with_grad": (1.0,) * 8,
    "local_encoder_std": (0.429, 0.196, 0.083, 0.134, 0.432, 0.410, 0.559, 0.548),
    "local_encoder_rank": (40.0, 32.2, 25.7, 16.2, 11.5, 13.8, 13.6, 13.2),
    "student_std": (0.680, 0.194, 0.061, 0.061, 0.392, 0.358, 0.455, 0.459),
    "student_rank": (50.1, 40.6, 25.1, 22.2, 14.6, 17.0, 17.2, 18.4),
    "target_std": (0.994, 0.997, 0.998, 0.992, 0.991, 0.989, 0.994, 0.979),
    "target_rank": (51.7, 52.5, 50.7, 47.3, 41.7, 38.1, 36.9, 36.8),
    "target_position_variance": (0.01, 0.0, 0.01, 0.02, 0.06, 0.09, 0.08, 0.05),
    "r2": (-0.342, -0.045, -0.014, 0.007, 0.043, 0.172, 0.229, 0.169),
    "content_r2": (-0.181, -0.03, -0.007, 0.005, 0.041, 0.128, 0.221, 0.138),
    "prediction_std": (0.349, 0.181, 0.090, 0.050, 0.155, 0.281, 0.328, 0.434),
    "prediction_rank": (35.9, 23.8, 24.1, 30.7, 19.2, 15.7, 15.9, 13.7),
}

RISING = {  # images, version 1
    "loss": (0.254, 0.110, 0.071, 0.047, 0.090, 0.116, 0.114, 0.121),
    "target_std": (0.394, 0.390, 0.387, 0.415, 0.650, 0.749, 0.746, 0.747),
}
LR_TIMES_100 = {
    "loss": (10.65, 9.36, 6.22, 4.67, 2.32, 1.66, 1.43, 1.94),
    "update_ratio": (0.312, 0.121, 0.025, 0.003, 0.004, 0.003, 0.006, 0.0),
    "local_encoder_std": (0.429, 0.001023, 0.001006, 0.001003, 0.001003, 0.001003, 0.001002, 0.001002),
    "target_position_variance": (0.015, 0.117, 0.71, 0.99328, 0.99806, 0.99829, 0.99868, 0.99926),
}
LR_TIMES_100_TEXT = {
    "update_ratio": (0.21, 0.3, 0.1, 0.02, 0.01, 0.0, 0.0, 0.0),
    "target_std": (0.995, 0.6, 0.302, 0.0721, 0.0479, 0.0427, 0.0284, 0.0289),
    "prediction_std": (0.018, 0.019, 0.019, 0.0033, 0.001, 0.001, 0.001, 0.001),
}
LEARNS_POSITION = {  # text, version 2
    "target_position_variance": (0.501, 0.5, 0.503, 0.545, 0.656, 0.747, 0.789, 0.83),
    "r2": (-0.008, 0.001, 0.027, 0.24, 0.48, 0.625, 0.693, 0.759),
    "content_r2": (0.0, 0.0, -0.001, -0.064, -0.102, -0.174, -0.231, -0.266),
}
NO_NORM = {
    "loss": (9.05, 5.26, 2.60, 0.77, 0.28, 0.17, 0.16, 0.15),
    "target_std": (0.574, 0.588, 0.489, 0.280, 0.177, 0.142, 0.134, 0.136),
}
NO_AVERAGE = {
    "ema_decay": (3.3e-05, 0.00033, 0.00067, 0.0013, 0.0023, 0.0033, 0.0040, 0.0050),
    "target_rank": (51.7, 45.2, 34.6, 19.8, 15.8, 14.1, 13.7, 17.0),
}
LR_TIMES_10 = {"local_encoder_std": (0.429, 0.05, 0.0075, 0.0056, 0.006, 0.0065, 0.0075, 0.0059)}
LR_TOO_LOW = {
    "loss": (10.65, 10.66, 10.67, 10.72, 10.60, 10.45, 10.58, 10.58),
    "update_ratio": (3.1e-06, 1.8e-05, 1.8e-05, 1.8e-05, 1.7e-05, 1.4e-05, 2.4e-06, 1.7e-07),
}
ON_A_LINE = {"prediction_rank": (7.0, 4.6, 4.8, 1.6, 1.5, 1.5, 1.4, 1.4)}


def lines(**changed: Any) -> list[dict[str, Any]]:
    """Logged steps of a healthy run in which some figures are others."""
    columns = HEALTHY | changed
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def judge(figures: dict[str, Any], **recipe: Any) -> Verdict:
    return verdict(lines(**figures), SPEECH | {key.replace("__", "."): value for key, value in recipe.items()})


def only(found: Verdict) -> Finding:
    assert len(found.findings) == 1, str(found)
    assert found.state == found.findings[0].level
    return found.findings[0]


EARLY = "too early to tell"


def test_verdict_on_a_healthy_run_is_too_early_to_tell_and_then_healthy() -> None:
    for end, step in enumerate(STEPS, start=1):
        found = verdict(lines()[:end], SPEECH)
        assert (found.state, found.findings) == (EARLY if step < 100 else "healthy", ())
    assert "loss 10.7 at step 1, 6.07 at step 150" in str(found)
    assert "as expected" not in str(found)


def test_verdict_on_a_loss_that_rises_with_growing_targets_is_healthy() -> None:
    found = judge(RISING)
    assert found.state == "healthy"
    assert "the loss rises as expected: 0.047 at step 40, 0.117 now" in str(found)
    assert "more to predict: target_std grew from 0.415 to 0.747" in str(found)
    assert "target_rank" not in str(found)  # which fell


@pytest.mark.parametrize(
    ("figures", "recipe", "level", "symptom", "cause", "suggestion"),
    [
        (
            LR_TIMES_100,
            {"train__lr": 0.2},
            "collapsed",
            "target_position_variance 0.015 at step 1, 0.999 at step 150",
            "train.lr=0.2 is far too high",
            "train.lr=0.003",
        ),
        (LR_TIMES_100, {"train__lr": 0.2}, "collapsed", "local_encoder_std 0.429", "train.lr=0.2", "train.lr=0.003"),
        (LR_TIMES_100_TEXT, {"train__lr": 0.2}, "collapsed", "prediction_std 0.018", "train.lr=0.2", "train.lr=0.003"),
        (
            NO_NORM,
            {"objective__target__per_layer_norms": []},
            "watch",
            "the targets are losing variance (target_std 0.574 at step 1, 0.136 at step 150)",
            "objective.target.per_layer_norms=[]",
            "objective.target.per_layer_norms=[instance]",
        ),
        (NO_NORM, {}, "watch", "losing variance", "train.lr=0.002 is too high", "train.lr=0.0007"),
        (
            NO_AVERAGE,
            {"objective__teacher__decay": 0.0},
            "watch",
            "averages over 1.0 steps only (ema_decay 0.0000 at step 1) (target_rank 51.7 at step 1, 17 at step 150)",
            "objective.teacher.decay=0 is too low",
            "objective.teacher.decay=0.999",
        ),
        (
            {"ema_decay": (1.0,) * 8},
            {"objective__teacher__decay": 1.0},
            "watch",
            "the EMA teacher still holds 100% of its initial weights",
            "objective.teacher.decay=1 is too high for 150 steps",
            "a lower objective.teacher.decay",
        ),
        (
            NO_AVERAGE,
            {"objective__teacher__decay": None, "objective__teacher__half_life": 0.001},
            "watch",
            "averages over 1.0 steps only",
            "objective.teacher.half_life=0.001 is too low, so the teacher follows too fast in a run of 150 steps",
            "objective.teacher.half_life=0.1, or more train.steps",
        ),
        (
            {"ema_decay": (0.9999,) * 8},
            {"objective__teacher__decay": None, "objective__teacher__half_life": 1.0},
            "watch",
            "the EMA teacher still holds 99% of its initial weights",
            "objective.teacher.half_life=1 is too high for 150 steps",
            "a lower objective.teacher.half_life and a lower objective.teacher.end_half_life",
        ),
        (
            {"local_encoder_fraction_with_grad": (0.071,) * 8},
            {"modality__conv_grad_scale": 0.0},
            "watch",
            "7% of its weights",
            "modality.conv_grad_scale=0 freezes it",
            "modality.conv_grad_scale=1",
        ),
        (
            {"local_encoder_fraction_with_grad": (0.0,) * 8},
            {},
            "watch",
            "does not learn: 0%",
            "frozen",
            "let gradients through",
        ),
        (LR_TIMES_10, {}, "watch", "the local encoder is dying", "train.lr=0.002 is too high", "train.lr=0.0007"),
        (
            LR_TIMES_10,
            {"objective__teacher__local_encoder": "shared"},
            "watch",
            "the local encoder is dying",
            "objective.teacher.local_encoder=shared",
            "objective.teacher.local_encoder=averaged",
        ),
        (
            {"target_position_variance": (0.499, 0.58, 0.75, 0.86, 0.90, 0.92, 0.93, 0.94)},  # text, version 2
            {},
            "watch",
            "the targets depend on position and hardly on the input (target_position_variance 0.499 at step 1",
            "the targets can be predicted from the position alone",
            "position encoder and objective.decoder with smaller kernels, or train.lr=0.0007",
        ),
        (
            LEARNS_POSITION,
            {},
            "watch",
            "learns position, not content (target_position_variance 0.501 at step 1, 0.83 at step 150; content_r2 0 at step 1, "
            "-0.266 at step 150; r2 0.759)",
            "the targets can be predicted from the position alone",
            "longer or more varied examples",
        ),
        (
            LEARNS_POSITION,
            {"modality__positions": "learned"},
            "watch",
            "learns position, not content",
            "modality.positions=learned",
            "modality.positions=conv",
        ),
        (
            LEARNS_POSITION,
            {"modality__name": "text", "objective__target__per_layer_norms": ["instance"]},
            "watch",
            "learns position, not content",
            "<s>, which begins every block, is an outlier",
            "objective.target.per_layer_norms=[instance, layer]",
        ),
        (LR_TOO_LOW, {"train__lr": 2e-6}, "watch", "the loss does not fall", "train.lr=2e-06 is too low", "train.lr=0.0006"),
        (ON_A_LINE, {}, "watch", "fewer than two dimensions are used (prediction_rank 7", "train.lr", "warm-up"),
        (
            {"loss": (10.6, 6.2, 2.1, 1.0, 1.4, 1.8, 1.9, 2.1)},
            {},
            "watch",
            "rising (1 at step 40, 1.93 now)",
            "train.lr",
            "train",
        ),
        ({"prediction_std": (0.3, 0.1, *[0.005] * 6)}, {}, "watch", "prediction_std 0.3 at step 1", "train.lr", "train.lr"),
        (
            {"loss": (1.41, 1.3, 185.8, 1.2, 1.1, 1.0, 0.9, 0.9)},
            {},
            "watch",
            "loss spike (1.41 at the first step, 186 at",
            "train.lr",
            "train",
        ),
        (
            {},
            {"train__schedule__warmup": 1.0, "train__schedule__hold": 0.0},
            "watch",
            "the run does not leave its warm-up (150 steps, of 150)",
            "train.schedule.warmup=1",
            "train.schedule.warmup=0.03",
        ),
        (
            {"student_rank": (50.0, 40.0, 30.0, 20.0, 10.0, 4.9, 4.5, 4.1)},
            {},
            "watch",
            "the features fell to a tenth of what they were (student_rank 50 at step 1, 4.1 now)",
            "train.lr",
            "train.lr",
        ),
        (
            {"student_std": (0.68, 0.2, 0.1, 0.09, 0.08, 0.067, 0.066, 0.065)},
            {"train__weight_decay": 30.0},
            "watch",
            "student_std 0.68 at step 1, 0.065 now); weights decay by 6.0% a step at the peak learning rate",
            "train.weight_decay=30 is far too high",
            "train.weight_decay=0.05",
        ),
        (
            {
                "probe_linear": (0.5, None, None, None, None, None, None, 0.3),
                "probe_linear_untrained": (0.5, None, None, None, None, None, None, 0.5),
                "probe_examples": (100,) * 8,
            },
            {},
            "watch",
            "the probe is below that of the untrained encoder (linear 30.0% at step 150, 50.0% untrained)",
            "train.lr",
            "train.lr",
        ),
        (
            {"valid_loss": (8.0, None, None, 8.1, None, 9.0, None, 9.5)},
            {},
            "watch",
            "the held-out loss never fell (8 at step 1, 9.5 at step 150); the training loss did",
            "data.valid differs from data.train",
            "of the same kind",
        ),
        (
            {"valid_loss": (10.7, None, None, 7.0, None, 8.0, None, 9.5)},
            {},
            "watch",
            "the held-out loss is rising (7 at step 40, 9.5 at step 150); the training loss is not",
            "overfitting",
            "train.steps=40",
        ),
        (
            {"data_wait": (0.9, 0.1, 0.5, 0.4, 0.45, 0.6, 0.2, 0.4)},
            {},
            "watch",
            "training waits for data 40% of the time",
            "one worker per core cannot decode as fast",
            "more cores, or data that is cheaper to decode",
        ),
        (
            {"data_wait": (0.9, 0.1, 0.5, 0.4, 0.45, 0.6, 0.2, 0.4)},
            {"data__workers": 2},
            "watch",
            "training waits for data 40% of the time",
            "data.workers=2",
            "data.workers=4",
        ),
        (
            {"corrupt": (0, 0, 0, 3, 5, 5, 8, 12)},
            {},
            "watch",
            "12 examples cannot be read, about 0.75%",
            "corrupt",
            "data.max_corrupt",
        ),
        (
            {"loss": (*HEALTHY["loss"][:7], None)},
            {"train__clip_norm": 0.0},
            "collapsed",
            "NaN or inf",
            "train.lr",
            "clip_norm=1",
        ),
    ],
)
def test_verdict_names_symptom_cause_and_suggestion(
    figures: dict[str, Any], recipe: dict[str, Any], level: str, symptom: str, cause: str, suggestion: str
) -> None:
    found = only(judge(figures, **recipe))
    assert found.level == level
    assert symptom in found.symptom
    assert cause in found.cause
    assert suggestion in found.suggestion
    assert str(found) in str(judge(figures, **recipe))


def test_verdict_lists_the_reason_for_stopping_first() -> None:
    figures = {"target_std": (*HEALTHY["target_std"][:7], 0.05), "local_encoder_fraction_with_grad": (0.0,) * 8}
    found = judge(figures, health__grace_steps=150)
    assert (found.state, len(found.findings)) == ("collapsed", 2)
    limits = HealthSettings(grace_steps=150)
    assert str(stop_reason(lines(**figures)[-1], 150, limits)) in found.findings[0].symptom
    assert judge(figures).state == "watch"  # the tiny recipe's grace period is not over yet


def test_verdict_with_thresholds_of_zero_is_healthy() -> None:
    off = {"health__min_target_std": 0.0, "health__min_prediction_std": 0.0}
    figures = {"prediction_std": (0.3, 0.1, *[0.005] * 6)}
    assert judge(figures, **off, health__grace_steps=0).state == "healthy"


def test_verdict_while_predicting_the_mean_in_warm_up_is_healthy() -> None:
    figures = lines(prediction_std=(0.3, 0.05, 0.004, 0.003, 0.005, 0.02, 0.05, 0.1))
    assert [verdict(figures[:end], SPEECH).state for end in range(1, 9)] == [EARLY] * 5 + ["healthy"] * 3


@pytest.mark.parametrize(
    ("logged", "recipe", "reason"),
    [
        (3, {"health.grace_steps": 50}, "3 logged steps, where a trend needs 4 (log.every=25)"),
        (1, {"health.grace_steps": 5}, "1 logged step, where"),
        (8, {"train.schedule.warmup": 0.99999, "train.schedule.hold": 0.0}, "the learning rate warms up until step 149"),
        (4, {"health.grace_steps": 100}, "the predictions are hardly better than the mean yet (r2 -0.342 at step 1, 0.007 at"),
        (8, {"health.grace_steps": 5000}, "step 150: runs with and without a fault look alike until step 1000"),
    ],
)
def test_verdict_says_what_it_is_too_early_for(logged: int, recipe: dict[str, Any], reason: str) -> None:
    found = verdict(lines()[:logged], SPEECH | recipe)
    if "warmup" in str(recipe):
        found = verdict(lines(step=(1, 10, 20, 40, 70, 100, 120, 149)), SPEECH | recipe)
    assert (found.state, found.findings) == (EARLY, ())
    assert reason in found.note and "So far: loss 10.7 at step 1" in found.note
    assert str(found).startswith("verdict: too early to tell\n")


def test_verdict_on_a_run_that_fails_in_its_first_step() -> None:
    found = only(verdict([lines(loss=(None,) * 8)[0]], SPEECH))
    assert "at step 1 loss or gradient norm is NaN or inf" in found.symptom


def test_verdict_ignores_other_metrics_of_a_step_that_is_not_finite() -> None:
    found = only(judge({name: (*HEALTHY[name][:7], None) for name in ("loss", "update_ratio", "local_encoder_std")}))
    assert "is too high, or its warm-up too short" in found.cause


def test_verdict_without_optional_metrics() -> None:
    older = [
        {
            key: value
            for key, value in line.items()
            if key not in ("update_ratio", "local_encoder_fraction_with_grad", "target_position_variance")
        }
        for line in lines()
    ]
    assert verdict(older, SPEECH).state == "healthy"
    assert verdict([], SPEECH) == Verdict(EARLY, note="nothing is logged yet")


@pytest.mark.parametrize(
    "figures",
    [
        {"target_position_variance": (0.6,) * 8},  # content is predicted, too
        {"content_r2": (0.0,) * 8},  # most of the targets is content
        LEARNS_POSITION | {"content_r2": (None,) * 8},  # not measured
        {"student_std": (0.68, 0.1, 0.06, 0.05, 0.06, 0.065, 0.4, 0.4)},  # low at first only
        {"probe_linear": (0.4,) * 8, "probe_linear_untrained": (0.5,) * 8, "probe_examples": (100,) * 8},  # two standard errors
        {"valid_loss": (10.7, None, None, 7.9, None, 7.0, None, 6.9)},
        {"valid_loss": (10.7, None, None, 7.9, None, None, None, 7.0)},
    ],
)
def test_verdict_on_a_run_with_only_half_the_evidence_is_healthy(figures: dict[str, Any]) -> None:
    assert judge(figures).state == "healthy"


def test_features_in_few_dimensions_are_a_symptom_only_when_more_than_the_mean_is_predicted() -> None:
    low = {"student_std": (0.85, 0.1, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06)} | ON_A_LINE
    assert {finding.symptom[:12] for finding in judge(low).findings} == {"rank collaps"}
    mean = low | {"r2": (-0.3, -0.04, -0.01, 0.0, 0.01, 0.02, 0.01, 0.02)}
    assert (judge(mean).state, judge(mean).findings) == (EARLY, ())
    assert "nothing is learned: the predictions are hardly better than the mean (r2 -0.3 at step 1, 0.02 at step 150)" in str(
        judge(mean, health__grace_steps=150)
    )


def without_teacher(**changed: Any) -> Verdict:
    """The verdict on an objective that has neither teacher nor targets."""
    recipe = {key: value for key, value in SPEECH.items() if not key.startswith(("objective.teacher", "objective.target"))}
    metrics = [
        {key: value for key, value in line.items() if key not in ("ema_decay", "r2", "content_r2") and "target" not in key}
        for line in lines(**changed)
    ]
    return verdict(metrics, recipe)


def test_verdict_without_a_teacher_is_healthy_at_every_step() -> None:
    assert without_teacher().state == "healthy"
    assert without_teacher(step=(1, *range(2, 9))).state == EARLY


@pytest.mark.parametrize(
    ("figures", "symptom"),
    [
        ({"loss": (*HEALTHY["loss"][:7], None)}, "NaN or inf"),
        (LR_TIMES_10, "the local encoder is dying"),
        ({"student_rank": (7.0, 4.6, 4.8, 1.6, 1.5, 1.5, 1.4, 1.4)}, "student_rank"),
        ({"loss": (1.41, 1.3, 185.8, 1.2, 1.1, 1.0, 0.9, 0.9)}, "loss spike"),
        ({"loss": (10.6, 6.2, 2.1, 1.0, 1.4, 1.8, 1.9, 2.1)}, "the loss is rising (1 at step 40, 1.93 now)"),
        ({"loss": (10.6,) * 8}, "the loss does not fall"),
        ({"prediction_std": (0.3, 0.1, *[0.005] * 6)}, "prediction_std"),
        ({"data_wait": (0.9, 0.1, 0.5, 0.4, 0.45, 0.6, 0.2, 0.4)}, "waits for data"),
        ({"corrupt": (0, 0, 0, 3, 5, 5, 8, 12)}, "cannot be read"),
    ],
)
def test_verdict_without_a_teacher_still_judges_the_other_metrics(figures: dict[str, Any], symptom: str) -> None:
    assert symptom in only(without_teacher(**figures)).symptom


def test_verdict_names_a_drift_above_the_limit_at_the_last_evaluation() -> None:
    drift = dict(zip(STEPS, (0.0, None, None, 0.3, None, 0.55, None, 0.62), strict=True))
    found = verdict(
        [line | {"drift_features": drift[line["step"]]} for line in lines()], SPEECH | {"init": "released.pt", "train.lr": 2e-3}
    )
    finding = only(found)
    assert finding.level == "watch" and "drift_features 0.62 at step 150, above 0.5" in finding.symptom
    assert "train.lr=0.0007" in finding.suggestion
    below = verdict([line | {"drift_features": 0.4} for line in lines()], SPEECH)
    assert below.state == "healthy"


def test_verdict_on_a_loss_that_does_not_fall_of_a_trained_model_is_healthy() -> None:
    flat = {"loss": (6.0, 6.01, 5.99, 6.02, 6.0, 5.98, 6.01, 6.0)}
    assert "the loss does not fall" in str(judge(flat))
    assert judge(flat, init="released.pt").state == "healthy"


CLASS_TOKEN = {  # as in images of version 2: the loss is the sum of two terms
    "regression_loss": (10.0, 8.1, 7.7, 7.4, 7.1, 6.3, 6.3, 5.6),
    "regression_share": (0.94,) * 8,
    "class_token_loss": (6.5, 5.1, 4.2, 4.7, 5.0, 4.8, 4.8, 4.7),
    "class_token_share": (0.06,) * 8,
}


def test_a_term_of_the_loss_that_rises_is_named_although_the_sum_falls() -> None:
    assert judge(HEALTHY | CLASS_TOKEN).state == "healthy"
    rising = HEALTHY | CLASS_TOKEN | {"class_token_loss": (6.5, 2.1, 1.9, 2.2, 3.0, 3.5, 4.1, 4.7)}
    found = only(judge(rising))
    assert "the loss of class_token is rising (1.9 at step 20, 4.1 now) while the sum does not" in found.symptom
    assert "it is 6% of the loss" in found.cause
    assert "objective.cls_loss" in found.suggestion
    grown = {"target_std": (0.3, 0.3, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "loss": (10.65, 8.6, 4.1, 4.2, 4.3, 4.2, 4.2, 4.2)}
    assert judge(rising | grown).state == "healthy", "there is more to predict"


def test_a_regression_that_rises_during_a_warm_start_is_none_of_it() -> None:
    warm = {"regression_loss": (3.0, 3.1, 3.6, 4.0, 4.5, 5.0, 5.5, 6.0), "input_loss": (9, 8, 7, 6, 5, 4, 4, 4)}
    shares = {"regression_share": (0.1,) * 8, "input_share": (0.9,) * 8}
    assert judge(HEALTHY | warm | shares).state == "healthy"
    over = warm | {"input_loss": (9, 8, 7, 6, 5, *[float("nan")] * 3)}
    assert "the loss of regression is rising (3 at step 1, 5.5 now)" in only(judge(HEALTHY | over | shares)).symptom


def test_a_term_that_is_nearly_all_of_the_loss_is_named_with_its_weight() -> None:
    found = only(judge(HEALTHY | CLASS_TOKEN | {"class_token_share": (0.5, 0.9, 0.97, 0.97, 0.97, 0.98, 0.98, 0.98)}))
    assert "the loss is nearly all that of class_token (class_token_share 0.5 at step 1, 0.98 at step 150)" in found.symptom
    assert found.suggestion == "a lower objective.cls_loss"
    warm_start = CLASS_TOKEN | {"input_share": (1.0,) * 8, "input_loss": (5.0,) * 8}
    assert judge(HEALTHY | warm_start, objective__input_target__fade_from=0.2).state == "healthy", "it fades"


def test_predictions_are_not_judged_before_a_fifth_of_the_grace_period_after_the_warm_start() -> None:
    warm_start = {"objective.input_target.weight": 1.0, "objective.input_target.fade_from": 0.2}  # until step 30
    recipe = SPEECH | warm_start | {"health.grace_steps": 300}
    constant = lines(prediction_std=(0.005,) * 8, prediction_rank=(1.5,) * 8)
    found = verdict(constant[:5], recipe)
    assert (found.state, found.findings) == (EARLY, ())
    assert "until step 90, a fifth of health.grace_steps after those in which the warm start has all of the loss" in found.note
    assert "prediction_std" in str(verdict(constant[:6], recipe).findings[0])


def test_a_warm_start_with_all_of_the_loss_to_the_end_is_named_as_the_reason_for_no_judgement() -> None:
    recipe = SPEECH | {"objective.input_target.weight": 1.0, "objective.input_target.fade_from": 1.0}
    found = verdict(lines(), recipe)
    assert (found.state, found.findings) == (EARLY, ())
    assert found.note.startswith("the warm start has all of the loss to the end, so the teacher's vectors are not learned;")
