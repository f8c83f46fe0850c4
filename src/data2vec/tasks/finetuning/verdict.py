"""The verdict on any run, pre-training or fine-tuning."""

from collections.abc import Sequence

from data2vec.health.checks import Finding, dataloader_bound, unreadable_examples, update_too_large
from data2vec.health.collapse import NON_FINITE, is_finite
from data2vec.health.history import History
from data2vec.health.verdict import Verdict, verdict
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.settings import JsonMapping
from data2vec.tasks.metrics import is_better


def judge_run(metrics: Sequence[JsonMapping], recipe: Recipe) -> Verdict:
    """The verdict on a run from its metrics so far."""
    if not isinstance(recipe.objective, SupervisedSettings):
        return verdict(metrics, recipe.flat())
    return verdict(
        metrics,
        recipe.flat(),
        (non_finite_loss, update_too_large, overfitting, at_chance, dataloader_bound, unreadable_examples),
    )


def non_finite_loss(run: History) -> Finding | None:
    """Loss or gradient norm is NaN or infinite."""
    if is_finite(run.last):
        return None
    lr = run.recipe["train.lr"]
    symptom = f"{NON_FINITE} at step {run.step}"
    return Finding(
        "collapsed", symptom, f"train.lr={lr:g} is too high, or an input or label is corrupt", f"train.lr={lr / 10:g}"
    )


def overfitting(run: History) -> Finding | None:
    """The validation score has been better before."""
    metric = run.recipe["objective.metric"]
    seen = [(line[name], line["step"]) for line in run.lines if (name := f"valid_{metric}") in line]
    if len(seen) < 3:
        return None
    best = seen[0]
    for candidate in seen:
        best = candidate if is_better(metric, candidate[0], best[0]) else best
    last, gap = seen[-1], abs(seen[-1][0] - best[0])
    if gap < 0.1 * abs(best[0]) or gap < 0.01 or last[1] < 1.5 * best[1]:
        return None
    return Finding(
        "watch",
        f"validation is getting worse ({metric} {best[0]:.3g} at step {best[1]}, {last[0]:.3g} at step {last[1]})",
        "overfitting to the training data; the best model was saved",
        f"train.steps={best[1]}, more labels, or more augmentation, masking or dropout",
    )


def at_chance(run: History) -> Finding | None:
    """Recognition is still at chance level halfway through training."""
    values = [line["valid_wer"] for line in run.lines if "valid_wer" in line]
    if run.step < run.recipe["train.steps"] / 2 or not values or min(values) < 0.9:
        return None
    return Finding(
        "watch",
        f"hardly any word is recognised (word error rate {values[-1]:.0%} at step {run.step})",
        "too few steps or labels, too much masking, or too low a learning rate; a CTC model learns blanks first",
        "more train.steps, smaller batches, a lower objective.mask.prob, or a higher train.lr",
    )
