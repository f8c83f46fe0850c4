"""Why representations collapse: by what the figures show, and by what the recipe says.

(Paper, discussion: a learning rate too high or a warm-up too short, a teacher too fast, neighbouring targets too alike.)
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from data2vec.health.history import History
from data2vec.objective.diagnostics import finite

BIG_UPDATE = 0.08
"""No step should move the weights by more than this share of their size; healthy tiny recipes stay below 0.03."""
GOOD_UPDATE = 0.005
"""What a learning rate that works moves them by."""
FAST_DECAY = 0.9
"""Below this decay the teacher forgets within ten steps: it is the student rather than an average of it."""


class Cause(NamedTuple):
    """A cause and what to change."""

    cause: str
    mend: str


def likely(run: History, *special: Callable[[History], Cause | None]) -> Cause:
    """The first cause of a collapse that there is evidence for; `special`: those that only this sign may have."""
    found = (cause(run) for cause in (steps_too_big, teacher_too_fast, targets_free, *special))
    return next(filter(None, found), rate(run))


def steps_too_big(run: History) -> Cause | None:
    """Steps that move the weights too far: a learning rate too high by far."""
    ratio, _ = run.peak("update_ratio")
    lr = run.recipe["train.lr"]
    if not ratio > BIG_UPDATE:
        return None
    mend = rounded(lr * GOOD_UPDATE / ratio) if math.isfinite(ratio) else "1e-3"
    return Cause(f"train.lr={lr:g} is far too high", f"train.lr={mend}")


def teacher_too_fast(run: History) -> Cause | None:
    """A teacher that at some logged step was hardly an average."""
    if not min(run.values("ema_decay"), default=1) < FAST_DECAY:
        return None
    decay = run.recipe["objective.teacher.decay"]
    return Cause(
        f"objective.teacher.decay={decay:g} is too fast", "objective.teacher.decay=0.999; 0.99 in a run of hundreds of steps"
    )


def targets_free(run: History) -> Cause | None:
    """No norm at all: whether the targets vary is up to the teacher alone."""
    if run.recipe["objective.target.layer_norms"] or run.recipe["objective.target.norms"]:
        return None
    return Cause("objective.target.layer_norms=[]: nothing keeps the targets apart", "objective.target.layer_norms=[instance]")


def features_shared(run: History) -> Cause | None:
    """A front-end that the teacher has no copy of."""
    if run.recipe["objective.teacher.local_encoder"] != "shared":
        return None
    return Cause(
        "objective.teacher.local_encoder=shared: the front-end can make the task easy by saying ever less",
        f"objective.teacher.local_encoder=averaged; or train.lr={rounded(run.recipe['train.lr'] / 3)}, or longer examples",
    )


def place_enough(run: History) -> Cause:
    """A task that the place of a position solves."""
    decoder = " and objective.decoder" if "objective.decoder.kernel" in run.recipe else ""
    return Cause(
        "place alone predicts the targets: examples are too alike, or positions see where an example ends",
        f"longer or more varied examples, positions{decoder} that see less, or train.lr={rounded(run.recipe['train.lr'] / 3)}",
    )


def rate(run: History) -> Cause:
    """What is left when nothing else is to be seen."""
    lr, precision = run.recipe["train.lr"], run.recipe["train.precision"]
    mends = [f"train.lr={rounded(lr / 3)}, a longer warm-up in train.schedule"]
    if run.recipe["train.clip_norm"] == 0:
        mends.append("train.clip_norm=1")
    if precision != "fp32" and not finite(run.last):
        mends.append(f"train.precision=fp32 (it is {precision})")
    return Cause(f"train.lr={lr:g} is too high, or its warm-up too short", ", or ".join(mends))


def rounded(lr: float) -> str:
    """A learning rate that can be typed."""
    return f"{float(f'{lr:.0e}'):g}"
