"""Likely causes of a collapse, by the metrics and the recipe, each with a suggestion.

(Paper, discussion: a learning rate too high or a warm-up too short, a teacher too fast, neighbouring targets too similar.)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from data2vec.health.collapse import is_finite
from data2vec.health.history import History

MAX_UPDATE_RATIO = 0.08
"""No step should change the weights by more than this share of their norm; healthy tiny recipes stay below 0.03."""
GOOD_UPDATE_RATIO = 0.005
"""The ratio at a learning rate that works."""
MIN_TEACHER_DECAY = 0.9
"""Below this decay the teacher forgets within ten steps: it is the student rather than an average of it."""
MAX_WEIGHT_DECAY = 0.5
"""Recipes have 0.01 to 0.1."""
MAX_DECAY_PER_STEP = 0.005
"""At this product of weight decay and learning rate, weights without a gradient halve in 140 steps."""
GOOD_TEACHER_DECAY = 0.96
"""The first decay of short runs that work: half of the weights are forgotten in 17 steps."""


class Cause(NamedTuple):
    """A likely cause and what to change."""

    cause: str
    suggestion: str


def likely_cause(run: History, *special: Callable[[History], Cause | None]) -> Cause:
    """The first cause of a collapse with evidence; `special`: causes that only one symptom has, tried last."""
    causes = (cause(run) for cause in (weight_decay_too_high, update_too_large, teacher_too_fast, no_target_norm, *special))
    return next(filter(None, causes), learning_rate_or_warmup(run))


def weight_decay_too_high(run: History) -> Cause | None:
    """A weight decay that removes the weights faster than they learn."""
    decay = run.recipe["train.weight_decay"]
    if not (decay > MAX_WEIGHT_DECAY and decay * run.recipe["train.lr"] > MAX_DECAY_PER_STEP):
        return None
    return Cause(f"train.weight_decay={decay:g} is far too high", "train.weight_decay=0.05")


def update_too_large(run: History) -> Cause | None:
    """Updates far too large for the weights: a learning rate far too high."""
    ratio, _ = run.peak("update_ratio")
    lr = run.recipe["train.lr"]
    if not ratio > MAX_UPDATE_RATIO:
        return None
    suggestion = round_lr(lr * GOOD_UPDATE_RATIO / ratio) if math.isfinite(ratio) else "1e-3"
    return Cause(f"train.lr={lr:g} is far too high", f"train.lr={suggestion}")


def teacher_too_fast(run: History) -> Cause | None:
    """A teacher that was hardly an average at some logged step."""
    if not min(run.values("ema_decay"), default=1) < MIN_TEACHER_DECAY:
        return None
    name, value = teacher_schedule(run)
    why = f"{name}={value:g} is too low, so the teacher follows too fast"
    if name.endswith(".decay"):
        return Cause(why, f"{name}=0.999; 0.99 for runs of a few hundred steps")
    steps = run.recipe["train.steps"]
    return Cause(f"{why} in a run of {steps} steps", slower_teacher(steps))


def slower_teacher(steps: int) -> str:
    """The settings, in words, with which a teacher whose half-life is a share of so many steps is an average."""
    share = math.log(0.5) / math.log(GOOD_TEACHER_DECAY) / steps
    return f"objective.teacher.half_life={share:.1g}, or more train.steps" if share < 1 else "more train.steps"


def teacher_schedule(run: History) -> tuple[str, float]:
    """The setting by which the recipe says how fast the teacher starts, and its value."""
    half_life = "objective.teacher.half_life"
    name = "objective.teacher.decay" if run.recipe.get(half_life) is None else half_life
    return name, run.recipe[name]


def no_target_norm(run: History) -> Cause | None:
    """Targets without any normalisation, which may become constant."""
    norms = [run.recipe.get(f"objective.target.{name}", ["no teacher"]) for name in ("per_layer_norms", "final_norms")]
    if any(norms):
        return None
    return Cause(
        "objective.target.per_layer_norms=[]: without a norm, nothing keeps the targets from becoming constant",
        "objective.target.per_layer_norms=[instance]",
    )


def shared_local_encoder(run: History) -> Cause | None:
    """A local encoder that student and teacher share."""
    if run.recipe.get("objective.teacher.local_encoder") != "shared":
        return None
    return Cause(
        "objective.teacher.local_encoder=shared: the local encoder can make the task easier by discarding information",
        f"objective.teacher.local_encoder=averaged; or train.lr={round_lr(run.recipe['train.lr'] / 3)}, or longer examples",
    )


def learned_positions(run: History) -> Cause | None:
    """A learned vector for each position, from which the student learns what the targets there have in common."""
    if run.recipe.get("modality.positions") != "learned":
        return None
    return Cause(
        "modality.positions=learned: a vector for each position reveals what the targets have in common there",
        "modality.positions=conv",
    )


def first_token_outlier(run: History) -> Cause | None:
    """Targets of text whose variance is that of the first token: with instance norm alone, one outlier holds it."""
    norms = [*run.recipe.get("objective.target.per_layer_norms", []), *run.recipe.get("objective.target.final_norms", [])]
    if run.recipe.get("modality.name") != "text" or "instance" not in norms or "layer" in norms[norms.index("instance") :]:
        return None
    return Cause(
        "<s>, which begins every block, is an outlier that holds the variance of the targets under instance norm alone",
        "objective.target.per_layer_norms=[instance, layer]",
    )


def predictable_from_position(run: History) -> Cause:
    """A task that can be solved from the position alone."""
    decoder = " and objective.decoder" if "objective.decoder.kernel" in run.recipe else ""
    return Cause(
        "the targets can be predicted from the position alone: examples are too similar, or positions reveal where one ends",
        f"longer or more varied examples, position encoder{decoder} with smaller kernels, or "
        f"train.lr={round_lr(run.recipe['train.lr'] / 3)}",
    )


def learning_rate_or_warmup(run: History) -> Cause:
    """The default when there is no evidence for another cause."""
    lr, precision = run.recipe["train.lr"], run.recipe["train.precision"]
    suggestions = [f"train.lr={round_lr(lr / 3)}, a longer warm-up in train.schedule"]
    if run.recipe["train.clip_norm"] == 0:
        suggestions.append("train.clip_norm=1")
    if precision != "fp32" and not is_finite(run.last):
        suggestions.append(f"train.precision=fp32 (it is {precision})")
    return Cause(f"train.lr={lr:g} is too high, or its warm-up too short", ", or ".join(suggestions))


def round_lr(lr: float) -> str:
    """A learning rate with one significant digit."""
    return f"{float(f'{lr:.0e}'):g}"
