"""Configurations of the Data2Vec classes in transformers as recipe sections, and recipes as such configurations."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from data2vec.data.tokenizer import END, PAD, START
from data2vec.errors import UserError
from data2vec.interop.key_mapping import Table, affine
from data2vec.interop.transformers.key_mapping import AUDIO, TEXT, VISION
from data2vec.modalities.speech import SpeechSettings
from data2vec.modalities.text import TextSettings
from data2vec.modalities.vision import VisionSettings
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict, JsonMapping

TransformersConfig = JsonMapping
"""The content of a config.json."""
HINT = "data2vec"
"""The key of config.json with the complete recipe, for this package only. Settings of transformers take precedence."""
OFFSET = 2
"""Rows of the position table before the first position: as in RoBERTa, positions start at pad + 1."""


@dataclass(frozen=True)
class NativeFamily:
    """One of the three models in transformers, with the classes for its heads."""

    name: str
    """Prefix of its class names."""
    type: str
    """`model_type`"""
    modality: str
    prefix: str
    """Prefix of the encoder's weights in classes with a head."""
    table: Table
    heads: Mapping[str, tuple[str, Table]]
    """For each of our heads the end of the class name and the key table."""
    fields: Mapping[str, tuple[str, Any]]
    """Our setting: the setting in transformers and its default there."""
    fixed: JsonMapping
    """Settings of ours that its class fixes."""
    required: TransformersConfig
    """Settings of its class of which only one value is supported here."""
    special_settings: Callable[[TransformersConfig], JsonDict]
    """Our settings that depend on several settings of its class."""
    special_config: Callable[[Recipe], JsonDict]
    """And the way back."""


def config_to_sections(family: NativeFamily, config: TransformersConfig, where: str) -> dict[str, JsonDict]:
    """The `modality` and `encoder` sections of a config.json. Raises UserError for unsupported settings."""
    for key, value in family.required.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: {key}: {config[key]!r} is not supported, only {value!r}")
    settings = {ours: config.get(theirs, default) for ours, (theirs, default) in family.fields.items()}
    for key in settings.keys() & family.fixed.keys():
        if settings[key] != family.fixed[key]:
            theirs = family.fields[key][0]
            raise UserError(f"{where}: {theirs}: {settings[key]!r} is not supported, only {family.fixed[key]!r}")
    try:
        special = family.special_settings(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    sections: dict[str, JsonDict] = {"modality": {}, "encoder": {}}
    for key, value in {**family.fixed, **settings, **special}.items():
        section, _, name = key.partition(".")
        sections[section][name] = value
    return sections


def recipe_to_config(family: NativeFamily, recipe: Recipe) -> JsonDict:
    """The configuration for transformers. Raises UserError for a setting that its class does not support."""
    ours = recipe.flat()
    for key, value in family.fixed.items():
        if ours[key] != value:
            raise unsupported_setting(key, ours[key], f"{family.name} supports {as_yaml(value)} only")
    config = {theirs: ours[key] for key, (theirs, _) in family.fields.items()}
    return {"model_type": family.type, **config, **family.special_config(recipe)}


def unsupported_setting(key: str, value: object, why: str) -> UserError:
    """The error for a setting that cannot be written."""
    return UserError(f"{key}: {as_yaml(value)} cannot be written for transformers: {why}")


def as_yaml(value: object) -> str:
    """A value as it is written in a recipe."""
    return json.dumps(value).strip('"')


def _audio_settings(config: TransformersConfig) -> JsonDict:
    shapes = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
    columns = [config.get(key, default) for key, default in shapes.items()]
    return {"modality.conv_layers": [list(layer) for layer in zip(*columns, strict=True)]}


def _audio_config(recipe: Recipe) -> JsonDict:
    modality = cast(SpeechSettings, recipe.modality)
    columns = [list(column) for column in zip(*modality.conv_layers, strict=True)]
    # transformers creates the mask embedding only if a mask probability is above 0.
    masks = {"mask_time_prob": 0.05 if modality.mask_vector else 0.0, "mask_feature_prob": 0.0}
    others = {"feat_proj_dropout": 0.0, "final_dropout": 0.0, "pad_token_id": 0}
    return {**dict(zip(("conv_dim", "conv_kernel", "conv_stride"), columns, strict=True)), **masks, **others}


def _text_settings(config: TransformersConfig) -> JsonDict:
    return {"modality.max_length": config.get("max_position_embeddings", 512) - OFFSET}


def _text_config(recipe: Recipe) -> JsonDict:
    ids = {"bos_token_id": START, "pad_token_id": PAD, "eos_token_id": END}
    return {"max_position_embeddings": cast(TextSettings, recipe.modality).max_length + OFFSET, "type_vocab_size": 1, **ids}


def _vision_settings(config: TransformersConfig) -> JsonDict:
    per_block, shared = (config.get(f"use_{kind}relative_position_bias", False) for kind in ("", "shared_"))
    if per_block == shared:
        raise ValueError(
            f"use_relative_position_bias: {per_block!r} with use_shared_relative_position_bias: {shared!r} is not supported: "
            "exactly one of them must be true"
        )
    return {
        "modality.image": _side(config.get("image_size", 224)),
        "modality.position_tables": config.get("num_hidden_layers", 12) if per_block else 1,
        "encoder.final_norm": not config.get("use_mean_pooling", True),
        "encoder.layer_scale": config.get("layer_scale_init_value", 0.1) or None,
    }


def _vision_config(recipe: Recipe) -> JsonDict:
    modality = cast(VisionSettings, recipe.modality)
    shared = modality.position_tables == 1
    return {
        "image_size": modality.image,
        **{"use_shared_relative_position_bias": shared, "use_relative_position_bias": not shared},
        **{"use_mean_pooling": not recipe.encoder.final_norm, "layer_scale_init_value": recipe.encoder.layer_scale or 0.0},
    }


def _side(size: Any) -> Any:
    """The side of a square that may be given as height and width."""
    return size[0] if isinstance(size, list) and size[:1] * 2 == size else size


_POST_NORM = {
    **{"encoder.norm": "post", "encoder.final_norm": False, "encoder.extra_tokens": 0, "encoder.key_bias": True},
    # Layer norms of the modality have this epsilon, and in transformers one epsilon applies to all.
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
        required={"feat_extract_activation": "gelu", "add_adapter": False},
        special_settings=_audio_settings,
        special_config=_audio_config,
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
            "modality.positions": "learned",
            "modality.embedding_norm": True,
            "modality.scale_embedding": False,
        },
        required={"pad_token_id": PAD, "is_decoder": False, "add_cross_attention": False},
        special_settings=_text_settings,
        special_config=_text_config,
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
            "modality.stem": "patch",
        },
        required={"num_channels": 3, "use_absolute_position_embeddings": False},
        special_settings=_vision_settings,
        special_config=_vision_config,
    ),
)
