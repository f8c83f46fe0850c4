"""The recipes of the released models, made small, with random weights."""

from dataclasses import replace
from typing import Any

import torch

from data2vec.model import Model, blank_model
from data2vec.nn.heads import AnyHeadSettings
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import recipe_names

RELEASED = [
    name
    for name in recipe_names()
    if not name.endswith(("tiny", "small", "medium")) and "/v" in name and not name.startswith(("signal/", "sound/v1"))
]
FRONT = [[8, 10, 5], *[[8, 3, 2]] * 4, *[[8, 2, 2]] * 2]
LETTERS = ("<s>", "<pad>", "</s>", "<unk>", "|", "Ä", "B")


def small(name: str, **more: Any) -> Recipe:
    """A shipped recipe with a small model."""
    recipe = load_recipe(name)
    prenet = min(1, recipe.encoder.prenet_layers)
    changes: dict[str, Any] = {
        "encoder.width": 32, "encoder.heads": 4, "encoder.ffn_width": 48, "encoder.layers": 2 + prenet,
        "encoder.prenet_layers": prenet, "objective.target.top_k": 2,
    }  # fmt: skip
    kind = name.partition("/")[0]
    changes |= {
        "speech": {"modality.conv_layers": FRONT},
        "text": {"modality.vocab_size": 60, "modality.max_length": 20},
        "vision": {"modality.image": 4 * recipe.modality.patch} if kind == "vision" else {},
        "sound": {"modality.frames": 64},
    }[kind]
    if recipe.objective.name == "data2vec2":
        changes |= {"objective.decoder.width": 16, "objective.decoder.groups": 8}
    return load_recipe(name, changes | {key.replace("__", "."): value for key, value in more.items()})


def trained(recipe: Recipe, head: AnyHeadSettings | None = None, pretraining: bool = True) -> Model:
    """As after training: every weight is of its own."""
    torch.manual_seed(0)
    model = blank_model(recipe, head)
    objective = recipe.build_objective(model.encoder) if pretraining else model.encoder
    with torch.no_grad():
        for parameter in [*objective.parameters(), *(model.head.parameters() if model.head else ())]:
            parameter.copy_(torch.randn_like(parameter))
    rest = {name: value for name, value in objective.state_dict().items() if not name.startswith("student.")}
    return replace(model, pretraining=rest if pretraining else {})
