"""The configurations of the official models, as sections of our recipes."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

LAYER_NORMS = {
    "batch_norm_target_layer": "batch",
    "instance_norm_target_layer": "instance",
    "layer_norm_target_layer": "layer",
}
"""fairseq's switches for the norms of each layer of the targets, in the order of its text model and of version 2."""
NORMS = {"layer_norm_targets": "layer", "instance_norm_targets": "instance"}
"""The same for the norms of their average."""


def layer_list(text: str) -> list[list[int]]:
    """Read fairseq's "[(512,10,5)] + [(512,3,2)] * 4" without running it."""

    def read(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult):
            left, right = read(node.left), read(node.right)
            return left + right if isinstance(node.op, ast.Add) else left * right
        return ast.literal_eval(node)

    return [list(layer) for layer in read(ast.parse(text.strip(), mode="eval").body)]


def _activation(config: Mapping[str, Any]) -> str:
    if config["activation_fn"] not in ("gelu", "relu"):
        raise ValueError(f"activation_fn {config['activation_fn']!r} is not supported: gelu or relu")
    return config["activation_fn"]


def _teacher(config: Mapping[str, Any], features: str, positions: str) -> dict[str, Any]:
    return {
        "decay": config["ema_decay"],
        "end_decay": config["ema_end_decay"],
        "anneal_steps": config["ema_anneal_end_step"],
        "local_encoder": features,
        "position_encoder": positions,
    }


def _norm_order(config: Mapping[str, Any], flags: Mapping[str, str]) -> list[str]:
    return [norm for flag, norm in flags.items() if config.get(flag)]


def speech_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe sections of a `data2vec_audio` configuration. Raises ValueError for what is not supported."""
    if config["layer_type"] != "transformer":
        raise ValueError(f"layer_type {config['layer_type']!r} is not supported: transformer")
    if config["pos_conv_depth"] < 2:
        raise ValueError("pos_conv_depth 1 is not supported: the official teacher cannot be made from it either")
    whole = not (config["ema_transformer_only"] or config["ema_layers_only"])
    # Without instance or batch norm the released code leaves time in front of the batch when it normalises further.
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
            "conv_layers": layer_list(config["conv_feature_layers"]),
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
                "averaged" if whole else "shared",
                "copied" if config["ema_layers_only"] else "averaged",
            ),
            "target": {
                # When the whole model is averaged, the released code ignores average_top_k_layers.
                "top_k": config["encoder_layers"] if whole else config["average_top_k_layers"],
                "layer_norms": _norm_order(config, per_layer),
                "norms": _norm_order(config, {"layer_norm_targets": "layer", "instance_norm_targets": f"instance{over}"}),
            },
            "beta": config["loss_beta"],
            "scale": "1/sqrt(width)" if config["loss_scale"] is None else config["loss_scale"],
        },
    }


MASKED_LM = {
    "prob": "mask_prob",
    "length": "mask_multiple_length",
    "keep": "leave_unmasked_prob",
    "random": "random_token_prob",
}
"""Our settings of the masks of text, and fairseq's, which are of its task and not of its model."""


def text_recipe(config: Mapping[str, Any], vocab_size: int, task: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The recipe sections of a `data2vec_text` configuration, with the masks of its `task` where it is known.

    Raises ValueError for what is not supported."""
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
                "layer_norms": _norm_order(config, LAYER_NORMS),
                "norms": _norm_order(config, NORMS),
            },
            "beta": config["loss_beta"],
            "scale": "1/sqrt(width)" if config["loss_scale"] <= 0 else config["loss_scale"],
            "head_layers": config["head_layers"],
            "head_init": "bert",
        },
    }


def vision_recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe sections of a data2vec_vision configuration. Raises ValueError for what is not supported."""
    layers = list(config["target_layers"])
    if layers != list(range(config["depth"] - len(layers), config["depth"])):
        raise ValueError(f"target_layers {layers} are not the last ones of {config['depth']}")
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
                "state": "block" if config["layer_results"] == "end" else "ffn",
                "top_k": len(layers),
                "layer_norms": _norm_order(config, per_layer),
                "norms": _norm_order(config, {"post_target_instance_norm": "instance", "post_target_layer_norm": "layer"}),
            },
            "beta": 0.0 if config["l2_loss"] else config["l1_beta"],
            "scale": "1/width" if scale == -1 else scale / width,
            "head_init": "beit",
        },
    }


def v2_recipe(config: Mapping[str, Any], vocab_size: int = 0) -> dict[str, Any]:
    """The recipe sections of a data2vec 2.0 configuration (`data2vec_multi`); `vocab_size` is needed for text.

    Raises ValueError for what is not supported."""
    kind = config["supported_modality"]
    modality = config["modalities"][kind.lower()]
    _refuse_unsupported(config, modality, kind)
    decoder, mask, extra = modality["decoder"], _v2_mask(modality), modality["num_extra_tokens"]
    scale = config["loss_scale"]
    blocks_only = config["ema_encoder_only"]
    local = "averaged" if modality["ema_local_encoder"] and not blocks_only else "shared"
    relative = "averaged" if kind == "AUDIO" and not blocks_only else local
    return {
        "modality": _V2_MODALITIES[kind](modality, vocab_size),
        "encoder": {
            "width": config["embed_dim"],
            "layers": modality["prenet_depth"] + config["depth"],
            "prenet_layers": modality["prenet_depth"],
            "heads": config["num_heads"],
            "ffn_width": int(config["embed_dim"] * config["mlp_ratio"]),
            "norm_eps": config["norm_eps"],
            "input_norm": kind != "TEXT" or modality["prenet_depth"] > 0,
            "extra_tokens": extra,
            **({"extra_token_std": 0.0 if modality["init_extra_token_zero"] else 1.0} if extra else {}),
            "dropout": config["encoder_dropout"],
            "attention_dropout": config["attention_dropout"],
            "activation_dropout": config["activation_dropout"],
            "layerdrop": config["layerdrop"],
        },
        "objective": {
            "name": "data2vec2",
            "masks": config["clone_batch"],
            "mask": mask,
            "teacher": _teacher(config, local, relative) | {"prenet": "shared" if blocks_only else "averaged"},
            "target": {
                "state": "block" if config["end_of_block_targets"] else "ffn",
                "top_k": config["average_top_k_layers"],
                "layer_norms": _norm_order(config, LAYER_NORMS),
                "norms": _norm_order(config, NORMS),
            },
            "beta": config["loss_beta"],
            "scale": "1/sqrt(width)" if scale is None else scale,
            "decoder": {
                "layers": decoder["decoder_layers"],
                "kernel": [decoder["decoder_kernel"]] * (2 if kind == "IMAGE" else 1),
                "groups": decoder["decoder_groups"],
                "width": decoder["decoder_dim"],
                "residual": decoder["decoder_residual"],
                "dropout": decoder["input_dropout"],
                "noise_std": modality["mask_noise_std"],
                "head_layers": decoder["projection_layers"],
                "head_init": "bert" if kind == "TEXT" else "torch",
            },
            "cls_loss": config["cls_loss"],
            "cls_reduction": "sum",
            "health": {"min_target_std": config["min_target_var"], "min_prediction_std": config["min_pred_var"]},
        },
    }


def _refuse_unsupported(config: Mapping[str, Any], modality: Mapping[str, Any], kind: str) -> None:
    """Raises ValueError for settings of version 2 that no released recipe has, or that the released code gets wrong."""
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
        "end_drop_path_rate": (config["end_drop_path_rate"], 0),
        "encoder_zero_mask": (modality["encoder_zero_mask"], True),
        "keep_masked_pct": (modality["keep_masked_pct"], 0),
        "mask_channel_prob": (modality["mask_channel_prob"], 0),
        "add_positions_masked": (decoder["add_positions_masked"], False),
        "add_positions_all": (decoder["add_positions_all"], False),
        "learned_alibi": (modality["learned_alibi"], False),
        "mask_dropout": (modality.get("mask_dropout", 0), 0),
        "add_masks": (modality.get("add_masks", False), False),
        "remove_masks": (modality.get("remove_masks", False), False),
        "prenet_layerdrop": (modality.get("prenet_layerdrop", 0), 0),
        "dropout_input": (config.get("dropout_input", 0), 0),
        "post_mlp_drop": (config.get("post_mlp_drop", config["encoder_dropout"]), config["encoder_dropout"]),
    }
    if decoder["projection_layers"] > 1:
        needed["projection_ratio"] = (decoder["projection_ratio"], 2)
    if kind == "AUDIO":
        needed["conv_pos_pre_ln"] = (modality["conv_pos_pre_ln"], False)
        if modality["use_alibi_encoder"]:
            needed["learned_alibi_scale"] = (modality.get("learned_alibi_scale", True), True)
            needed["learned_alibi_scale_per_head"] = (modality["learned_alibi_scale_per_head"], True)
            needed["learned_alibi_scale_per_layer"] = (modality["learned_alibi_scale_per_layer"], False)
        if modality["conv_pos_depth"] < 2:
            raise ValueError("conv_pos_depth 1 is not supported: it is a position encoder of another kind")
    else:
        needed["use_alibi_encoder"] = (modality["use_alibi_encoder"], False)
        needed["local_grad_mult"] = (modality["local_grad_mult"], 1)
    if kind == "IMAGE":
        needed |= {key: (modality[key], value) for key, value in
                   (("fixed_positions", True), ("transformer_decoder", False), ("in_chans", 3))}  # fmt: skip
    if kind == "TEXT":
        needed["learned_pos"] = (modality["learned_pos"], True)
        needed["no_token_positional_embeddings"] = (modality["no_token_positional_embeddings"], False)
    for key, (value, supported) in needed.items():
        if value != supported:
            raise ValueError(f"{key} {value!r} is not supported: {supported!r}; no released recipe has it")


def _v2_mask(modality: Mapping[str, Any]) -> dict[str, Any]:
    if modality["mask_length"] == 1:
        return {"kind": "random", "prob": modality["mask_prob"]}
    return {
        "kind": "fixed-block",
        "prob": modality["mask_prob"],
        "adjust": modality["mask_prob_adjust"],
        "length": modality["mask_length"],
        "inverse": modality["inverse_mask"],
    }


def _v2_speech(modality: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    return {
        "name": "speech",
        "conv_layers": layer_list(modality["feature_encoder_spec"]),
        "conv_norm": "layer" if modality["extractor_mode"] == "layer_norm" else "group",
        "conv_grad_scale": modality["local_grad_mult"],
        "position_depth": modality["conv_pos_depth"],
        "position_kernel": max(3, modality["conv_pos_width"] // modality["conv_pos_depth"]),
        "position_groups": modality["conv_pos_groups"],
        "position_padding": "seen",
        "alibi": modality["use_alibi_encoder"],
        "mask_vector": False,
    }


def _v2_vision(modality: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    return {
        "name": "vision",
        "image": modality["input_size"],
        "patch": modality["patch_size"],
        "positions": "sincos",
        "patch_init": "xavier",
        "mask_vector": False,
    }


def _v2_text(modality: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    return {
        "name": "text",
        "vocab_size": vocab_size,
        "max_length": modality["max_source_positions"],
        "embedding_norm": modality["layernorm_embedding"],
        "scale_embedding": not modality["no_scale_embedding"],
        "position_padding": "seen",
    }


_V2_MODALITIES: dict[str, Callable[[Mapping[str, Any], int], dict[str, Any]]] = {
    "AUDIO": _v2_speech,
    "IMAGE": _v2_vision,
    "TEXT": _v2_text,
}
