"""The recipe of the model in an official file: what its tensors and its configuration tell, and the released recipe."""

import logging
from typing import Any

import torch

from data2vec import objective as objectives
from data2vec.data.tokenizer import has_tokenizer
from data2vec.errors import UserError
from data2vec.interop.fairseq.file import Content
from data2vec.interop.fairseq.infer_sizes import merged
from data2vec.interop.fairseq.models import BEIT, Config, Family
from data2vec.interop.fairseq.recipe_to_config import official_config, sections
from data2vec.nn import encoder as encoders
from data2vec.objective import Objective
from data2vec.recipe.loading import load_recipe, recipe_names, validate_recipe
from data2vec.recipe.recipe import Recipe

log = logging.getLogger(__name__)

OF_THE_ENCODER = {
    "_name", "supported_modality", "type", "layer_type", "layer_norm_first", "normalize_before", "activation_fn", "norm_eps",
    "norm_affine", "layer_norm_eps", "layer_scale_init_value", "use_shared_rel_pos_bias", "use_abs_pos_emb", "img_size",
    "input_size", "learned_pos", "no_token_positional_embeddings", "no_scale_embedding", "fixed_positions", "learned_alibi",
    "use_alibi_encoder", "conv_pos_pre_ln", "in_chans",
}  # fmt: skip
"""What of a configuration says how an encoder computes, beside what its tensors say."""


Made = tuple[Recipe, Config, Objective | None]


def recipe_of(content: Content, known: Config) -> Made:
    """The recipe of the model in a file, the official configuration it comes of, and where there is more in it than an
    encoder, the objective, without any numbers. `known`: what the tensors tell of the configuration.

    An objective that is not supported must not keep anyone from the weights: then it is that of the released recipe. Raises
    UserError when the encoder is not supported."""
    try:
        return _made(content, content.model, content.task, known)
    except (UserError, ValueError, KeyError, TypeError) as problem:
        try:
            found = _made(content, _of_the_encoder(content.model), {}, known)
        except (UserError, ValueError) as error:
            raise UserError(f"{content.path}: {error}") from None
        if not content.head:  # nobody asks a fine-tuned model for it
            log.warning("%s: its objective cannot be had, and is that of the released recipe: %s", content.path, problem)
        return found


def _made(content: Content, told: Config, task: Config, known: Config) -> Made:
    family, released = content.family, _released(content.family, known)
    base, usual, _ = official_config(released)
    config = merged(merged(base, told), known)
    _agree(config, told, content)
    vocab = next((len(value) for name, value in content.student.items() if name.endswith("embed_tokens.weight")), 0)
    found = sections(family, config, vocab, usual | task)
    found = merged(found, _by_weights(content, config))
    data: Config = {}
    if family.modality == "text" and has_tokenizer(content.path.parent):
        data["tokenizer"] = str(content.path.parent.resolve())
    recipe = validate_recipe(found | {"data": data}, "its recipe")
    if not content.teacher and not content.predicts:
        return recipe, config, None
    with torch.device("meta"):
        objective = objectives.build(encoders.build(recipe.build_modality(), recipe.encoder), recipe.objective)
    return recipe, config, objective


def _released(family: Family, known: Config) -> Recipe:
    """The shipped recipe of the released model that is nearest in size."""
    width = known.get("encoder_embed_dim") or known.get("embed_dim") or known["transformer"]["encoder"]["embed_dim"]
    sizes = ["huge"] * (width >= 1280) + ["large"] * (width >= 1024) + ["base"]
    names = recipe_names()
    return load_recipe(next(name for size in sizes if (name := f"{family.modality}/v{family.version}-{size}") in names))


def _agree(config: Config, told: Config, content: Content) -> None:
    """Let what nothing tells fit the tensors: as many averaged layers as there are, and what the teacher's names say."""
    blocks = config.get("encoder_layers") or config.get("depth") or config["transformer"]["encoder"]["layers"]
    if content.family == BEIT:
        if "target_layers" not in told:
            config["target_layers"] = list(range(max(0, blocks - len(config["target_layers"])), blocks))
    elif "average_top_k_layers" not in told:
        config["average_top_k_layers"] = min(config["average_top_k_layers"], blocks)
    teacher = content.teacher
    if teacher and content.family.version == 2:
        config["ema_encoder_only"] = content.averaged == "blocks."
        local = f"modality_encoders.{content.family.kind}.local_encoder."
        config["modalities"][content.family.kind.lower()]["ema_local_encoder"] = any(n.startswith(local) for n in teacher)
    if teacher and content.family == Family("speech", 1):
        whole = not content.averaged
        config |= {"ema_transformer_only": not whole, "ema_layers_only": not whole and config["ema_layers_only"]}


def _by_weights(content: Content, config: Config) -> dict[str, Any]:
    """What no official configuration says, but the tensors do."""
    student = content.student
    if content.family != BEIT:
        return {}
    each = "rel_pos_bias.relative_position_bias_table" not in student
    modality: Config = {"position_tables": config["depth"] if each else 1}
    encoder: Config = {"key_bias": "blocks.0.attn.qkv.bias" in student}
    if content.head:
        modality |= {"mask_vector": "mask_token" in student, "mean": [0.5] * 3, "std": [0.5] * 3}
        encoder |= {"final_norm": "norm.weight" in student}
    return {"modality": modality, "encoder": encoder}


def _of_the_encoder(told: Config) -> Config:
    kept = {key: _of_the_encoder(value) if isinstance(value, dict) else value for key, value in told.items()}
    return {key: value for key, value in kept.items() if key in OF_THE_ENCODER or (isinstance(value, dict) and value)}
