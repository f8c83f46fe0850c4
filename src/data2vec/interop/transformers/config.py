"""The configurations of transformers' Data2Vec models, as sections of our recipes, and back."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data2vec.data.tokenizer import END, PAD, START
from data2vec.errors import UserError
from data2vec.interop.key_mapping import Table, affine
from data2vec.interop.transformers.key_mapping import AUDIO, TEXT, VISION
from data2vec.recipe.recipe import Recipe

Config = Mapping[str, Any]
HINT = "data2vec"
"""The key of config.json under which all settings stand, for us alone. Where their own settings differ, those hold."""
OFFSET = 2
"""Rows of the position table before the first position: RoBERTa counts from pad + 1."""


@dataclass(frozen=True)
class NativeFamily:
    """One of their three models, which differ only in what stands on top."""

    name: str
    """What the names of its classes begin with."""
    type: str
    """`model_type`"""
    modality: str
    prefix: str
    """Before the names of the encoder's weights where there is a head."""
    table: Table
    heads: Mapping[str, tuple[str, Table]]
    """For each of our heads how the class name ends, and its weights."""
    fields: Mapping[str, tuple[str, Any]]
    """For each of our settings theirs, and what transformers takes where config.json does not say."""
    fixed: Mapping[str, Any]
    """Our settings that it cannot have otherwise."""
    needed: Config
    """Their settings that we cannot have otherwise."""
    special: Callable[[Config], dict[str, Any]]
    """Our settings that are made of several of theirs."""
    back: Callable[[Any], dict[str, Any]]
    """And theirs of them."""


def config_to_sections(family: NativeFamily, config: Config, where: str) -> dict[str, dict[str, Any]]:
    """The `modality` and `encoder` sections. Raises UserError for what we do not have."""
    for key, value in family.needed.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: {key}: {config[key]!r} is not supported, only {value!r}")
    found = {ours: config.get(theirs, default) for ours, (theirs, default) in family.fields.items()}
    for key in found.keys() & family.fixed.keys():
        if found[key] != family.fixed[key]:
            raise UserError(f"{where}: {family.fields[key][0]}: {found[key]!r} is not supported, only {family.fixed[key]!r}")
    try:
        special = family.special(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    parts: dict[str, dict[str, Any]] = {"modality": {}, "encoder": {}}
    for key, value in {**family.fixed, **found, **special}.items():
        section, _, name = key.partition(".")
        parts[section][name] = value
    return parts


def recipe_to_config(family: NativeFamily, recipe: Recipe) -> dict[str, Any]:
    """Their configuration. Raises UserError for a setting that it has no place for."""
    ours = recipe.flat()
    for key, value in family.fixed.items():
        if ours[key] != value:
            raise unsupported_setting(key, ours[key], f"{family.name} has {as_yaml(value)} only")
    config = {theirs: ours[key] for key, (theirs, _) in family.fields.items()}
    return {"model_type": family.type, **config, **family.back(recipe)}


def unsupported_setting(key: str, value: Any, why: str) -> UserError:
    """The refusal of a setting."""
    return UserError(f"{key}: {as_yaml(value)} cannot be written for transformers: {why}")


def as_yaml(value: Any) -> str:
    """As it is written in a recipe."""
    return json.dumps(value).strip('"')


def _audio(config: Config) -> dict[str, Any]:
    shapes = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    columns = [config.get(key, default) for key, default in shapes.items()]
    return {"modality.conv_layers": [list(layer) for layer in zip(*columns, strict=True)]}


def _audio_back(recipe: Any) -> dict[str, Any]:
    columns = [list(column) for column in zip(*recipe.modality.conv_layers, strict=True)]
    # The mask vector is there when, and only when, fine-tuning is to put it somewhere.
    masks = {"mask_time_prob": 0.05 if recipe.modality.mask_vector else 0.0, "mask_feature_prob": 0.0}
    others = {"feat_proj_dropout": 0.0, "final_dropout": 0.0, "pad_token_id": 0}
    return {**dict(zip(("conv_dim", "conv_kernel", "conv_stride"), columns, strict=True)), **masks, **others}


def _text(config: Config) -> dict[str, Any]:
    return {"modality.max_length": config.get("max_position_embeddings", 512) - OFFSET}


def _text_back(recipe: Any) -> dict[str, Any]:
    ids = {"bos_token_id": START, "pad_token_id": PAD, "eos_token_id": END}
    return {"max_position_embeddings": recipe.modality.max_length + OFFSET, "type_vocab_size": 1, **ids}


def _vision(config: Config) -> dict[str, Any]:
    own, shared = (config.get(f"use_{kind}relative_position_bias", False) for kind in ("", "shared_"))
    if own == shared:
        raise ValueError(
            f"use_relative_position_bias: {own!r} with use_shared_relative_position_bias: {shared!r} is not supported: "
            "one of them, and not both"
        )
    return {
        "modality.image": _side(config.get("image_size", 224)),
        "modality.position_tables": config.get("num_hidden_layers", 12) if own else 1,
        "encoder.final_norm": not config.get("use_mean_pooling", True),
        "encoder.layer_scale": config.get("layer_scale_init_value", 0.1) or None,
    }


def _vision_back(recipe: Any) -> dict[str, Any]:
    shared = recipe.modality.position_tables == 1
    return {
        "image_size": recipe.modality.image,
        **{"use_shared_relative_position_bias": shared, "use_relative_position_bias": not shared},
        **{"use_mean_pooling": not recipe.encoder.final_norm, "layer_scale_init_value": recipe.encoder.layer_scale or 0.0},
    }


def _side(size: Any) -> Any:
    """Of a square that may be told by both of its sides."""
    return size[0] if isinstance(size, list) and size[:1] * 2 == size else size


_POST_NORM = {
    **{"encoder.norm": "post", "encoder.final_norm": False, "encoder.extra_tokens": 0, "encoder.key_bias": True},
    # The norms of a modality's own have this epsilon, and those of transformers' models are all alike.
    **{"encoder.layer_scale": None, "encoder.norm_eps": 1e-5},
}
_SIZES = {
    "encoder.width": ("hidden_size", 768),
    "encoder.layers": ("num_hidden_layers", 12),
    "encoder.heads": ("num_attention_heads", 12),
    "encoder.ffn_width": ("intermediate_size", 3072),
    "encoder.activation": ("hidden_act", "gelu"),
}
FAMILIES = (
    NativeFamily(
        name="Data2VecAudio",
        type="data2vec-audio",
        modality="speech",
        prefix="data2vec_audio.",
        table=AUDIO,
        heads={
            "ctc": ("ForCTC", affine("out", "lm_head")),
            "classifier": ("ForSequenceClassification", affine("hidden", "projector") | affine("out", "classifier")),
        },
        fields={
            **_SIZES,
            "encoder.norm_eps": ("layer_norm_eps", 1e-5),
            "encoder.dropout": ("hidden_dropout", 0.1),
            "encoder.attention_dropout": ("attention_dropout", 0.1),
            "encoder.activation_dropout": ("activation_dropout", 0.1),
            "encoder.layerdrop": ("layerdrop", 0.1),
            "modality.conv_bias": ("conv_bias", False),
            "modality.position_depth": ("num_conv_pos_embeddings", 5),
            "modality.position_kernel": ("conv_pos_kernel_size", 19),
            "modality.position_groups": ("num_conv_pos_embedding_groups", 16),
        },
        fixed={**_POST_NORM, "encoder.input_norm": True, "modality.conv_norm": "layer", "modality.alibi": False},
        needed={"feat_extract_activation": "gelu", "add_adapter": False},
        special=_audio,
        back=_audio_back,
    ),
    NativeFamily(
        name="Data2VecText",
        type="data2vec-text",
        modality="text",
        prefix="data2vec_text.",
        table=TEXT,
        heads={
            "classifier": (
                "ForSequenceClassification",
                affine("hidden", "classifier.dense") | affine("out", "classifier.out_proj"),
            )
        },
        fields={
            **_SIZES,
            "encoder.norm_eps": ("layer_norm_eps", 1e-12),
            "encoder.dropout": ("hidden_dropout_prob", 0.1),
            "encoder.attention_dropout": ("attention_probs_dropout_prob", 0.1),
            "modality.vocab_size": ("vocab_size", 30522),
        },
        fixed={
            **_POST_NORM,
            "encoder.input_norm": False,
            "modality.embedding_norm": True,
            "modality.scale_embedding": False,
        },
        needed={"pad_token_id": PAD, "is_decoder": False, "add_cross_attention": False},
        special=_text,
        back=_text_back,
    ),
    NativeFamily(
        name="Data2VecVision",
        type="data2vec-vision",
        modality="vision",
        prefix="data2vec_vision.",
        table=VISION,
        heads={
            "classifier": (
                "ForImageClassification",
                affine("norm", "data2vec_vision.pooler.layernorm") | affine("out", "classifier"),
            )
        },
        fields={
            **_SIZES,
            "encoder.norm_eps": ("layer_norm_eps", 1e-12),
            "encoder.dropout": ("hidden_dropout_prob", 0.0),
            "encoder.attention_dropout": ("attention_probs_dropout_prob", 0.0),
            "encoder.drop_path": ("drop_path_rate", 0.1),
            "modality.patch": ("patch_size", 16),
            "modality.mask_vector": ("use_mask_token", False),
        },
        fixed={
            "encoder.norm": "pre",
            "encoder.input_norm": False,
            "encoder.extra_tokens": 1,
            "encoder.key_bias": False,
            "modality.positions": "relative",
        },
        needed={"num_channels": 3, "use_absolute_position_embeddings": False},
        special=_vision,
        back=_vision_back,
    ),
)
