"""The official models: their names for our parameters, and their configurations as our settings."""

import ast
from collections.abc import Mapping
from typing import Any

from data2vec.interop.keys import Table, affine


def _post_norm_blocks(prefix: str) -> dict[str, str | tuple[str, ...]]:
    """fairseq's TransformerSentenceEncoderLayer."""
    ours, theirs = "transformer.blocks.{i}", prefix + "layers.{i}"
    return {
        **affine(f"{ours}.attention.qkv", *(f"{theirs}.self_attn.{x}_proj" for x in "qkv")),
        **affine(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj"),
        **affine(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm"),
        **affine(f"{ours}.ffn.0", f"{theirs}.fc1"),
        **affine(f"{ours}.ffn.3", f"{theirs}.fc2"),
        **affine(f"{ours}.norm2", f"{theirs}.final_layer_norm"),
    }


SPEECH: Table = {
    "features.mask_vector": "mask_emb",
    **affine("features.conv.convs.{i}", "feature_extractor.conv_layers.{i}.0"),
    **affine("features.conv.norms.{i}", "feature_extractor.conv_layers.{i}.2.1"),
    **affine("features.norm", "layer_norm"),
    **affine("features.project", "post_extract_proj"),
    **affine("positions.convs.{i}", "encoder.pos_conv.{i}.0"),
    **affine("transformer.input_norm", "encoder.layer_norm"),
    **_post_norm_blocks("encoder."),
    **affine("head.0", "final_proj"),
}
"""examples/data2vec/models/data2vec_audio.py"""

TEXT: Table = {
    "features.tokens.weight": "encoder.sentence_encoder.embed_tokens.weight",
    "positions.table.weight": "encoder.sentence_encoder.embed_positions.weight",
    **affine("positions.norm", "encoder.sentence_encoder.layernorm_embedding"),
    **_post_norm_blocks("encoder.sentence_encoder."),
    **affine("transformer.final_norm", "encoder.sentence_encoder.layer_norm"),
    **affine("head.{i}", "encoder.regression_head.{i}"),
}
"""examples/data2vec/models/data2vec_text.py"""

VISION: Table = {
    "features.mask_vector": "mask_token",
    **affine("features.project", "patch_embed.proj"),
    "positions.table": "rel_pos_bias.relative_position_bias_table",
    "transformer.extra_tokens": "cls_token",
    "transformer.blocks.{i}.attention.qkv.weight": "blocks.{i}.attn.qkv.weight",
    "transformer.blocks.{i}.attention.q_bias": "blocks.{i}.attn.q_bias",
    "transformer.blocks.{i}.attention.v_bias": "blocks.{i}.attn.v_bias",
    **affine("transformer.blocks.{i}.attention.out", "blocks.{i}.attn.proj"),
    **affine("transformer.blocks.{i}.norm1", "blocks.{i}.norm1"),
    **affine("transformer.blocks.{i}.norm2", "blocks.{i}.norm2"),
    **affine("transformer.blocks.{i}.ffn.0", "blocks.{i}.mlp.fc1"),
    **affine("transformer.blocks.{i}.ffn.3", "blocks.{i}.mlp.fc2"),
    "transformer.blocks.{i}.scale1": "blocks.{i}.gamma_1",
    "transformer.blocks.{i}.scale2": "blocks.{i}.gamma_2",
    **affine("transformer.final_norm", "norm"),
    **affine("head.0", "lm_head"),
}
"""beit/modeling_cyclical.py of the data2vec_vision repository"""


def speech_table(config: Mapping[str, Any]) -> Table:
    """The names of the speech model, which depend a little on its configuration."""
    table = dict(SPEECH)
    if config["extractor_mode"] != "layer_norm":
        table |= affine("features.conv.norms.0", "feature_extractor.conv_layers.0.2")
    if config["layer_norm_first"]:
        table |= affine("transformer.final_norm", "encoder.layer_norm")
    return table


def _layer_list(text: str) -> list[list[int]]:
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
        "features": features,
        "positions": positions,
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
            "conv_layers": _layer_list(config["conv_feature_layers"]),
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


def text_recipe(config: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The recipe sections of a `data2vec_text` configuration. Raises ValueError for what is not supported."""
    transformer = config["transformer"]
    encoder = transformer["encoder"]
    if not encoder["learned_pos"] or transformer["no_token_positional_embeddings"]:
        raise ValueError("only learned positions are supported for text")
    copied = "copied" if config["ema_transformer_layers_only"] else "averaged"
    per_layer = {
        "batch_norm_target_layer": "batch",
        "instance_norm_target_layer": "instance",
        "layer_norm_target_layer": "layer",
    }
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
            "mask": {"kind": "token"},
            "teacher": _teacher(config, copied, copied),
            "target": {
                "top_k": config["average_top_k_layers"],
                "layer_norms": _norm_order(config, per_layer),
                "norms": _norm_order(config, {"layer_norm_targets": "layer", "instance_norm_targets": "instance"}),
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
            "mask": {
                "kind": "block",
                "patches": config["num_mask_patches"],
                "min_patches": config["min_mask_patches_per_block"],
                "max_patches": config["max_mask_patches_per_block"],
            },
            "teacher": {
                "decay": config["ema_decay"],
                "end_decay": config["ema_decay"],
                "features": "averaged",
                "positions": "averaged",
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
