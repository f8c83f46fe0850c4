"""Starting from a trained model instead of new weights: `init=MODEL`."""

from pathlib import Path

import torch
from torch import Tensor

from data2vec.errors import UserError, get_logger
from data2vec.interop.load import load
from data2vec.model import Model
from data2vec.nn.encoder import Encoder
from data2vec.objective import Objective
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict

log = get_logger(__name__)
NON_ARCHITECTURAL = (
    *("dropout", "drop_path", "layerdrop", "init", "_std", "grad_scale", "prenet_layers", "position_padding"),
    *("final_norm", "position_tables", ".mean", ".std", ".frames", ".attend_padding"),
)
"""Endings of encoder settings that do not change what the weights mean."""


@torch.no_grad()
def init_pretraining(where: str, model: Model, objective: Objective, recipe: Recipe) -> str:
    """Load the weights of the model at `where` into the objective; returns lines for the log.

    Teacher and prediction head or decoder are loaded too, if the model has them; otherwise the teacher is a copy of the
    student, and the head is new. Raises UserError when the model's weights do not fit this recipe."""
    load_encoder_weights(where, model, objective.student, recipe)
    student = objective.student.state_dict()
    missing = missing_parts(model, objective)
    for name, tensor in objective.state_dict().items():
        part, found = name.partition(".")[0], model.pretraining.get(name)
        if part == "teacher" and (found is None or found.shape != tensor.shape):
            tensor.copy_(student[name.removeprefix("teacher.ema.")])
        elif part != "student" and (part == "teacher" or part not in missing):
            tensor.copy_(model.pretraining[name])
    lines = [f"init: the student of {where}" + ("" if missing else "; its teacher and head are loaded too")]
    frozen = getattr(recipe.objective, "freeze_steps", 0)
    for part in missing:
        if part == "teacher":
            lines.append("init: the teacher is a copy of the student, where the model has none that fits")
        else:
            alone = f", and trained alone for {frozen} steps (objective.freeze_steps)" if frozen else ""
            lines.append(f"init: the {part} is new, since the model has none that fits{alone}")
    return "\n".join(lines)


def missing_parts(model: Model, objective: Objective) -> list[str]:
    """The parts of an objective, such as "teacher" and "head", that a model has no weights for."""
    parts: dict[str, None] = {}
    for name, tensor in objective.state_dict().items():
        found, part = model.pretraining.get(name), name.partition(".")[0]
        if part != "student" and (found is None or found.shape != tensor.shape):
            parts[part] = None
    return list(parts)


def load_encoder_weights(where: str, model: Model, student: Encoder, recipe: Recipe) -> None:
    """Load the encoder of `model`, which comes from `where`, into `student`. Raises UserError when it does not fit."""
    changed = "; ".join(
        f"{key} is {ours!r} in the recipe and {theirs!r} in the model" for key, theirs, ours in differences(model, recipe)
    )
    weights = _adapted(model.encoder.state_dict(), student.state_dict())
    if _shapes(student.state_dict()) != _shapes(weights):
        raise UserError(f"init: {where} does not fit this recipe: {changed or 'other weights'}")
    if changed:
        log.warning("init: %s was trained with other settings: %s", where, changed)
    student.load_state_dict(weights)


def weight_semantics(recipe: Recipe) -> JsonDict:
    """The settings that determine what the weights of an encoder mean, by dotted key."""
    parts = ((part, getattr(recipe, part).model_dump(mode="json")) for part in ("modality", "encoder"))
    found = {f"{part}.{key}": value for part, values in parts for key, value in values.items()}
    return {key: value for key, value in found.items() if not key.endswith(NON_ARCHITECTURAL)}


def _adapted(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pre-trained weights adapted to fine-tuning: without a final norm, and with a position table per block, if the recipe
    sets these."""
    adapted = {
        name: weight for name, weight in weights.items() if not name.startswith("transformer.final_norm.") or name in expected
    }
    table, tables = adapted.get("position_encoder.table"), expected.get("position_encoder.table")
    if table is not None and tables is not None and tables.ndim == table.ndim + 1:
        adapted["position_encoder.table"] = table.expand(tables.shape)
    return adapted


def tokenizer_of(where: str) -> str | None:
    """The folder of the tokenizer of a model, or None."""
    found = getattr(load(where).modality.data, "tokenizer", None)
    return None if found is None else str(Path(found).resolve())


def differences(model: Model, recipe: Recipe) -> list[tuple[str, object, object]]:
    """(key, the model's, the recipe's) of every encoder setting that changes what its weights mean."""
    theirs, ours = weight_semantics(model.recipe), weight_semantics(recipe)
    keys = [key for key in (theirs | ours) if theirs.get(key) != ours.get(key)]
    return [(key, theirs.get(key), ours.get(key)) for key in keys]


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}
