"""The verdict on any run, pre-training or fine-tuning."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data2vec.health.checks import (
    Finding,
    dataloader_bound,
    never_left_warmup,
    unreadable_examples,
    update_too_large,
    weight_decay_too_high,
)
from data2vec.health.collapse import NON_FINITE, is_finite
from data2vec.health.history import History
from data2vec.health.verdict import Verdict, verdict
from data2vec.modalities.custom_classes import CustomClass, trust_class
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.run_dir import Run, load_run_recipe
from data2vec.settings import JsonMapping
from data2vec.tasks.metrics import LOWER_IS_BETTER, is_better, validations_since_best

SHARES = ("accuracy", "top5")
"""Scores that are shares of the examples, whose standard error is known."""
MOST_EMPTY = 0.99
"""With a larger share of empty transcripts, all count as blank."""
MOST_SHUFFLED = 0.95
"""Transcripts whose word error rate is a larger share of that against other recordings have little to do with their own."""


def judge_run(metrics: Sequence[JsonMapping], recipe: Recipe) -> Verdict:
    """The verdict on a run from its metrics so far."""
    if not isinstance(recipe.objective, SupervisedSettings):
        return verdict(metrics, recipe.flat())
    checks = (non_finite_loss, non_finite_score, weight_decay_too_high, update_too_large, never_left_warmup, overfitting)
    last = (never_improved, poor_scores, dataloader_bound, unreadable_examples)
    return verdict(metrics, recipe.flat(), (*checks, *last), too_early)


def too_early(run: History) -> list[str]:
    """Why faults of fine-tuning may not show yet; [] if they should."""
    frozen = run.recipe["objective.freeze_steps"] if run.recipe.get("init") is not None else 0
    head_only = f"only the head is trained until step {frozen}" if run.step <= frozen else None
    half = f"scores are judged from step {run.recipe['train.steps'] / 2:g} on, half of train.steps"
    early = None if _judges_scores(run) else f"step {run.step}: {half}"
    return list(filter(None, (run.unlogged(), run.warming_up(), head_only, early)))


def run_verdict(run: str | Path | Run, modality: CustomClass | None = None) -> Verdict:
    """The health of a run, of pre-training or fine-tuning, finished or not, by its logged steps. `modality`: see
    `data2vec.load`.

    Raises UserError if `run` is not a run folder, or is one of another version of this package."""
    if modality is not None:
        trust_class(modality, "modality")
    folder = run.folder if isinstance(run, Run) else Path(run).expanduser()
    return judge_run(Run(folder).metrics, load_run_recipe(folder))


def _judges_scores(run: History) -> bool:
    """Whether half of the steps are made, or the run has ended early."""
    metric, patience = run.recipe["objective.metric"], run.recipe.get("objective.patience")
    scores = [math.nan if value is None else value for value, _ in run.logged(f"valid_{metric}")]
    waited = validations_since_best(metric, scores)
    return run.step >= run.recipe["train.steps"] / 2 or (patience is not None and waited >= patience)


def non_finite_loss(run: History) -> Finding | None:
    """Loss or gradient norm is NaN or infinite."""
    if is_finite(run.last):
        return None
    lr = run.recipe["train.lr"]
    symptom = f"{NON_FINITE} at step {run.step}"
    return Finding(
        "collapsed", symptom, f"train.lr={lr:g} is too high, or an input or label is corrupt", f"train.lr={lr / 10:g}"
    )


def non_finite_score(run: History) -> Finding | None:
    """The last validation score is NaN or infinite."""
    metric = run.recipe["objective.metric"]
    seen = run.logged(f"valid_{metric}")
    if not seen or seen[-1][0] is not None:
        return None
    number = sum(value is None for value, _ in seen)
    lr = run.recipe["train.lr"]
    return Finding(
        "watch",
        f"validation {metric} is NaN or infinite at step {seen[-1][1]}, and in {number} of {len(seen)} validations",
        f"the outputs overflow: train.lr={lr:g} is too high, or data.valid has a corrupt input or label",
        f"train.lr={lr / 10:g}; check the inputs and labels of data.valid",
    )


def overfitting(run: History) -> Finding | None:
    """The validation score has been better before."""
    metric = run.recipe["objective.metric"]
    name = f"valid_{metric}"
    seen = run.evaluations(name)  # NaN is logged as null
    if len(seen) < 3:
        return None
    best = seen[0]
    for candidate in seen:
        best = candidate if is_better(metric, candidate[0], best[0]) else best
    last, gap = seen[-1], abs(seen[-1][0] - best[0])
    counts = run.evaluations("valid_examples")
    # The best of several is lucky: both have an error.
    luck = 2 * math.sqrt(2 * best[0] * (1 - best[0]) / counts[-1][0]) if metric in SHARES and counts else 0.0
    if gap < max(0.1 * abs(best[0]), 0.01, luck) or last[1] < 1.5 * best[1]:
        return None
    return Finding(
        "watch",
        f"validation is getting worse ({metric} {best[0]:.3g} at step {best[1]}, {last[0]:.3g} at step {last[1]})",
        "overfitting to the training data; the best model was saved",
        f"train.steps={best[1]}, more labels, or more augmentation, masking or dropout",
    )


def never_improved(run: History) -> Finding | None:
    """From half of the steps on: no validation was better than the first, which was a poor one."""
    metric = run.recipe["objective.metric"]
    seen = run.evaluations(f"valid_{metric}")
    if len(seen) < 3 or not _judges_scores(run):
        return None
    (first, start), (last, end) = seen[0], seen[-1]
    if _is_good(run, metric, first) or any(is_better(metric, value, first) for value, _ in seen):
        return None
    return Finding(
        "watch",
        f"validation never improved ({metric} {first:.3g} at step {start}, {last:.3g} at step {end}, {len(seen)} validations)",
        "too few steps or labels, a learning rate that does not fit, or labels of other inputs",
        "more train.steps, another train.lr, or more labels; check that the labels belong to their inputs",
    )


def _is_good(run: History, metric: str, score: float) -> bool:
    """Whether a score is more than halfway from guessing to perfect: what was learned by then need not improve."""
    if metric == "mean_squared_error":  # in units of the labels, so that only 0 is known to be good
        return score == 0
    if metric in LOWER_IS_BETTER:
        return score < 0.5
    chances = run.evaluations(f"valid_chance_{metric}")
    chance = chances[0][0] if chances else 0.5 if metric == "auroc" else 0.0
    return score > (1 + chance) / 2


def poor_scores(run: History) -> Finding | None:
    """From half of the steps on: validation scores that say nothing about the input, or much about case."""
    line = next((line for line in reversed(run.lines) if "valid_examples" in line), None)
    if line is None or not _judges_scores(run):
        return None
    scores = {
        name.removeprefix("valid_"): value for name, value in line.items() if name.startswith("valid_") and value is not None
    }
    fault = explain_scores(scores, scores["examples"])
    return Finding("watch", f"at step {line['step']} {fault.symptom}", fault.cause, fault.suggestion) if fault else None


class Fault(NamedTuple):
    """What is wrong with scores."""

    symptom: str
    cause: str
    suggestion: str


def explain_scores(scores: Mapping[str, float], examples: int) -> Fault | None:
    """What is wrong with the scores of a validation, by their evidence (`Scored` of an evaluation): all outputs
    are blank, most errors are of case, or the outputs are no better than chance. None if nothing is."""
    if {"wer", "wer_uncased"} <= scores.keys():
        return _explain_recognition(scores["wer"], scores)
    for metric, better in (("accuracy", "more often"), ("map", "better")):
        chance = scores.get(f"chance_{metric}")
        # Two standard errors of the score of guessing, which a lucky draw of the examples reaches.
        if chance is not None and scores.get(metric, math.nan) <= chance + 2 * math.sqrt(chance * (1 - chance) / examples):
            return Fault(
                f"the classes are not predicted {better} than by chance ({metric} {scores[metric]:.1%}, {chance:.1%} by "
                f"chance, on {examples} examples)",
                "too few steps, labels or validation examples, a learning rate that does not fit, or labels of other inputs",
                "more train.steps, another train.lr, or more labels; check that the labels belong to their inputs",
            )
    return None


def _explain_recognition(wer: float, scores: Mapping[str, float]) -> Fault | None:
    learning = "more train.steps, smaller batches, a lower objective.mask.prob, or a higher train.lr"
    if scores["empty"] > MOST_EMPTY:
        blank = scores["blank"]
        word, rest = "blank", ""
        if blank <= 0.5:
            word, rest = "empty", ", and one that writes nothing either, such as the word boundary, of the others"
        return Fault(
            f"all transcripts are {word} ({scores['empty']:.0%} are empty, the blank is the best label of {blank:.0%} of the "
            f"frames{rest})",
            "too few steps or labels, too much masking, or too low a learning rate; a CTC model learns blanks first",
            learning,
        )
    if wer > 0.1 and scores["wer_uncased"] < wer / 2:
        return Fault(
            f"most errors are a case mismatch (word error rate {wer:.0%}, {scores['wer_uncased']:.0%} without regard to case)",
            "the labels have both cases, and the transcripts are written in another one than was learned",
            "write all transcripts in the same case, or set objective.vocabulary to labels of one case",
        )
    shuffled = scores.get("wer_shuffled")
    if shuffled is not None and wer >= MOST_SHUFFLED * shuffled:
        return Fault(
            f"the transcripts are at chance (word error rate {wer:.0%}, {shuffled:.0%} against the transcripts of other "
            "recordings)",
            "too few steps or labels, too much masking, or too low a learning rate; or transcripts of other recordings",
            f"{learning}; check that the transcripts belong to their recordings",
        )
    return None
