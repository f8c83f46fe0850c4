"""Configurations of the official models as recipe sections, and recipes as official configurations.

For each model there is a pair of functions: `…_recipe` reads its configuration, `…_config` writes it. `recipe_sections` and
`fairseq_config` choose by model. `fairseq_config` reads back what it writes: a setting that would be lost is refused or listed.
"""

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from data2vec.errors import UserError
from data2vec.interop.fairseq.key_mapping import BEIT, EAT, MODALITY_KEYS, SPEECH_1, TEXT_1, FairseqConfig, Family
from data2vec.modalities.sound import SoundSettings
from data2vec.modalities.speech import SpeechSettings
from data2vec.modalities.text import TextSettings
from data2vec.modalities.vision import VisionSettings
from data2vec.nn.conv_decoder import ConvDecoderSettings
from data2vec.objective.data2vec2 import Data2Vec2Settings
from data2vec.recipe.loading import validate_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict

Sections = dict[str, JsonDict]
"""The `modality`, `encoder`, `objective` and `health` sections of a recipe, not validated yet."""

LAYER_NORMS = {
    "batch_norm_target_layer": "batch",
    "instance_norm_target_layer": "instance",
    "layer_norm_target_layer": "layer",
}
"""fairseq's switches for normalising each layer of the targets, in the order in which version 2 and text apply them."""
NORMS = {"layer_norm_targets": "layer", "instance_norm_targets": "instance"}
"""The same for the averaged targets."""
AUDIOSET = (-4.2677393, 4.5689974)
"""Mean and standard deviation of log-mel values that the released EAT was trained with; they are not in its files."""
EAT_COLUMNS = 8
"""Patches in frequency that the code of EAT has."""
SOUND_SETTINGS = ("fbank", "mean", "std", "num_std", "frames", "position_scale", "attend_padding")
"""Settings of sound that official configurations have no place for, and that are stored beside them."""
MAX_CONV_LAYERS = 100
DATA_FOLDER = "."
"""The folder with dictionaries, where official tasks look for them: the current one, unless it is overridden."""
NO_ALIBI = {
    "local_grad_mult": 1.0,
    "use_alibi_encoder": False,
    "learned_alibi_scale": False,
    "learned_alibi_scale_per_head": False,
}
MASKED_LM = {
    "prob": "mask_prob",
    "length": "mask_multiple_length",
    "keep": "leave_unmasked_prob",
    "random": "random_token_prob",
}
"""Our mask settings for text and fairseq's, which belong to its task rather than to its model."""


def parse_conv_layers(text: str) -> list[list[int]]:
    """Parse fairseq's "[(512,10,5)] + [(512,3,2)] * 4" without evaluating it as code.

    Raises ValueError for other expressions, and for repetitions of more than `MAX_CONV_LAYERS` layers."""

    def value_of(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            left, right = value_of(node.left), value_of(node.right)
            if isinstance(node.op, ast.Add):
                return left + right
            layers, times = (left, right) if isinstance(left, list) else (right, left)
            if not isinstance(layers, list) or not isinstance(times, int) or len(layers) * times > MAX_CONV_LAYERS:
                raise ValueError(f"conv layers {text[:100]!r}: expected [LAYERS] * NUMBER of at most {MAX_CONV_LAYERS} layers")
            return layers * times
        return ast.literal_eval(node)

    return [list(layer) for layer in value_of(ast.parse(text.strip(), mode="eval").body)]


def _activation(config: FairseqConfig) -> str:
    if config["activation_fn"] not in ("gelu", "relu"):
        raise ValueError(f"activation_fn {config['activation_fn']!r} is not supported, only gelu or relu")
    return config["activation_fn"]


def _teacher(config: FairseqConfig, local_encoder: str, position_encoder: str) -> JsonDict:
    return {
        "decay": config["ema_decay"],
        "end_decay": config["ema_end_decay"],
        "anneal_steps": config["ema_anneal_end_step"],
        "local_encoder": local_encoder,
        "position_encoder": position_encoder,
    }


def _norm_order(config: FairseqConfig, flags: Mapping[str, str]) -> list[str]:
    return [norm for flag, norm in flags.items() if config.get(flag)]


def mlp_ratio(width: int, hidden_width: int) -> float:
    """The `mlp_ratio` from which the official code computes exactly this inner width."""
    exact = hidden_width / width
    return exact if int(width * exact) == hidden_width else math.nextafter(exact, math.inf)


def _norm_flags(flags: Mapping[str, str], norms: tuple[str, ...]) -> FairseqConfig:
    return {flag: norm in norms for flag, norm in flags.items()}


def _common_config(recipe: Recipe) -> FairseqConfig:
    """Settings shared by all models in fairseq."""
    o = recipe.objective
    return {
        "loss_beta": o.beta,
        "average_top_k_layers": o.target.top_k,
        **_norm_flags(LAYER_NORMS, o.target.per_layer_norms),
        **_norm_flags(NORMS, o.target.final_norms),
        "ema_decay": o.teacher.decay,
        "ema_end_decay": o.teacher.end_decay,
        "ema_anneal_end_step": o.teacher.anneal_steps,
    }


def _loss_scale(recipe: Recipe) -> float | None:
    scale = recipe.objective.loss_scale
    return 1 / recipe.encoder.width if scale == "1/width" else None if isinstance(scale, str) else scale


def speech_recipe(config: FairseqConfig) -> Sections:
    """The recipe sections of a `data2vec_audio` configuration. Raises ValueError for unsupported settings."""
    if config["layer_type"] != "transformer":
        raise ValueError(f"layer_type {config['layer_type']!r} is not supported, only transformer")
    if config["pos_conv_depth"] < 2:
        raise ValueError("pos_conv_depth 1 is not supported, only 2 or more (the official teacher does not support it either)")
    average_all = not (config["ema_transformer_only"] or config["ema_layers_only"])
    # Without instance or batch norm the released code has time as the first axis, so further norms run over the batch.
    ordered = config["instance_norm_target_layer"] or config["batch_norm_target_layer"]
    over = "" if ordered else "-over-batch"
    per_layer = {
        "batch_norm_target_layer": "batch",
        "instance_norm_target_layer": "instance",
        "group_norm_target_layer": f"group{over}",
        "layer_norm_target_layer": "layer",
    }
    pre = config["layer_norm_first"]
    return {
        "modality": {
            "name": "speech",
            "conv_layers": parse_conv_layers(config["conv_feature_layers"]),
            "conv_norm": "layer" if config["extractor_mode"] == "layer_norm" else "group",
            "conv_bias": config["conv_bias"],
            "conv_grad_scale": config["feature_grad_mult"],
            "position_depth": config["pos_conv_depth"],
            "position_kernel": max(3, config["conv_pos"] // config["pos_conv_depth"]),
            "position_groups": config["conv_pos_groups"],
        },
        "encoder": {
            "width": config["encoder_embed_dim"],
            "layers": config["encoder_layers"],
            "heads": config["encoder_attention_heads"],
            "ffn_width": config["encoder_ffn_embed_dim"],
            "norm": "pre" if pre else "post",
            "input_norm": not pre,
            "final_norm": pre,
            "activation": _activation(config),
            "dropout": config["dropout"],
            "attention_dropout": config["attention_dropout"],
            "activation_dropout": config["activation_dropout"],
            "layerdrop": config["encoder_layerdrop"],
        },
        "objective": {
            "name": "data2vec",
            "mask": {
                "kind": "span",
                "prob": config["mask_prob"],
                "length": config["mask_length"],
                "equal": config["require_same_masks"],
            },
            "teacher": _teacher(
                config,
                "averaged" if average_all else "shared",
                "copied" if config["ema_layers_only"] else "averaged",
            ),
            "target": {
                # When the full model is averaged, the released code ignores average_top_k_layers.
                "top_k": config["encoder_layers"] if average_all else config["average_top_k_layers"],
                "per_layer_norms": _norm_order(config, per_layer),
                "final_norms": _norm_order(config, {"layer_norm_targets": "layer", "instance_norm_targets": f"instance{over}"}),
            },
            "beta": config["loss_beta"],
            "loss_scale": "1/sqrt(width)" if config["loss_scale"] is None else config["loss_scale"],
        },
        "health": {"min_target_std": config["min_target_var"], "min_prediction_std": config["min_pred_var"]},
    }


def speech_config(recipe: Recipe) -> FairseqConfig:
    """The official configuration of a version 1 speech model."""
    m = cast(SpeechSettings, recipe.modality)
    e, o = recipe.encoder, recipe.objective
    mask, average_all = o.mask.model_dump(), o.teacher.local_encoder == "averaged"
    groups = [norm for norm in o.target.per_layer_norms if norm.startswith("group")]
    return _common_config(recipe) | {
        "_name": "data2vec_audio",
        "layer_type": "transformer",
        "extractor_mode": "layer_norm" if m.conv_norm == "layer" else "default",
        "conv_feature_layers": str(list(m.conv_layers)),
        "conv_bias": m.conv_bias,
        "feature_grad_mult": m.conv_grad_scale,
        "conv_pos": m.position_kernel * m.position_depth,
        "conv_pos_groups": m.position_groups,
        "pos_conv_depth": m.position_depth,
        "encoder_embed_dim": e.width,
        "encoder_layers": e.layers,
        "encoder_attention_heads": e.heads,
        "encoder_ffn_embed_dim": e.ffn_width,
        "layer_norm_first": e.norm == "pre",
        "activation_fn": e.activation,
        "dropout": e.dropout,
        "attention_dropout": e.attention_dropout,
        "activation_dropout": e.activation_dropout,
        "encoder_layerdrop": e.layerdrop,
        "dropout_input": 0.0,
        "dropout_features": 0.0,
        "mask_prob": mask["prob"],
        "mask_length": mask["length"],
        "require_same_masks": mask.get("equal", True),
        "loss_scale": _loss_scale(recipe),
        "group_norm_target_layer": bool(groups),
        "instance_norm_targets": any(norm.startswith("instance") for norm in o.target.final_norms),
        "ema_transformer_only": not average_all,
        "ema_layers_only": not average_all and o.teacher.position_encoder != "averaged",
        "min_target_var": recipe.health.min_target_std,
        "min_pred_var": recipe.health.min_prediction_std,
    }


def text_recipe(config: FairseqConfig, vocab_size: int, task: FairseqConfig | None = None) -> Sections:
    """The recipe sections of a `data2vec_text` configuration, with the mask settings of its `task` if known.

    Raises ValueError for unsupported settings."""
    transformer = config["transformer"]
    encoder = transformer["encoder"]
    if not encoder["learned_pos"] or transformer["no_token_positional_embeddings"]:
        raise ValueError("only learned positions are supported for text")
    copied = "copied" if config["ema_transformer_layers_only"] else "averaged"
    return {
        "modality": {
            "name": "text",
            "vocab_size": vocab_size,
            "max_length": transformer["max_source_positions"],
            "embedding_norm": transformer["layernorm_embedding"],
            "scale_embedding": not transformer["no_scale_embedding"],
        },
        "encoder": {
            "width": encoder["embed_dim"],
            "layers": encoder["layers"],
            "heads": encoder["attention_heads"],
            "ffn_width": encoder["ffn_embed_dim"],
            "norm": "pre" if encoder["normalize_before"] else "post",
            "input_norm": False,
            "final_norm": encoder["normalize_before"],
            "activation": _activation(transformer),
            "dropout": transformer["dropout"],
            "attention_dropout": transformer["attention_dropout"],
            "activation_dropout": transformer["activation_dropout"],
            "layerdrop": encoder["layerdrop"],
        },
        "objective": {
            "name": "data2vec",
            "mask": {"kind": "token"} | {ours: task[key] for ours, key in MASKED_LM.items() if task and key in task},
            "teacher": _teacher(config, copied, copied),
            "target": {
                "top_k": config["average_top_k_layers"],
                "per_layer_norms": _norm_order(config, LAYER_NORMS),
                "final_norms": _norm_order(config, NORMS),
            },
            "beta": config["loss_beta"],
            "loss_scale": "1/sqrt(width)" if config["loss_scale"] <= 0 else config["loss_scale"],
            "head_layers": config["head_layers"],
            "head_init": "bert",
        },
    }


def text_config(recipe: Recipe) -> FairseqConfig:
    """The official configuration of a version 1 text model."""
    m = cast(TextSettings, recipe.modality)
    e, o = recipe.encoder, recipe.objective
    return _common_config(recipe) | {
        "_name": "data2vec_text",
        "max_positions": m.max_length,
        "head_layers": o.head_layers,
        "loss_scale": -1 if o.loss_scale == "1/sqrt(width)" else _loss_scale(recipe),
        "ema_transformer_layers_only": o.teacher.local_encoder != "averaged",
        "transformer": {
            "activation_fn": e.activation,
            "dropout": e.dropout,
            "attention_dropout": e.attention_dropout,
            "activation_dropout": e.activation_dropout,
            "max_source_positions": m.max_length,
            "layernorm_embedding": m.embedding_norm,
            "no_scale_embedding": not m.scale_embedding,
            "no_token_positional_embeddings": False,
            "encoder": {
                "embed_dim": e.width,
                "ffn_embed_dim": e.ffn_width,
                "layers": e.layers,
                "attention_heads": e.heads,
                "normalize_before": e.norm == "pre",
                "learned_pos": True,
                "layerdrop": e.layerdrop,
            },
        },
    }


def vision_recipe(config: FairseqConfig) -> Sections:
    """The recipe sections of a data2vec_vision configuration. Raises ValueError for unsupported settings."""
    layers = list(config["target_layers"])
    if layers != list(range(config["depth"] - len(layers), config["depth"])):
        raise ValueError(f"target_layers {layers} is not supported, only the last layers of {config['depth']}")
    if not config["use_shared_rel_pos_bias"] or config["use_abs_pos_emb"]:
        raise ValueError("only the shared relative position bias is supported for the vision model of version 1")
    if config.get("var_w0") or config.get("var_w1"):
        raise ValueError("the variance loss (var_w0, var_w1) is not supported; no released recipe uses it")
    width, scale = config["embed_dim"], config.get("loss_scale", -1)
    per_layer = {
        "target_batch_norm": "batch",
        "target_instance_norm": "instance",
        "target_layer_norm_last": "layer",
    }
    return {
        "modality": {"name": "vision", "patch": config["patch_size"], "image": config["img_size"]},
        "encoder": {
            "width": width,
            "layers": config["depth"],
            "heads": config["num_heads"],
            "ffn_width": int(width * config["mlp_ratio"]),
            "norm": "pre",
            "norm_eps": config["layer_norm_eps"],
            "input_norm": False,
            "final_norm": True,
            "extra_tokens": 1,
            "key_bias": False,
            "layer_scale": config["layer_scale_init_value"] or None,
            "dropout": 0.0,
            "attention_dropout": config["attn_drop_rate"],
            "drop_path": config["drop_path"],
            "init": "beit",
        },
        "objective": {
            "name": "data2vec",
            "mask": {
                "kind": "block",
                "patches": config["num_mask_patches"],
                "min_patches": config["min_mask_patches_per_block"],
                "max_patches": config["max_mask_patches_per_block"],
            },
            "teacher": {
                "decay": config["ema_decay"],
                "end_decay": config["ema_decay"],
                "anneal_steps": 0,
                "local_encoder": "averaged",
                "position_encoder": "averaged",
            },
            "target": {
                "source": "block" if config["layer_results"] == "end" else "ffn",
                "top_k": len(layers),
                "per_layer_norms": _norm_order(config, per_layer),
                "final_norms": _norm_order(
                    config, {"post_target_instance_norm": "instance", "post_target_layer_norm": "layer"}
                ),
            },
            "beta": 0.0 if config["l2_loss"] else config["l1_beta"],
            "loss_scale": "1/width" if scale == -1 else scale / width,
            "head_init": "beit",
        },
    }


def vision_config(recipe: Recipe) -> FairseqConfig:
    """The official configuration of a version 1 vision model."""
    m = cast(VisionSettings, recipe.modality)
    e, o = recipe.encoder, recipe.objective
    mask, norms = o.mask.model_dump(), o.target.per_layer_norms
    return {
        "model": "beit",
        "embed_dim": e.width,
        "depth": e.layers,
        "num_heads": e.heads,
        "mlp_ratio": mlp_ratio(e.width, e.ffn_width),
        "img_size": m.image,
        "input_size": m.image,
        "patch_size": m.patch,
        "layer_norm_eps": e.norm_eps,
        "layer_scale_init_value": e.layer_scale or 0,
        "use_shared_rel_pos_bias": True,
        "use_abs_pos_emb": False,
        "drop_path": e.drop_path,
        "attn_drop_rate": e.attention_dropout,
        "num_mask_patches": mask.get("patches", 120),
        "min_mask_patches_per_block": mask.get("min_patches", 16),
        "max_mask_patches_per_block": mask.get("max_patches"),
        "ema_decay": o.teacher.decay,
        "target_layers": list(range(e.layers - o.target.top_k, e.layers)),
        "l1_beta": o.beta,
        "l2_loss": o.beta == 0,
        "layer_results": "end" if o.target.source == "block" else "fc",
        "loss_scale": {"1/width": -1, "1/sqrt(width)": e.width**0.5}.get(o.loss_scale) or o.loss_scale * e.width,
        "target_layer_norm_last": "layer" in norms,
        "target_batch_norm": "batch" in norms,
        "target_instance_norm": "instance" in norms,
        "post_target_layer_norm": "layer" in o.target.final_norms,
        "post_target_instance_norm": "instance" in o.target.final_norms,
    }


def version2_recipe(config: FairseqConfig, vocab_size: int = 0, *, eat: bool = False) -> Sections:
    """The recipe sections of a data2vec 2.0 configuration (`data2vec_multi`); `vocab_size` is needed for text. `eat`: its
    images are the spectrograms of EAT, of one channel.

    Raises ValueError for unsupported settings."""
    modality_key = config["supported_modality"]
    modality = config["modalities"][modality_key.lower()]
    _refuse_unsupported(config, modality, modality_key, channels=1 if eat else 3)
    decoder, mask, extra = modality["decoder"], _version2_mask(modality), modality["num_extra_tokens"]
    scale = config["loss_scale"]
    blocks_only = config["ema_encoder_only"]
    local = "averaged" if modality["ema_local_encoder"] and not blocks_only else "shared"
    relative = "averaged" if modality_key == "AUDIO" and not blocks_only else local
    return {
        "modality": _VERSION2_MODALITIES["SOUND" if eat else modality_key](modality, vocab_size),
        "encoder": {
            "width": config["embed_dim"],
            "layers": modality["prenet_depth"] + config["depth"],
            "prenet_layers": modality["prenet_depth"],
            "heads": config["num_heads"],
            "ffn_width": int(config["embed_dim"] * config["mlp_ratio"]),
            "norm_eps": config["norm_eps"],
            "input_norm": modality_key != "TEXT" or modality["prenet_depth"] > 0,
            "extra_tokens": extra,
            **({"extra_token_std": 0.0 if modality["init_extra_token_zero"] else 1.0} if extra else {}),
            "dropout": config["encoder_dropout"],
            "attention_dropout": config["attention_dropout"],
            "activation_dropout": config["activation_dropout"],
            "layerdrop": config["layerdrop"],
            "drop_path": config["end_drop_path_rate"],
        },
        "objective": {
            "name": "data2vec2",
            "masks_per_sample": config["clone_batch"],
            "mask": mask,
            "teacher": _teacher(config, local, relative) | {"prenet": "shared" if blocks_only else "averaged"},
            "target": {
                "source": "block" if config["end_of_block_targets"] else "ffn",
                "top_k": config["average_top_k_layers"],
                "per_layer_norms": _norm_order(config, LAYER_NORMS),
                "final_norms": _norm_order(config, NORMS),
            },
            "beta": config["loss_beta"],
            "loss_scale": "1/sqrt(width)" if scale is None else scale,
            "decoder": {
                "layers": decoder["decoder_layers"],
                "kernel": [decoder["decoder_kernel"]] * (2 if modality_key == "IMAGE" else 1),
                "groups": decoder["decoder_groups"],
                "width": decoder["decoder_dim"],
                "residual": decoder["decoder_residual"],
                "dropout": decoder["input_dropout"],
                "noise_std": modality["mask_noise_std"],
                "head_layers": decoder["projection_layers"],
                "head_init": "bert" if modality_key == "TEXT" else "torch",
            },
            "cls_loss": config["cls_loss"],
            "cls_reduction": "sum",
        },
        "health": {"min_target_std": config["min_target_var"], "min_prediction_std": config["min_pred_var"]},
    }


def _refuse_unsupported(config: FairseqConfig, modality: FairseqConfig, modality_key: str, channels: int) -> None:
    """Raises ValueError for settings of version 2 that no released recipe uses or that the released code gets wrong."""
    if config["layer_norm_first"]:
        raise ValueError(
            "layer_norm_first: true is refused: in the released pre-norm block of version 2 the residual is taken from the "
            "output of the feed-forward part, so its numbers are of no use as a reference"
        )
    decoder = modality["decoder"]
    needed: dict[str, tuple[Any, Any]] = {
        "norm_affine": (config["norm_affine"], True),
        "recon_loss": (config["recon_loss"], 0),
        "d2v_loss": (config["d2v_loss"], 1),
        "shared_decoder": (config["shared_decoder"], None),
        "encoder_zero_mask": (modality["encoder_zero_mask"], True),
        "keep_masked_pct": (modality["keep_masked_pct"], 0),
        "mask_channel_prob": (modality["mask_channel_prob"], 0),
        "add_positions_masked": (decoder["add_positions_masked"], False),
        "add_positions_all": (decoder["add_positions_all"], False),
        "learned_alibi": (modality["learned_alibi"], False),
        "mask_dropout": (modality.get("mask_dropout", 0), 0),
        "add_masks": (modality.get("add_masks", False), False),
        "remove_masks": (modality.get("remove_masks", False), False),
        "dropout_input": (config.get("dropout_input", 0), 0),
        "post_mlp_drop": (config.get("post_mlp_drop", config["encoder_dropout"]), config["encoder_dropout"]),
    }
    dropout = (
        "dropout" if modality_key == "TEXT" and not modality["prenet_depth"] else "prenet_dropout"
    )  # on the first block's input
    needed[dropout] = (modality.get(dropout, config["encoder_dropout"]), config["encoder_dropout"])
    if modality["prenet_depth"]:
        needed["prenet_layerdrop"] = (modality.get("prenet_layerdrop", config["layerdrop"]), config["layerdrop"])
    if decoder["projection_layers"] > 1:
        needed["projection_ratio"] = (decoder["projection_ratio"], 2)
    if modality_key == "AUDIO":
        needed["conv_pos_pre_ln"] = (modality["conv_pos_pre_ln"], False)
        if modality["use_alibi_encoder"]:
            needed["learned_alibi_scale"] = (modality.get("learned_alibi_scale", True), True)
            needed["learned_alibi_scale_per_head"] = (modality["learned_alibi_scale_per_head"], True)
            needed["learned_alibi_scale_per_layer"] = (modality["learned_alibi_scale_per_layer"], False)
        if modality["conv_pos_depth"] < 2:
            raise ValueError("conv_pos_depth 1 is not supported, only 2 or more: it selects another position encoder")
    else:
        needed["use_alibi_encoder"] = (modality["use_alibi_encoder"], False)
        needed["local_grad_mult"] = (modality["local_grad_mult"], 1)
    if modality_key == "IMAGE":
        needed |= {key: (modality[key], value) for key, value in
                   (("fixed_positions", True), ("transformer_decoder", False), ("in_chans", channels))}  # fmt: skip
    if modality_key == "TEXT":
        needed["learned_pos"] = (modality["learned_pos"], True)
        needed["no_token_positional_embeddings"] = (modality["no_token_positional_embeddings"], False)
    for key, (value, supported) in needed.items():
        if value != supported:
            raise ValueError(f"{key} {value!r} is not supported, only {supported!r}")


def _version2_mask(modality: FairseqConfig) -> JsonDict:
    if modality["mask_length"] == 1:
        return {"kind": "random", "prob": modality["mask_prob"]}
    return {
        "kind": "fixed-block",
        "prob": modality["mask_prob"],
        "adjust": modality["mask_prob_adjust"],
        "length": modality["mask_length"],
        "inverse": modality["inverse_mask"],
    }


def _version2_speech(modality: FairseqConfig, vocab_size: int) -> JsonDict:
    return {
        "name": "speech",
        "conv_layers": parse_conv_layers(modality["feature_encoder_spec"]),
        "conv_norm": "layer" if modality["extractor_mode"] == "layer_norm" else "group",
        "conv_grad_scale": modality["local_grad_mult"],
        "position_depth": modality["conv_pos_depth"],
        "position_kernel": max(3, modality["conv_pos_width"] // modality["conv_pos_depth"]),
        "position_groups": modality["conv_pos_groups"],
        "position_padding": "none",
        "alibi": modality["use_alibi_encoder"],
        "mask_vector": False,
    }


def _version2_vision(modality: FairseqConfig, vocab_size: int) -> JsonDict:
    return {
        "name": "vision",
        "image": modality["input_size"],
        "patch": modality["patch_size"],
        "positions": "sincos",
        "patch_init": "xavier",
        "mask_vector": False,
    }


def _version2_sound(modality: FairseqConfig, vocab_size: int) -> JsonDict:
    return {
        "name": "sound",
        "patch": [modality["patch_size"]] * 2,
        "patch_init": "xavier",
        "mean": AUDIOSET[0],
        "std": AUDIOSET[1],
        "attend_padding": True,
        "mask_vector": False,
    }


def _version2_text(modality: FairseqConfig, vocab_size: int) -> JsonDict:
    return {
        "name": "text",
        "vocab_size": vocab_size,
        "max_length": modality["max_source_positions"],
        "embedding_norm": modality["layernorm_embedding"],
        "scale_embedding": not modality["no_scale_embedding"],
        "position_padding": "none",
    }


_VERSION2_MODALITIES: dict[str, Callable[[FairseqConfig, int], JsonDict]] = {
    "AUDIO": _version2_speech,
    "IMAGE": _version2_vision,
    "TEXT": _version2_text,
    "SOUND": _version2_sound,
}


def version2_config(recipe: Recipe) -> FairseqConfig:
    """The official configuration of a version 2 model (`data2vec_multi`)."""
    o, e = cast(Data2Vec2Settings, recipe.objective), recipe.encoder
    decoder = o.decoder
    if not isinstance(decoder, ConvDecoderSettings):
        raise UserError(f"objective.decoder.kind: {decoder.kind!r} has no official counterpart; only conv can be written")
    modality_key = MODALITY_KEYS[family_of_recipe(recipe).modality]
    mask, averaged = o.mask.model_dump(), o.teacher.local_encoder == "averaged"
    # Officially the class-token loss is summed over the views on a device; here it may be their mean.
    views = o.masks_per_sample * getattr(recipe.data, "micro_batch_size", 1) if o.cls_reduction == "mean" else 1
    rates = [e.drop_path * index / max(e.layers - 1, 1) for index in range(e.layers)]
    modality: FairseqConfig = {
        "type": modality_key,
        "num_alibi_heads": e.heads,  # these two repeat sizes of the model, which a fine-tuned model does not find otherwise
        "model_depth": e.layers - e.prenet_layers,
        "prenet_depth": e.prenet_layers,
        "prenet_layerdrop": e.layerdrop,
        "prenet_dropout": e.dropout,
        "start_drop_path_rate": 0.0,
        "end_drop_path_rate": rates[max(e.prenet_layers - 1, 0)],
        "num_extra_tokens": e.extra_tokens,
        "init_extra_token_zero": not (e.extra_tokens and e.extra_token_std),
        "mask_noise_std": decoder.noise_std,
        "mask_prob": mask["prob"],
        "mask_length": mask.get("length", 1),
        "mask_prob_adjust": mask.get("adjust", 0),
        "inverse_mask": mask.get("inverse", False),
        "mask_dropout": 0.0,
        "add_masks": False,
        "remove_masks": False,
        "keep_masked_pct": 0,
        "encoder_zero_mask": True,
        "mask_channel_prob": 0.0,
        "ema_local_encoder": averaged,
        "learned_alibi": False,
        "learned_alibi_scale_per_layer": False,
        **_version2_modality_config(recipe),
        "decoder": {
            "decoder_dim": decoder.width,
            "decoder_groups": decoder.groups,
            "decoder_kernel": decoder.kernel[0],
            "decoder_layers": decoder.layers,
            "decoder_residual": decoder.residual,
            "input_dropout": decoder.dropout,
            "projection_layers": decoder.head_layers,
            "projection_ratio": 2.0,
            "add_positions_masked": False,
            "add_positions_all": False,
        },
    }
    return _common_config(recipe) | {
        "_name": "data2vec_multi",
        "supported_modality": modality_key,
        "modalities": {modality_key.lower(): modality},
        "depth": e.layers - e.prenet_layers,
        "embed_dim": e.width,
        "num_heads": e.heads,
        "mlp_ratio": mlp_ratio(e.width, e.ffn_width),
        "norm_eps": e.norm_eps,
        "norm_affine": True,
        "layer_norm_first": False,
        "encoder_dropout": e.dropout,
        "post_mlp_drop": e.dropout,
        "attention_dropout": e.attention_dropout,
        "activation_dropout": e.activation_dropout,
        "dropout_input": 0.0,
        "layerdrop": e.layerdrop,
        "start_drop_path_rate": rates[e.prenet_layers],
        "end_drop_path_rate": e.drop_path,
        "loss_scale": _loss_scale(recipe),
        "clone_batch": o.masks_per_sample,
        "end_of_block_targets": o.target.source == "block",
        "ema_encoder_only": o.teacher.prenet == "shared",
        "shared_decoder": None,
        "min_target_var": recipe.health.min_target_std,
        "min_pred_var": recipe.health.min_prediction_std,
        "cls_loss": o.cls_loss / views,
        "recon_loss": 0,
        "d2v_loss": 1,
    }


def _version2_modality_config(recipe: Recipe) -> FairseqConfig:
    """The part of `modalities.audio`, `.image` or `.text` that differs between them."""
    match recipe.modality:
        case SpeechSettings() as speech:
            return {
                "extractor_mode": "layer_norm" if speech.conv_norm == "layer" else "default",
                "feature_encoder_spec": str(list(speech.conv_layers)),
                "conv_pos_width": speech.position_kernel * speech.position_depth,
                "conv_pos_groups": speech.position_groups,
                "conv_pos_depth": speech.position_depth,
                "conv_pos_pre_ln": False,
                "local_grad_mult": speech.conv_grad_scale,
                "use_alibi_encoder": speech.alibi,
                "learned_alibi_scale": speech.alibi,
                "learned_alibi_scale_per_head": speech.alibi,
            }
        case VisionSettings() as vision:
            return {
                "input_size": vision.image,
                "patch_size": vision.patch,
                "embed_dim": recipe.encoder.width,
                "in_chans": 3,
                "fixed_positions": True,
                "transformer_decoder": False,
                **NO_ALIBI,
            }
        case SoundSettings() as sound:
            if sound.columns != EAT_COLUMNS:
                raise UserError(f"modality.fbank.bins: {sound.columns} patches in frequency are not supported, EAT has 8")
            return {
                "patch_size": sound.patch[0],
                "embed_dim": recipe.encoder.width,
                "in_chans": 1,
                "fixed_positions": True,
                "transformer_decoder": False,
                **NO_ALIBI,
            }
        case TextSettings() as text:
            return {
                "max_source_positions": text.max_length,
                "learned_pos": True,
                "layernorm_embedding": text.embedding_norm,
                "no_scale_embedding": not text.scale_embedding,
                "no_token_positional_embeddings": False,
                "dropout": recipe.encoder.dropout,
                **NO_ALIBI,
            }
    raise _no_official_model(recipe)


def task_config(recipe: Recipe) -> FairseqConfig:
    """The official configuration of the task, which prepares the data; `data` is the folder of the checkpoint."""
    match recipe.modality:
        case SpeechSettings():
            return {"_name": "audio_pretraining", "data": DATA_FOLDER, "normalize": True}
        case VisionSettings() as vision:
            return {"_name": "mae_image_pretraining", "data": DATA_FOLDER, "input_size": vision.image}
        case SoundSettings():
            return {"_name": "mae_image_pretraining", "data": DATA_FOLDER}
        case TextSettings() as text:
            mask = recipe.objective.mask.model_dump()
            masks = {key: mask[ours] for ours, key in MASKED_LM.items() if mask["kind"] == "token"}
            version2 = isinstance(recipe.objective, Data2Vec2Settings)
            return {
                "_name": "masked_lm",
                "data": DATA_FOLDER,
                "tokens_per_sample": text.max_length,
                "include_target_tokens": True,
                "skip_masking": version2,
                "d2v2_multi": version2,
            } | masks
    raise _no_official_model(recipe)


CONFIG_WRITERS: dict[Family, Callable[[Recipe], FairseqConfig]] = {
    SPEECH_1: speech_config,
    TEXT_1: text_config,
    BEIT: vision_config,
    **{Family(modality, 2): version2_config for modality in MODALITY_KEYS},
}

NOT_IN_FAIRSEQ = {
    "modality.patch_init", "modality.position_padding", "modality.mean", "modality.std", "encoder.init",
    "encoder.extra_token_std", "objective.head_init", "objective.decoder.head_init", "objective.mask.aspect",
    "objective.mask.min_spans", "objective.teacher.context", "objective.teacher.anneal_steps", "objective.cls_loss",
    "objective.cls_reduction",
}  # fmt: skip
"""Settings that official configurations lack or fix, and that do not change what the weights compute."""
INFERRED_FROM_WEIGHTS = {"modality.mask_vector", "modality.position_tables", "encoder.final_norm"}
"""Settings of a fine-tuned BEiT that follow from the weights in its file rather than from its configuration."""


def family_of_recipe(recipe: Recipe) -> Family:
    """The official model of a recipe. Raises UserError for a custom modality."""
    name = recipe.modality.name
    if name not in MODALITY_KEYS:
        raise _no_official_model(recipe)
    family = Family(name, 2 if recipe.objective.name == "data2vec2" else 1)
    if family == Family("sound", 1):
        raise UserError(f"objective.name: {recipe.objective.name!r} of sound has no official counterpart, only data2vec2 (EAT)")
    return family


def own_settings(recipe: Recipe) -> JsonDict:
    """The settings that are stored beside the official configuration, by section; empty for all but sound."""
    if recipe.modality.name != "sound":
        return {}
    return {"modality": {key: recipe.modality.model_dump(mode="json")[key] for key in SOUND_SETTINGS}}


def _no_official_model(recipe: Recipe) -> UserError:
    name = recipe.modality.name
    return UserError(f"modality.name: {name!r} has no official counterpart; only {', '.join(MODALITY_KEYS)} can be written")


def recipe_sections(family: Family, config: FairseqConfig, vocab_size: int, task: FairseqConfig) -> Sections:
    """The recipe sections of an official configuration. Raises ValueError for unsupported settings."""
    if family.version == 2:
        return version2_recipe(config, vocab_size, eat=family == EAT)
    if family.modality == "text":
        return text_recipe(config, vocab_size, task)
    return (speech_recipe if family.modality == "speech" else vision_recipe)(config)


def fairseq_config(recipe: Recipe, fine_tuned: bool = False) -> tuple[FairseqConfig, FairseqConfig, list[str]]:
    """The configurations of the model and of its task, and a list of settings that they cannot express.

    Raises UserError, naming the setting, where the official model would compute something else."""
    family = family_of_recipe(recipe)
    recipe = _in_decays(recipe)
    model, task = CONFIG_WRITERS[family](recipe), task_config(recipe)
    sections = recipe_sections(family, model, getattr(recipe.modality, "vocab_size", 0), task)
    for section, settings in own_settings(recipe).items():
        sections[section] |= settings
    read_back = validate_recipe({**sections, "data": {}}, str(family))
    lost, wrong = [], []
    for key, ours, official in setting_differences(recipe, read_back):
        if fine_tuned and family == BEIT and key in INFERRED_FROM_WEIGHTS:
            continue
        if key in NOT_IN_FAIRSEQ or key.startswith("health."):
            if recipe.objective.model_dump().get("cls_loss") or not key.startswith("objective.cls_"):
                lost.append(f"{key}: {ours!r} (officially {official!r})")
        else:
            wrong.append(f"{key}: {ours!r} is not supported by the official {family} model; it has {official!r}")
    if wrong:
        raise UserError(*wrong)
    return model, task, lost


def _in_decays(recipe: Recipe) -> Recipe:
    """The same recipe, with half-lives of the teacher as the decays that the official code has."""
    teacher = getattr(recipe.objective, "teacher", None)
    if teacher is None or teacher.half_life is None:
        return recipe
    decays = teacher.schedule(recipe.train.steps)._asdict() | dict.fromkeys(("half_life", "end_half_life", "anneal"))
    objective = recipe.objective.model_copy(update={"teacher": teacher.model_copy(update=decays)})
    return recipe.model_copy(update={"objective": objective})


def setting_differences(ours: Recipe, official: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The settings of modality, encoder, objective and health that differ: key, our value, official value.

    A teacher part that is copied from the student equals one that is shared with it, and loss l2 equals smooth L1 with β 0."""
    for section in ("modality", "encoder", "objective", "health"):
        left, right = getattr(ours, section).flat(), getattr(official, section).flat()
        for key in left | right:
            pair = [left.get(key), right.get(key)]
            if pair[0] != pair[1] and pair not in (["copied", "shared"], ["shared", "copied"], ["l2", "smooth_l1"]):
                yield f"{section}.{key}", pair[0], pair[1]
