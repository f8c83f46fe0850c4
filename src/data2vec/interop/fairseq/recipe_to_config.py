"""The official configuration of a recipe: the way back from `fairseq_config`."""

from collections.abc import Iterator
from typing import Any

from data2vec.errors import UserError
from data2vec.interop.fairseq.config_to_recipe import speech_recipe, text_recipe, v2_recipe, vision_recipe
from data2vec.interop.fairseq.models import BEIT, KINDS, MAKERS, Config, Family, task_config
from data2vec.recipe.loading import validate_recipe
from data2vec.recipe.recipe import Recipe

SECTIONS = ("modality", "encoder", "objective")


def family_of(recipe: Recipe) -> Family:
    """Raises UserError for a modality of one's own."""
    if (name := recipe.modality.name) not in KINDS:  # type: ignore[attr-defined]
        raise UserError(f"modality.name: {name!r} has no official form; {', '.join(KINDS)} have one")
    return Family(name, 2 if recipe.objective.name == "data2vec2" else 1)


LOST = {
    "modality.patch_init", "modality.position_padding", "modality.mean", "modality.std", "encoder.init",
    "encoder.extra_token_std", "objective.head_init", "objective.decoder.head_init", "objective.mask.aspect",
    "objective.mask.min_spans", "objective.teacher.context", "objective.teacher.anneal_steps", "objective.cls_loss",
    "objective.cls_reduction",
}  # fmt: skip
"""Settings that the official configurations lack or fix, and that change nothing in what the weights mean."""
TOLD_BY_WEIGHTS = {"modality.mask_vector", "modality.position_tables", "encoder.final_norm"}
"""Of a fine-tuned BEiT: which weights there are says it, not the configuration."""


def sections(family: Family, config: Config, vocab_size: int, task: Config) -> dict[str, Any]:
    """The recipe's sections of an official configuration. Raises ValueError for what is not supported."""
    if family.version == 2:
        return v2_recipe(config, vocab_size)
    if family.modality == "text":
        return text_recipe(config, vocab_size, task)
    return (speech_recipe if family.modality == "speech" else vision_recipe)(config)


def official_config(recipe: Recipe, fine_tuned: bool = False) -> tuple[Config, Config, list[str]]:
    """The configurations of the model and of its task, and in words what of the recipe has no place in them.

    Raises UserError for a setting with which the official model would be another one, by its name."""
    family = family_of(recipe)
    model, task = MAKERS[family](recipe), task_config(recipe)
    back = sections(family, model, getattr(recipe.modality, "vocab_size", 0), task)
    read = validate_recipe(back | {"data": {}}, str(family))
    lost, wrong = [], []
    for key, ours, theirs in differences(recipe, read):
        if fine_tuned and family == BEIT and key in TOLD_BY_WEIGHTS:
            continue
        if key in LOST or key.startswith("objective.health."):
            if recipe.objective.model_dump().get("cls_loss") or not key.startswith("objective.cls_"):
                lost.append(f"{key}: {ours!r} (there it is {theirs!r})")
        else:
            wrong.append(f"{key}: {ours!r} has no counterpart in the official {family}, where it is {theirs!r}")
    if wrong:
        raise UserError("\n".join(wrong))
    return model, task, lost


def differences(ours: Recipe, theirs: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Settings of what a model is that differ. Of the teacher, a copy and the student's own are the same."""
    for section in SECTIONS:
        here, there = getattr(ours, section).flat(), getattr(theirs, section).flat()
        for key in here | there:
            a, b = here.get(key), there.get(key)
            if a != b and [a, b] not in (["copied", "shared"], ["shared", "copied"]):
                yield f"{section}.{key}", a, b
