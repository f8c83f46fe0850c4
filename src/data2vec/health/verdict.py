"""The verdict on a run: healthy, worth watching, or collapsed; with symptoms, likely causes and suggestions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data2vec.health.checks import CHECKS, Check, Finding
from data2vec.health.history import History
from data2vec.settings import JsonMapping

__all__ = ["Finding", "Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """The state of a run. `str()` gives a line for the state and a line for each finding."""

    state: Literal["healthy", "watch", "collapsed"]
    """The worst level of the findings; healthy without any."""
    findings: tuple[Finding, ...] = ()
    """The problems, the worst first; symptoms with the same cause are one finding."""
    note: str = ""
    """For a healthy run: how loss and targets developed."""

    def __str__(self) -> str:
        parts = [f"verdict: {self.state}", *(f"{finding.level}: {finding}" for finding in self.findings)]
        return "\n  ".join([*parts, self.note] if self.note else parts)


def verdict(metrics: Sequence[JsonMapping], recipe: JsonMapping, checks: Sequence[Check] = CHECKS) -> Verdict:
    """Judge a run by its logged steps so far: lines of metrics.jsonl, oldest first (`Run.metrics`).

    `recipe`: its settings as plain values by dotted key (`Recipe.flat()`). `checks`: what to look for, by default all checks
    of pre-training; the first has to work without any step whose loss is finite."""
    if not metrics:
        return Verdict("healthy", note="nothing is logged yet")
    run = History(metrics, recipe)
    by_cause: dict[tuple[str, str], Finding] = {}
    for finding in filter(None, (check(run) for check in checks if run.lines or check is checks[0])):
        key = finding.cause, finding.suggestion
        if (same := by_cause.get(key)) is not None:
            worst = same if same.level == "collapsed" else finding
            finding = replace(worst, symptom=f"{same.symptom}; {finding.symptom}")
        by_cause[key] = finding
    findings = sorted(by_cause.values(), key=lambda finding: finding.level)  # "collapsed" before "watch"
    return Verdict(findings[0].level, tuple(findings)) if findings else Verdict("healthy", note=describe_healthy(run))


def describe_healthy(run: History) -> str:
    """How loss and targets of a healthy run developed. The loss may rise when the targets grow."""
    if run.growth_since_lowest_loss("loss") > 1.1 and run.targets_growing:
        low = run.lines[run.lowest_loss_index]
        return (
            f"the loss rises as expected: {low['loss']:.3g} at step {low['step']}, {run.recent_mean('loss'):.3g} now, because "
            f"there is more to predict: target_std grew from {low['target_std']:.3g} to {run.recent_mean('target_std'):.3g}, "
            f"target_rank from {low['target_rank']:.3g} to {run.recent_mean('target_rank'):.3g}"
        )
    targets = (
        f"; the targets keep their variance ({run.describe_change('target_std')})" if "target_std" in run.lines[-1] else ""
    )
    return f"{run.describe_change('loss')}{targets}"
