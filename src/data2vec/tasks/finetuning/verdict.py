"""The verdict on a run of either kind, pre-training or fine-tuning."""

from collections.abc import Mapping, Sequence
from typing import Any

from data2vec.health import checks as signs
from data2vec.health.checks import Finding
from data2vec.health.history import History
from data2vec.health.verdict import Verdict, verdict
from data2vec.objective.diagnostics import finite
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.tasks.metrics import better


def judge(metrics: Sequence[Mapping[str, Any]], recipe: Recipe) -> Verdict:
    """Judge a run by its logged steps so far."""
    if not isinstance(recipe.objective, SupervisedSettings):
        return verdict(metrics, recipe.flat())
    return verdict(metrics, recipe.flat(), (broken, signs.leaping, worse, chance, signs.waiting, signs.unreadable))


def broken(run: History) -> Finding | None:
    """What ends a run."""
    if finite(run.last):
        return None
    lr = run.recipe["train.lr"]
    sign = f"at step {run.step} the loss, or the norm of the gradients, is no number any more"
    return Finding("collapsed", sign, f"train.lr={lr:g} is too high, or an input or label is broken", f"train.lr={lr / 10:g}")


def worse(run: History) -> Finding | None:
    """A validation that was better before."""
    metric = run.recipe["objective.metric"]
    seen = [(line[name], line["step"]) for line in run.lines if (name := f"valid_{metric}") in line]
    if len(seen) < 3:
        return None
    best = seen[0]
    for one in seen:
        best = one if better(metric, one[0], best[0]) else best
    last, gap = seen[-1], abs(seen[-1][0] - best[0])
    if gap < 0.1 * abs(best[0]) or gap < 0.01 or last[1] < 1.5 * best[1]:
        return None
    return Finding(
        "watch",
        f"validation gets worse ({metric} {best[0]:.3g} at step {best[1]}, {last[0]:.3g} at step {last[1]}); the best is kept",
        "it learns the training data by heart",
        f"train.steps={best[1]}, more labels, or more augmentation, masking or dropout",
    )


def chance(run: History) -> Finding | None:
    """Hardly anything learnt of the labels."""
    values = [line["valid_wer"] for line in run.lines if "valid_wer" in line]
    if run.step < run.recipe["train.steps"] / 2 or not values or min(values) < 0.9:
        return None
    return Finding(
        "watch",
        f"hardly any word is recognised (word error rate {values[-1]:.0%} at step {run.step})",
        "too few steps or labels, too much hidden, or too low a learning rate; blanks come first in CTC",
        "more train.steps, smaller batches, a lower objective.mask.prob, or a higher train.lr",
    )
