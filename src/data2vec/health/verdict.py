"""The verdict on a run in words: healthy, worth a look, or collapsed; with the reasons, and what to change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from data2vec.health.checks import SIGNS, Finding, Sign
from data2vec.health.history import History

__all__ = ["Finding", "Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """How a run stands. `str()` of it is a line for the state, and one for each finding."""

    state: Literal["healthy", "watch", "collapsed"]
    """The worst of the findings; healthy without any."""
    findings: tuple[Finding, ...] = ()
    """What is wrong, the worst first; signs of one cause are one finding."""
    note: str = ""
    """Of a healthy run: how it goes, and why a loss that rises is no harm."""

    def __str__(self) -> str:
        parts = [f"verdict: {self.state}", *(f"{finding.level}: {finding}" for finding in self.findings)]
        return "\n  ".join([*parts, self.note] if self.note else parts)


def verdict(metrics: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], signs: Sequence[Sign] = SIGNS) -> Verdict:
    """Judge a run by its logged steps so far: lines of metrics.jsonl, oldest first (`Run.metrics`).

    `recipe`: its settings as plain values by dotted key (`Recipe.flat()`), by which causes are named. `signs`: what to look
    for, by default all that pre-training has; the first is what ends a run, and needs no step whose loss is a number."""
    if not metrics:
        return Verdict("healthy", note="nothing is logged yet")
    run = History(metrics, recipe)
    found: dict[tuple[str, str], Finding] = {}
    for finding in filter(None, (sign(run) for sign in signs if run.lines or sign is signs[0])):
        key = finding.cause, finding.mend
        if (same := found.get(key)) is not None:
            worst = same if same.level == "collapsed" else finding
            finding = replace(worst, sign=f"{same.sign}; {finding.sign}")
        found[key] = finding
    findings = sorted(found.values(), key=lambda finding: finding.level)  # "collapsed" before "watch"
    return Verdict(findings[0].level, tuple(findings)) if findings else Verdict("healthy", note=course(run))


def course(run: History) -> str:
    """How a healthy run goes: a word on the loss, which may rise when the targets get richer, and on the targets."""
    if run.since_low("loss") > 1.1 and run.richer:
        low = run.lines[run.low]
        return (
            f"the loss rises, as it should: {low['loss']:.3g} at step {low['step']}, {run.recent('loss'):.3g} now, while the "
            f"targets got richer (target_std {low['target_std']:.3g} to {run.recent('target_std'):.3g}, target_rank "
            f"{low['target_rank']:.3g} to {run.recent('target_rank'):.3g}), so that there is more to predict"
        )
    spread = f"; the targets keep their spread ({run.path('target_std')})" if "target_std" in run.lines[-1] else ""
    return f"{run.path('loss')}{spread}"
