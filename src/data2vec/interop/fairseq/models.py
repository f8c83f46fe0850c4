"""The six official models, and the configuration of each for a recipe of ours."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from data2vec.interop.fairseq.config_to_recipe import LAYER_NORMS, MASKED_LM, NORMS
from data2vec.recipe.recipe import Recipe

Config = dict[str, Any]
KINDS = {"speech": "AUDIO", "vision": "IMAGE", "text": "TEXT"}


@dataclass(frozen=True)
class Family:
    """One of the six official models."""

    modality: Literal["speech", "vision", "text"]
    version: Literal[1, 2]

    @property
    def kind(self) -> str:
        """Its name in version 2."""
        return KINDS[self.modality]

    def __str__(self) -> str:
        return f"data2vec {self.version} {self.modality}"


BEIT = Family("vision", 1)
"""Not of fairseq: its code is that of BEiT."""


def ratio(width: int, inner: int) -> float:
    """The `mlp_ratio` of which the official code makes exactly this inner width."""
    exact = inner / width
    return exact if int(width * exact) == inner else math.nextafter(exact, math.inf)


def task_config(recipe: Recipe) -> Config:
    """The configuration of the task: how its data is prepared."""
    modality: Any = recipe.modality
    if modality.name == "speech":
        return {"_name": "audio_pretraining", "normalize": True}
    if modality.name == "vision":
        return {"_name": "mae_image_pretraining", "input_size": modality.image}
    mask = recipe.objective.mask.model_dump()
    return {"_name": "masked_lm", "tokens_per_sample": modality.max_length} | {
        key: mask[ours] for ours, key in MASKED_LM.items() if mask["kind"] == "token"
    }


def _flags(names: dict[str, str], norms: tuple[str, ...]) -> Config:
    return {flag: norm in norms for flag, norm in names.items()}


def _common(recipe: Recipe) -> Config:
    """What the fairseq models share."""
    o = recipe.objective
    return {
        "loss_beta": o.beta,
        "average_top_k_layers": o.target.top_k,
        **_flags(LAYER_NORMS, o.target.layer_norms),
        **_flags(NORMS, o.target.norms),
        "ema_decay": o.teacher.decay,
        "ema_end_decay": o.teacher.end_decay,
        "ema_anneal_end_step": o.teacher.anneal_steps,
    }


def _scale(recipe: Recipe) -> float | None:
    scale = recipe.objective.scale
    return 1 / recipe.encoder.width if scale == "1/width" else None if isinstance(scale, str) else scale


def _speech(recipe: Recipe) -> Config:
    m: Any = recipe.modality
    e, o = recipe.encoder, recipe.objective
    mask, whole = o.mask.model_dump(), o.teacher.local_encoder == "averaged"
    groups = [norm for norm in o.target.layer_norms if norm.startswith("group")]
    return _common(recipe) | {
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
        "loss_scale": _scale(recipe),
        "group_norm_target_layer": bool(groups),
        "instance_norm_targets": any(norm.startswith("instance") for norm in o.target.norms),
        "ema_transformer_only": not whole,
        "ema_layers_only": not whole and o.teacher.position_encoder != "averaged",
        "min_target_var": o.health.min_target_std,
        "min_pred_var": o.health.min_prediction_std,
    }


def _text(recipe: Recipe) -> Config:
    m: Any = recipe.modality
    e, o = recipe.encoder, recipe.objective
    return _common(recipe) | {
        "_name": "data2vec_text",
        "max_positions": m.max_length,
        "head_layers": o.head_layers,
        "loss_scale": -1 if o.scale == "1/sqrt(width)" else _scale(recipe),
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


def _vision(recipe: Recipe) -> Config:
    m: Any = recipe.modality
    e, o = recipe.encoder, recipe.objective
    mask, norms = o.mask.model_dump(), o.target.layer_norms
    return {
        "model": "beit",
        "embed_dim": e.width,
        "depth": e.layers,
        "num_heads": e.heads,
        "mlp_ratio": ratio(e.width, e.ffn_width),
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
        "layer_results": "end" if o.target.state == "block" else "fc",
        "loss_scale": -1 if o.scale == "1/width" else o.scale * e.width if isinstance(o.scale, float) else e.width**0.5,
        "target_layer_norm_last": "layer" in norms,
        "target_batch_norm": "batch" in norms,
        "target_instance_norm": "instance" in norms,
        "post_target_layer_norm": "layer" in o.target.norms,
        "post_target_instance_norm": "instance" in o.target.norms,
    }


def _version2(recipe: Recipe) -> Config:
    m: Any = recipe.modality
    o: Any = recipe.objective
    e, kind = recipe.encoder, KINDS[m.name]
    mask, averaged = o.mask.model_dump(), o.teacher.local_encoder == "averaged"
    own: Config = {
        "AUDIO": lambda: {
            "extractor_mode": "layer_norm" if m.conv_norm == "layer" else "default",
            "feature_encoder_spec": str(list(m.conv_layers)),
            "conv_pos_width": m.position_kernel * m.position_depth,
            "conv_pos_groups": m.position_groups,
            "conv_pos_depth": m.position_depth,
            "conv_pos_pre_ln": False,
        },
        "IMAGE": lambda: {
            "input_size": m.image,
            "patch_size": m.patch,
            "in_chans": 3,
            "fixed_positions": True,
            "transformer_decoder": False,
        },
        "TEXT": lambda: {
            "max_source_positions": m.max_length,
            "learned_pos": True,
            "layernorm_embedding": m.embedding_norm,
            "no_scale_embedding": not m.scale_embedding,
            "no_token_positional_embeddings": False,
        },
    }[kind]()
    # The official weight is of a sum over the views of a device.
    views = o.masks * getattr(recipe.data, "micro_batch_size", 1) if o.cls_reduction == "mean" else 1
    modality = own | {
        "type": kind,
        "prenet_depth": e.prenet_layers,
        "prenet_layerdrop": 0.0,
        "prenet_dropout": e.dropout,
        "num_extra_tokens": e.extra_tokens,
        "init_extra_token_zero": not (e.extra_tokens and e.extra_token_std),
        "mask_noise_std": o.decoder.noise_std,
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
        "local_grad_mult": getattr(m, "conv_grad_scale", 1.0),
        "use_alibi_encoder": (alibi := getattr(m, "alibi", False)),
        "learned_alibi": False,
        "learned_alibi_scale": alibi,
        "learned_alibi_scale_per_head": alibi,
        "learned_alibi_scale_per_layer": False,
        "decoder": {
            "decoder_dim": o.decoder.width,
            "decoder_groups": o.decoder.groups,
            "decoder_kernel": o.decoder.kernel[0],
            "decoder_layers": o.decoder.layers,
            "decoder_residual": o.decoder.residual,
            "input_dropout": o.decoder.dropout,
            "projection_layers": o.decoder.head_layers,
            "projection_ratio": 2.0,
            "add_positions_masked": False,
            "add_positions_all": False,
        },
    }
    return _common(recipe) | {
        "_name": "data2vec_multi",
        "supported_modality": kind,
        "modalities": {kind.lower(): modality},
        "depth": e.layers - e.prenet_layers,
        "embed_dim": e.width,
        "num_heads": e.heads,
        "mlp_ratio": ratio(e.width, e.ffn_width),
        "norm_eps": e.norm_eps,
        "norm_affine": True,
        "layer_norm_first": False,
        "encoder_dropout": e.dropout,
        "post_mlp_drop": e.dropout,
        "attention_dropout": e.attention_dropout,
        "activation_dropout": e.activation_dropout,
        "dropout_input": 0.0,
        "layerdrop": e.layerdrop,
        "start_drop_path_rate": 0.0,
        "end_drop_path_rate": 0.0,
        "loss_scale": _scale(recipe),
        "clone_batch": o.masks,
        "end_of_block_targets": o.target.state == "block",
        "ema_encoder_only": o.teacher.prenet == "shared",
        "shared_decoder": None,
        "min_target_var": o.health.min_target_std,
        "min_pred_var": o.health.min_prediction_std,
        "cls_loss": o.cls_loss / views,
        "recon_loss": 0,
        "d2v_loss": 1,
    }


MAKERS: dict[Family, Callable[[Recipe], Config]] = {
    Family("speech", 1): _speech,
    Family("text", 1): _text,
    BEIT: _vision,
    **{Family(modality, 2): _version2 for modality in ("speech", "vision", "text")},
}
