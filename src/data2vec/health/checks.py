"""What is to be seen in the figures of a run that goes wrong, each sign with its likely cause and what to change.

Bounds that stop a run are settings, in `health.py`; the others stand here, and were set on runs of
`benchmarks/health.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data2vec.health import causes
from data2vec.health.causes import GOOD_UPDATE
from data2vec.health.history import STAYS, History
from data2vec.objective import diagnostics as health

Level = Literal["watch", "collapsed"]


@dataclass(frozen=True)
class Finding:
    """One sign."""

    level: Level
    """Worth a look; or there is no use in going on."""
    sign: str
    """What is to be seen, with figures and steps."""
    cause: str
    """Why that is, most likely."""
    mend: str
    """What to change."""

    def __str__(self) -> str:
        return f"{self.sign}. Likely cause: {self.cause}. What to change: {self.mend}"


def stopped(run: History) -> Finding | None:
    """What ends a run."""
    told = health.collapsed(run.last, run.step, run.limits)
    return Finding("collapsed", f"at step {run.step} {told}", *causes.likely(run)) if told else None


def constant(run: History) -> Finding | None:
    """The same before the grace period is over, when it ends nothing yet."""
    bounds = {"target_std": run.limits.min_target_std, "prediction_std": run.limits.min_prediction_std}
    low = [name for name, bound in bounds.items() if run.stays(name, bound)]
    if run.step >= run.limits.grace_steps or not low or not (run.settled or "target_std" in low):
        return None
    sign = f"hardly any difference between positions is left ({'; '.join(map(run.path, low))})"
    return Finding("collapsed" if len(low) == 2 else "watch", sign, *causes.likely(run))


def shrinking(run: History) -> Finding | None:
    """Targets on their way to being constant."""
    most, _ = run.peak("target_std")
    if not run.stays("target_std", most / 2):
        return None
    return Finding("watch", f"the targets lose their spread ({run.path('target_std')})", *causes.likely(run))


def placed(run: History) -> Finding | None:
    """Targets that tell a position's place and nothing else."""
    if not run.stays("target_content", min(0.1, run.values("target_content")[0] / 5)):
        return None
    level: Level = "collapsed" if run.stays("target_content", 0.01) else "watch"
    sign = f"the targets tell the place of a position and hardly anything of the input ({run.path('target_content')})"
    return Finding(level, sign, *causes.likely(run, causes.features_shared, causes.place_enough))


def dead(run: History) -> Finding | None:
    """Local features that fade, which the rest can hide."""
    first = run.values("features_std")[0]
    low = [name for name, bound in (("features_std", 0.03 * first), ("features_rank", 1.02)) if run.stays(name, bound)]
    if not low:
        return None
    level: Level = "collapsed" if run.stays("features_std", 0.01 * first) else "watch"
    sign = f"the front-end dies, its features hardly differ ({'; '.join(map(run.path, low))})"
    return Finding(level, sign, *causes.likely(run, causes.features_shared))


def narrow(run: History) -> Finding | None:
    """Vectors that lie on a line or in a plane."""
    low = [name for name in ("student_rank", "target_rank", "prediction_rank") if run.stays(name, 2)]
    if not low or not run.settled:
        return None
    return Finding("watch", f"one or two directions of all are used ({'; '.join(map(run.path, low))})", *causes.likely(run))


def frozen(run: History) -> Finding | None:
    """A front-end that stays random."""
    share = run.values("features_learning")[-1]
    if not share < 0.5:
        return None
    sign = f"the front-end does not learn: {share:.0%} of its weights receive gradients (step {run.step})"
    zero = [key for key, value in run.recipe.items() if key.endswith("grad_scale") and value == 0]
    if zero:
        return Finding("watch", sign, f"{zero[0]}=0 freezes it", f"{zero[0]}=1")
    return Finding("watch", sign, "its weights are frozen, or what it gives reaches no prediction", "let gradients through")


def leaping(run: History) -> Finding | None:
    """Steps too big for the weights."""
    cause, (ratio, step) = causes.steps_too_big(run), run.peak("update_ratio")
    return Finding("watch", f"step {step} moved the weights by {ratio:.2g} times their size", *cause) if cause else None


def chasing(run: History) -> Finding | None:
    """A teacher that follows at once."""
    if not (cause := causes.teacher_too_fast(run)):
        return None
    decay, step = min(zip(run.values("ema_decay"), run.values("step"), strict=True))
    sign = f"the teacher follows at once: ema_decay {decay:.4f} at step {step} averages over {1 / (1 - decay):.1f} steps"
    return Finding("watch", f"{sign} ({run.path('target_rank')})", *cause)


def standing(run: History) -> Finding | None:
    """A teacher that does not follow. Its first weights fade as the product of the decays, here taken between logged steps."""
    steps, decays = run.values("step"), run.values("ema_decay")
    way = sum((t - s) * (1 - (a + b) / 2) for s, t, a, b in zip(steps, steps[1:], decays, decays[1:], strict=False))
    if run.step < run.recipe["train.steps"] / 2 or not way < 0.2:
        return None
    decay = run.recipe["objective.teacher.decay"]
    return Finding(
        "watch",
        f"{math.exp(-way):.0%} of the teacher still is as it was at the start (step {run.step})",
        f"objective.teacher.decay={decay:g} is too slow for {run.recipe['train.steps']} steps",
        "a lower objective.teacher.decay and a shorter objective.teacher.anneal_steps, or more train.steps",
    )


def jumping(run: History) -> Finding | None:
    """A loss far above the one of fresh weights."""
    first, (most, step) = run.values("loss")[0], run.peak("loss")
    if not 2 * first < most < math.inf:
        return None
    return Finding("watch", f"the loss jumped ({first:.3g} at first, {most:.3g} at step {step})", *causes.likely(run))


def rising(run: History) -> Finding | None:
    """A loss that rises for nothing. Where the targets get richer it may."""
    if not run.since_low("loss") > 1.5 or run.richer:
        return None
    low = run.lines[run.low]
    sign = (
        f"the loss rises ({low['loss']:.3g} at step {low['step']}, {run.recent('loss'):.3g} now) while the targets gain nothing"
    )
    return Finding("watch", f"{sign} ({run.path('target_std')}; {run.path('target_rank')})", *causes.likely(run))


def idle(run: History) -> Finding | None:
    """Nothing learnt at all."""
    first, now = run.values("loss")[0], run.recent("loss")
    if not (now > 0.95 * first and run.settled) or run.richer:
        return None
    cause, (ratio, _), lr = causes.likely(run), run.peak("update_ratio"), run.recipe["train.lr"]
    if 0 < ratio < GOOD_UPDATE / 10:
        what = f"train.lr={lr:g} is too low: no step moved the weights by more than {ratio:.1g} times their size"
        cause = causes.Cause(what, f"train.lr={causes.rounded(lr * GOOD_UPDATE / ratio)}")
    return Finding("watch", f"the loss does not fall ({run.path('loss')})", *cause)


def waiting(run: History) -> Finding | None:
    """A processor or GPU without work."""
    waits = sorted(run.values("data_wait")[1:][-10:])  # the first has the start of the workers in it
    if len(waits) < STAYS or not (wait := waits[len(waits) // 2]) > 0.3:
        return None
    workers = run.recipe["data.workers"]
    return Finding(
        "watch",
        f"{wait:.0%} of the time goes into waiting for data",
        f"data.workers={workers} cannot decode as fast as steps are made",
        f"data.workers={max(2, 2 * workers)}, or data that is cheaper to decode",
    )


def unreadable(run: History) -> Finding | None:
    """Half of what is borne, or more."""
    corrupt, epoch, allowed = run.last.get("corrupt", 0), run.last.get("epoch"), run.recipe["data.max_corrupt"]
    if not epoch or corrupt < 2:  # one is always borne
        return None
    share = corrupt * epoch / run.last["samples"]
    if not share > allowed / 2:
        return None
    return Finding(
        "watch",
        f"{corrupt} examples cannot be read, about {share:.2%} of all (step {run.step}); beyond {allowed:.1%} the run stops",
        "damaged or foreign files, which corrupt_files.txt names",
        "mend or remove them, or raise data.max_corrupt",
    )


Sign = Callable[[History], Finding | None]
SIGNS: tuple[Sign, ...] = (
    *(stopped, constant, shrinking, placed, dead, narrow, frozen, leaping),
    *(chasing, standing, jumping, rising, idle, waiting, unreadable),
)
"""The most telling first."""
