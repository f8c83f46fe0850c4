"""The validation of a run in a line: the best score and its step, or the held-out loss of pre-training."""

import math
from collections.abc import Sequence

from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings, TaskSettings
from data2vec.settings import JsonMapping
from data2vec.tasks.metrics import NAMES, format_score, is_better, validations_since_best


def describe_scores(line: JsonMapping) -> str:
    """The validation scores in a line of metrics, with the best of `objective.metric` so far; "" if it has none."""
    scores = [f"{name} {format_score(name, value)}" for name in NAMES if (value := line.get(f"valid_{name}")) is not None]
    for name in NAMES:
        if (best := line.get(f"valid_best_{name}")) is not None:
            scores.append(f"best {name} {format_score(name, best)} at step {line['valid_best_step']}")
    return ", ".join(scores)


def describe_validation(metrics: Sequence[JsonMapping], recipe: Recipe) -> str | None:
    """The best score of fine-tuning, its step and what is left of it at the end; of pre-training the held-out loss; None if
    nothing was validated. It says when a run was stopped early."""
    if not isinstance(recipe.objective, SupervisedSettings):
        losses = [(value, line["step"]) for line in metrics if (value := line.get("valid_loss")) is not None]
        if not losses:
            return None
        (last, end), (lowest, step) = losses[-1], min(losses)
        rest = "the lowest" if end == step else f"lowest {lowest:.4f} at step {step}"
        return f"held-out loss {last:.4f} at step {end}, {rest}"
    task: TaskSettings = recipe.task
    metric = task.metric
    validated = [(line[name], line["step"]) for line in metrics if (name := f"valid_{metric}") in line]
    scores = [(value, step) for value, step in validated if value is not None]
    if not scores:
        return f"{len(validated)} validations, in which {metric} was NaN or infinite" if validated else None
    best = scores[0]
    for score in scores:
        best = best if is_better(metric, best[0], score[0]) else score  # of equal scores the later one, whose model is kept
    (last, end), rest = scores[-1], ", the last" * (validated[-1][1] == best[1])
    parts = [f"best validation: {metric} {format_score(metric, best[0])} at step {best[1]}{rest}"]
    parts += [] if rest or end == best[1] else [f"{format_score(metric, last)} at step {end}, the last"]
    bad = len(validated) - len(scores)
    parts += [f"NaN or infinite in {bad} of {len(validated)} validations"] if bad else []
    chance = next((line[key] for line in reversed(metrics) if (key := f"valid_chance_{metric}") in line), None)
    parts += [f"{format_score(metric, chance)} by chance"] if chance is not None else []
    patience, steps = task.patience, recipe.train.steps
    waited = validations_since_best(metric, [math.nan if value is None else value for value, _ in validated])
    if patience is not None and metrics[-1]["step"] < steps and waited >= patience:
        parts.append(f"stopped early at step {metrics[-1]['step']} of {steps} (objective.patience={patience})")
    return "; ".join(parts)
