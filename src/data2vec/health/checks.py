"""Symptoms of an unhealthy run in its metrics, each with its likely cause and a suggestion.

Thresholds that stop a run are settings (`health.collapse`); the others are here, tuned on the runs of `benchmarks/health.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data2vec.health import causes
from data2vec.health.causes import GOOD_UPDATE_RATIO, Cause, likely_cause, round_lr
from data2vec.health.collapse import stop_reason
from data2vec.health.history import NUM_RECENT, History

MAX_DRIFT = 0.5
"""1 minus the linear CKA of the features now and at the start. Tiny speech models of two seeds are 0.37 apart, a trained and an
untrained one 0.95 (docs/results.md)."""

Level = Literal["watch", "collapsed"]


@dataclass(frozen=True)
class Finding:
    """A symptom, its likely cause and what to change."""

    level: Level
    """Worth watching; or beyond recovery."""
    symptom: str
    """What the metrics show, with values and steps."""
    cause: str
    """The likely cause."""
    suggestion: str
    """What to change."""

    def __str__(self) -> str:
        return f"{self.symptom}. Likely cause: {self.cause}. What to change: {self.suggestion}"


def run_stopped(run: History) -> Finding | None:
    """The run has to stop."""
    reason = stop_reason(run.last, run.step, run.limits)
    return Finding("collapsed", f"at step {run.step} {reason}", *likely_cause(run)) if reason else None


def constant_representations(run: History) -> Finding | None:
    """Targets or predictions below the thresholds within the grace period, when this does not stop the run yet."""
    bounds = {"target_std": run.limits.min_target_std, "prediction_std": run.limits.min_prediction_std}
    low = [name for name, bound in bounds.items() if run.stays_below(name, bound)]
    if run.step >= run.limits.grace_steps or not low or not (run.past_warmup or "target_std" in low):
        return None
    symptom = f"representations hardly differ between positions ({'; '.join(map(run.describe_change, low))})"
    return Finding("collapsed" if len(low) == 2 else "watch", symptom, *likely_cause(run))


def shrinking_targets(run: History) -> Finding | None:
    """Targets on their way to being constant."""
    most, _ = run.peak("target_std")
    if not run.stays_below("target_std", most / 2):
        return None
    symptom = f"the targets are losing variance ({run.describe_change('target_std')})"
    return Finding("watch", symptom, *likely_cause(run))


def positional_collapse(run: History) -> Finding | None:
    """Targets that depend on the position and hardly on the input."""
    name = "target_position_variance"
    if not run.stays_above(name, 1 - min(0.1, (1 - run.values(name)[0]) / 5)):
        return None
    level: Level = "collapsed" if run.stays_above(name, 0.99) else "watch"
    symptom = f"positional collapse: the targets depend on position and hardly on the input ({run.describe_change(name)})"
    special = (
        causes.shared_local_encoder,
        causes.learned_positions,
        causes.first_token_outlier,
        causes.predictable_from_position,
    )
    return Finding(level, symptom, *likely_cause(run, *special))


def learns_position(run: History) -> Finding | None:
    """Targets that vary most with the position, of which nothing else is predicted."""
    share, content = "target_position_variance", "content_r2"
    if not (run.past_warmup and run.stays_above(share, 0.5) and run.stays_below(content, 0.1)):
        return None
    symptom = (
        f"the run learns position, not content ({run.describe_change(share)}; {run.describe_change(content)}; "
        f"r2 {run.values('r2')[-1]:.3g})"
    )
    return Finding(
        "watch",
        symptom,
        *likely_cause(run, causes.learned_positions, causes.first_token_outlier, causes.predictable_from_position),
    )


def dead_local_encoder(run: History) -> Finding | None:
    """Local features that become constant, which the other metrics can hide."""
    first = run.values("local_encoder_std")[0]
    bounds = {"local_encoder_std": 0.03 * first, "local_encoder_rank": 1.02}
    low = [name for name, bound in bounds.items() if run.stays_below(name, bound)]
    if not low:
        return None
    level: Level = "collapsed" if run.stays_below("local_encoder_std", 0.01 * first) else "watch"
    symptom = f"the local encoder is dying: its features hardly differ ({'; '.join(map(run.describe_change, low))})"
    return Finding(level, symptom, *likely_cause(run, causes.shared_local_encoder))


def rank_collapse(run: History) -> Finding | None:
    """Representations that lie on a line or in a plane."""
    low = [name for name in ("student_rank", "target_rank", "prediction_rank") if run.stays_below(name, 2)]
    if not low or not run.past_warmup or _starting(run):
        return None
    symptom = f"rank collapse: fewer than two dimensions are used ({'; '.join(map(run.describe_change, low))})"
    return Finding("watch", symptom, *likely_cause(run))


def _starting(run: History) -> bool:
    """Whether a run still predicts the mean, as all do at first: with features that hardly differ, in few dimensions."""
    return run.predicts_mean and run.step < run.limits.grace_steps


def predicts_only_mean(run: History) -> Finding | None:
    """Predictions that are no better than the mean when the grace period is over."""
    if not run.predicts_mean or _starting(run):
        return None
    symptom = f"nothing is learned: the predictions are hardly better than the mean ({run.describe_change('r2')})"
    return Finding("watch", symptom, *likely_cause(run))


def shrinking_features(run: History) -> Finding | None:
    """Features of which little is left: a tenth of the largest standard deviation or rank that they had."""
    names = ("student_std", "student_rank", "target_rank")
    low = [name for name in names if run.stays_below(name, run.peak(name)[0] / 10)]
    if not low or not run.past_warmup or _starting(run):
        return None
    changes = "; ".join(
        f"{name} {run.peak(name)[0]:.3g} at step {run.peak(name)[1]}, {run.values(name)[-1]:.3g} now" for name in low
    )
    return Finding("watch", f"the features fell to a tenth of what they were ({changes})", *likely_cause(run))


def never_left_warmup(run: History) -> Finding | None:
    """A warm-up that is not shorter than the run."""
    steps, warmup = run.recipe["train.steps"], run.warmup_steps
    if warmup < steps:
        return None
    if "train.schedule.warmup" in run.recipe:
        cause = Cause(f"train.schedule.warmup={run.recipe['train.schedule.warmup']:g}", "train.schedule.warmup=0.03")
    else:
        few = max(1, steps // 20)
        cause = Cause(
            f"train.schedule.warmup_steps={warmup:g} is not less than train.steps={steps}",
            f"train.schedule.warmup_steps={few}, or train.steps={20 * warmup:g}",
        )
    return Finding("watch", f"the run does not leave its warm-up ({warmup:g} steps, of {steps})", *cause)


def weight_decay_too_high(run: History) -> Finding | None:
    """Weights that vanish."""
    if not (cause := causes.weight_decay_too_high(run)):
        return None
    share = run.recipe["train.weight_decay"] * run.recipe["train.lr"]
    return Finding("watch", f"weights decay by {share:.1%} a step at the peak learning rate", *cause)


def probe_below_untrained(run: History) -> Finding | None:
    """A linear probe that is worse than on an encoder with random weights, by more than its standard errors."""
    probed = [line for line in run.lines if None not in (line.get("probe_linear"), line.get("probe_linear_untrained"))]
    if not probed or not run.past_warmup:
        return None
    line = probed[-1]
    now, untrained, examples = line["probe_linear"], line["probe_linear_untrained"], line.get("probe_examples", 1000)
    if not now < untrained - 2 * math.sqrt(untrained * (1 - untrained) / examples):
        return None
    symptom = (
        f"the probe is below that of the untrained encoder (linear {now:.1%} at step {line['step']}, {untrained:.1%} untrained)"
    )
    return Finding("watch", symptom, *likely_cause(run))


def held_out_loss_rising(run: History) -> Finding | None:
    """A loss on held-out data that rises, or never fell, while that of training does not rise."""
    measured = run.evaluations("valid_loss")
    if len(measured) < NUM_RECENT or not run.past_warmup or run.growth_of_targets:
        return None
    (first, start), (lowest, best), (last, end) = measured[0], min(measured), measured[-1]
    loss = {line["step"]: line["loss"] for line in run.lines}
    if best == start and loss[end] < 0.95 * loss[start]:
        return Finding(
            "watch",
            f"the held-out loss never fell ({first:.3g} at step {start}, {last:.3g} at step {end}); the training loss did",
            "data.valid differs from data.train, or there is too little training data",
            "check that data.valid is of the same kind as data.train; more data",
        )
    if last > 1.2 * lowest and loss[end] < 1.05 * loss[best]:
        return Finding(
            "watch",
            f"the held-out loss is rising ({lowest:.3g} at step {best}, {last:.3g} at step {end}); the training loss is not",
            "overfitting: the training data is too small for so many steps",
            f"train.steps={best}, more data, or more augmentation or masking",
        )
    return None


def frozen_local_encoder(run: History) -> Finding | None:
    """A local encoder that stays random."""
    share = run.values("local_encoder_fraction_with_grad")[-1]
    if not share < 0.5:
        return None
    symptom = f"the local encoder does not learn: {share:.0%} of its weights receive gradients (step {run.step})"
    zero = [key for key, value in run.recipe.items() if key.endswith("grad_scale") and value == 0]
    if zero:
        return Finding("watch", symptom, f"{zero[0]}=0 freezes it", f"{zero[0]}=1")
    cause = "its weights are frozen, or its output reaches no prediction"
    return Finding("watch", symptom, cause, "unfreeze its weights, or let gradients through")


def update_too_large(run: History) -> Finding | None:
    """Updates too large for the weights."""
    cause, (ratio, step) = causes.update_too_large(run), run.peak("update_ratio")
    symptom = f"updates too large (update_ratio {ratio:.2g} at step {step}, above {causes.MAX_UPDATE_RATIO:g})"
    return Finding("watch", symptom, *cause) if cause else None


def teacher_too_fast(run: History) -> Finding | None:
    """A teacher that is hardly an average of the student."""
    if not (cause := causes.teacher_too_fast(run)):
        return None
    decay, step = min(zip(run.values("ema_decay"), run.values("step"), strict=True))
    symptom = f"the EMA teacher averages over {1 / (1 - decay):.1f} steps only (ema_decay {decay:.4f} at step {step})"
    return Finding("watch", f"{symptom} ({run.describe_change('target_rank')})", *cause)


def teacher_too_slow(run: History) -> Finding | None:
    """A teacher that hardly moves. Its initial weights fade as the product of the decays, interpolated between logged steps."""
    steps, decays = run.values("step"), run.values("ema_decay")
    way = sum((t - s) * (1 - (a + b) / 2) for s, t, a, b in zip(steps, steps[1:], decays, decays[1:], strict=False))
    if "ema_decay" not in run.lines[-1] or run.step < run.recipe["train.steps"] / 2 or not way < 0.2:
        return None
    name, value = causes.teacher_schedule(run)
    end = "shorter objective.teacher.anneal_steps" if name.endswith(".decay") else "lower objective.teacher.end_half_life"
    return Finding(
        "watch",
        f"the EMA teacher still holds {math.exp(-way):.0%} of its initial weights (step {run.step})",
        f"{name}={value:g} is too high for {run.recipe['train.steps']} steps",
        f"a lower {name} and a {end}, or more train.steps",
    )


def loss_spike(run: History) -> Finding | None:
    """A loss far above that of the initial weights."""
    first, (most, step) = run.values("loss")[0], run.peak("loss")
    if not 2 * first < most < math.inf:
        return None
    symptom = f"loss spike ({first:.3g} at the first step, {most:.3g} at step {step})"
    return Finding("watch", symptom, *likely_cause(run))


def rising_loss(run: History) -> Finding | None:
    """A loss that rises although the targets do not grow, which would explain it."""
    if not run.growth_since_lowest_loss("loss") > 1.5 or run.growth_of_targets:
        return None
    low = run.lines[run.lowest_loss_index]
    symptom = f"the loss is rising ({low['loss']:.3g} at step {low['step']}, {run.recent_mean('loss'):.3g} now)"
    if "target_std" in low:
        targets = f"{run.describe_change('target_std')}; {run.describe_change('target_rank')}"
        symptom = f"{symptom} although the targets are not growing ({targets})"
    return Finding("watch", symptom, *likely_cause(run))


def loss_term_rising(run: History) -> Finding | None:
    """A term of the loss that rises while the loss as a whole does not, which hides it."""
    if not run.past_warmup or run.growth_since_own_lowest("loss") > 1.5:
        return None
    for name, setting in TERM_WEIGHTS.items():
        key = f"{name}_loss"
        is_warm_start = name == "regression" and not math.isnan(run.values("input_loss")[-1])
        if is_warm_start or (name in ("regression", "class_token") and run.growth_of_targets):
            continue  # it is hardly trained yet; or there is more to predict
        growth = run.growth_since_own_lowest(key)
        if growth > 1.5:
            low, step = run.lowest(key)
            symptom = (
                f"the loss of {name} is rising ({low:.3g} at step {step}, {run.recent_mean(key):.3g} now) while the sum does "
                f"not ({run.describe_change('loss')})"
            )
            share = run.recent_mean(f"{name}_share")
            cause = f"it is {share:.0%} of the loss, and what the other terms need works against it"
            return Finding("watch", symptom, cause, f"another weight of the terms: {setting}")
    return None


def loss_term_dominates(run: History) -> Finding | None:
    """A term of the loss beside which that of the representations hardly counts."""
    for name, setting in TERM_WEIGHTS.items():
        warm_start = name == "input" and run.recipe.get("objective.input_target.fade_from", 1) < 1
        if name in ("regression", "contrastive") or warm_start or not run.stays_above(f"{name}_share", MAX_SHARE):
            continue
        symptom = f"the loss is nearly all that of {name} ({run.describe_change(f'{name}_share')})"
        return Finding("watch", symptom, "its weight is far too high beside the other terms", f"a lower {setting}")
    return None


def not_learning(run: History) -> Finding | None:
    """A loss that does not fall, of new weights: that of trained ones (`init`) may be as low as it gets."""
    if run.recipe.get("init") is not None:
        return None
    first, now = run.values("loss")[0], run.recent_mean("loss")
    if not (now > 0.95 * first and run.past_warmup) or run.growth_of_targets:
        return None
    cause, (ratio, _), lr = likely_cause(run), run.peak("update_ratio"), run.recipe["train.lr"]
    if 0 < ratio < GOOD_UPDATE_RATIO / 10:
        what = f"train.lr={lr:g} is too low: the largest update_ratio is {ratio:.1g}"
        cause = Cause(what, f"train.lr={round_lr(lr * GOOD_UPDATE_RATIO / ratio)}")
    return Finding("watch", f"the loss does not fall ({run.describe_change('loss')})", *cause)


def drifted_from_start(run: History) -> Finding | None:
    """Features that have hardly anything left of those of the model that the run started from."""
    measured = [line for line in run.lines if line.get("drift_features") is not None]
    if not measured or not measured[-1]["drift_features"] > MAX_DRIFT:
        return None
    lr, drift, step = run.recipe["train.lr"], measured[-1]["drift_features"], measured[-1]["step"]
    return Finding(
        "watch",
        f"the features have drifted far from the model that the run started from (drift_features {drift:.2g} at step {step}, "
        f"above {MAX_DRIFT:g})",
        f"train.lr={lr:g} is high for weights that are trained already, or the data is very different",
        f"train.lr={round_lr(lr / 3)}, or fewer train.steps; measure what is forgotten by data2vec adapt --keep",
    )


def dataloader_bound(run: History) -> Finding | None:
    """Training that waits for the data loader."""
    waits = sorted(run.values("data_wait")[1:][-10:])  # the first includes the start of the workers
    if len(waits) < NUM_RECENT or not (wait := waits[len(waits) // 2]) > 0.3:
        return None
    workers = run.recipe["data.workers"]
    return Finding(
        "watch",
        f"training waits for data {wait:.0%} of the time",
        f"{'one worker per core' if workers is None else f'data.workers={workers}'} cannot decode as fast as the model trains",
        f"{'more cores' if workers is None else f'data.workers={max(2, 2 * workers)}'}, or data that is cheaper to decode",
    )


def unreadable_examples(run: History) -> Finding | None:
    """Half of the tolerated share of unreadable examples, or more."""
    corrupt, epoch, allowed = run.last.get("corrupt", 0), run.last.get("epoch"), run.recipe["data.max_corrupt"]
    if not epoch or corrupt < 2:  # a single one is always tolerated
        return None
    share = corrupt * epoch / run.last["samples"]
    if not share > allowed / 2:
        return None
    return Finding(
        "watch",
        f"{corrupt} examples cannot be read, about {share:.2%} of all (step {run.step}); the run stops above {allowed:.1%}",
        "corrupt files or files of another format, listed in corrupt_files.txt",
        "fix or remove them, or raise data.max_corrupt",
    )


Check = Callable[[History], Finding | None]
TERM_WEIGHTS = {
    "regression": "objective.cls_loss or objective.input_target.weight",
    "contrastive": "objective.diversity_weight or objective.penalty_weight",
    "input": "objective.input_target.weight",
    "class_token": "objective.cls_loss",
    "diversity": "objective.diversity_weight",
    "penalty": "objective.penalty_weight",
}
"""The terms that a loss may have, each with the settings that decide how much it counts."""
MAX_SHARE = 0.95
"""The share of the loss that a single term beside that of the representations may have."""
CHECKS: tuple[Check, ...] = (
    *(run_stopped, constant_representations, shrinking_targets, positional_collapse, learns_position),
    *(dead_local_encoder, rank_collapse, shrinking_features, probe_below_untrained, held_out_loss_rising),
    *(never_left_warmup, weight_decay_too_high, predicts_only_mean),
    *(frozen_local_encoder, update_too_large, teacher_too_fast, teacher_too_slow, loss_spike, rising_loss),
    *(loss_term_rising, loss_term_dominates, not_learning),
    *(drifted_from_start, dataloader_bound, unreadable_examples),
)
"""All checks of pre-training, the most specific first."""
