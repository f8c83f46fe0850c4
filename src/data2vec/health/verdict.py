"""The verdict on a run: healthy, worth watching, collapsed, or too early to tell; with symptoms, causes and suggestions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from data2vec.health.checks import CHECKS, Check, Finding
from data2vec.health.collapse import untrained_steps
from data2vec.health.history import History
from data2vec.settings import JsonMapping

__all__ = ["Finding", "State", "Verdict", "verdict"]

State = Literal["healthy", "too early to tell", "watch", "collapsed"]


@dataclass(frozen=True)
class Verdict:
    """The state of a run. `str()` gives a line for the state and a line for each finding."""

    state: State
    """The worst level of the findings; without any, healthy, unless the run is too short yet for a fault to show."""
    findings: tuple[Finding, ...] = ()
    """The problems, the worst first; symptoms with the same cause are one finding."""
    note: str = ""
    """Without findings: how loss and targets developed, and what it is too early for."""

    def __str__(self) -> str:
        parts = [f"verdict: {self.state}", *(f"{finding.level}: {finding}" for finding in self.findings)]
        return "\n  ".join([*parts, self.note] if self.note else parts)

    def reworded(self, reword: Callable[[str], str]) -> "Verdict":
        """The same verdict with each sentence of its findings reworded."""
        found = (Finding(each.level, *map(reword, (each.symptom, each.cause, each.suggestion))) for each in self.findings)
        return replace(self, findings=tuple(found))


def too_early(run: History) -> list[str]:
    """Why faults of pre-training may not show yet; [] if they should."""
    settled, delay = run.settled_step, untrained_steps(run.recipe)
    if delay >= run.recipe["train.steps"]:
        return ["the warm start has all of the loss to the end, so the teacher's vectors are not learned; judge it by a probe"]
    early = f"step {run.step}: runs with and without a fault look alike until step {settled}, a fifth of health.grace_steps"
    early += " after those in which the warm start has all of the loss" if delay else ""
    mean = f"the predictions are hardly better than the mean yet ({run.describe_change('r2')})" if run.predicts_mean else None
    return list(filter(None, (run.unlogged(), run.warming_up(), early if run.step < settled else None, mean)))


def verdict(
    metrics: Sequence[JsonMapping],
    recipe: JsonMapping,
    checks: Sequence[Check] = CHECKS,
    too_early: Callable[[History], list[str]] = too_early,
) -> Verdict:
    """Judge a run by its logged steps so far: lines of metrics.jsonl, oldest first (`Run.metrics`).

    `recipe`: its settings as plain values by dotted key (`Recipe.flat()`). `checks`: what to look for, by default all checks
    of pre-training; the first has to work without any step whose loss is finite. `too_early`: why no finding is no sign of
    health yet."""
    if not metrics:
        return Verdict("too early to tell", note="nothing is logged yet")
    run = History(metrics, recipe)
    by_cause: dict[tuple[str, str], Finding] = {}
    for finding in filter(None, (check(run) for check in checks if run.lines or check is checks[0])):
        key = finding.cause, finding.suggestion
        if (same := by_cause.get(key)) is not None:
            worst = same if same.level == "collapsed" else finding
            finding = replace(worst, symptom=f"{same.symptom}; {finding.symptom}")
        by_cause[key] = finding
    findings = sorted(by_cause.values(), key=lambda finding: finding.level)  # "collapsed" before "watch"
    if findings:
        return Verdict(findings[0].level, tuple(findings))
    if reasons := too_early(run):
        return Verdict("too early to tell", note=f"{'; '.join(reasons)}. So far: {describe_healthy(run)}")
    return Verdict("healthy", note=describe_healthy(run))


def combine_verdicts(parts: Mapping[str, Verdict]) -> Verdict:
    """The verdicts on the parts of a joint run as one: the state of the worst part, and each part's findings and note."""
    order: tuple[State, ...] = ("collapsed", "watch", "too early to tell", "healthy")
    state = min((verdict.state for verdict in parts.values()), key=order.index)
    findings = [
        replace(finding, symptom=f"{name}: {finding.symptom}")
        for name, verdict in parts.items()
        for finding in verdict.findings
    ]
    notes = [f"{name}: {verdict.state}; {verdict.note}" for name, verdict in parts.items() if verdict.note]
    return Verdict(state, tuple(sorted(findings, key=lambda finding: finding.level)), "\n  ".join(notes))


def describe_healthy(run: History) -> str:
    """How loss and targets of a healthy run developed. The loss may rise when the targets grow."""
    if run.growth_since_lowest_loss("loss") > 1.1 and (growth := run.growth_of_targets):
        low = run.lines[run.lowest_loss_index]
        grown = ", ".join(f"{name} grew from {before:.3g} to {now:.3g}" for name, (before, now) in growth.items())
        return (
            f"the loss rises as expected: {low['loss']:.3g} at step {low['step']}, {run.recent_mean('loss'):.3g} now, because "
            f"there is more to predict: {grown}"
        )
    targets = (
        f"; the targets keep their variance ({run.describe_change('target_std')})" if "target_std" in run.lines[-1] else ""
    )
    return f"{run.describe_change('loss')}{targets}"
