"""Is the run healthy? The answer in words, with what it rests on and what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One sign that something is not as it should be."""

    level: str
    sign: str
    cause: str
    mend: str


@dataclass(frozen=True)
class Verdict:
    """What the measurements say."""

    state: str
    findings: tuple[Finding, ...]


def verdict(metrics: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Verdict:
    """The verdict on a run's logged steps; `settings`: the recipe's, by dotted key."""
    last = metrics[-1] if metrics else {}
    for stage in ("target", "prediction"):
        value, least = last.get(f"{stage}_std"), settings[f"objective.health.min_{stage}_std"]
        if value is not None and value < least:
            over = last["step"] >= settings["objective.health.grace_steps"]
            level = "collapsed" if over else "watch"
            sign = f"the {stage}s hardly differ between positions (standard deviation {value:.4f}, at least {least:g} expected)"
            mend = "lower train.lr, or warm up for longer (train.schedule)"
            return Verdict(level, (Finding(level, sign, "a learning rate too high, or a warm-up too short", mend),))
    return Verdict("healthy", ())
