"""Small official checkpoints: the keys, shapes and containers of the official code, with random weights."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, FFN, LAYERS = 64, 96, 2
KERNELS = (10, 3, 3, 3, 3, 2, 2)
Shapes = dict[str, tuple[int, ...]]


def affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def norm(name: str, width: int = WIDTH) -> Shapes:
    return affine(name, width)


def _convolutions(root: str) -> Shapes:
    shapes: Shapes = {}
    for i, kernel in enumerate(KERNELS):
        shapes |= {f"{root}.{i}.0.weight": (8, 8 if i else 1, kernel)} | norm(f"{root}.{i}.2.1", 8)
    return shapes


def _fairseq_blocks(root: str) -> Shapes:
    shapes: Shapes = {}
    for i in range(LAYERS):
        for part in ("q", "k", "v", "out"):
            shapes |= affine(f"{root}.{i}.self_attn.{part}_proj", WIDTH, WIDTH)
        shapes |= affine(f"{root}.{i}.fc1", FFN, WIDTH) | affine(f"{root}.{i}.fc2", WIDTH, FFN)
        shapes |= norm(f"{root}.{i}.self_attn_layer_norm") | norm(f"{root}.{i}.final_layer_norm")
    return shapes


def _timm_block(root: str, biased: bool = True) -> Shapes:
    shapes = affine(f"{root}.attn.proj", WIDTH, WIDTH) | affine(f"{root}.mlp.fc1", FFN, WIDTH)
    shapes |= affine(f"{root}.mlp.fc2", WIDTH, FFN) | norm(f"{root}.norm1") | norm(f"{root}.norm2")
    if biased:
        return shapes | affine(f"{root}.attn.qkv", 3 * WIDTH, WIDTH)
    scales = {f"{root}.{name}": (WIDTH,) for name in ("attn.q_bias", "attn.v_bias", "gamma_1", "gamma_2")}
    return shapes | scales | {f"{root}.attn.qkv.weight": (3 * WIDTH, WIDTH)}


SPEECH1: Shapes = {
    "mask_emb": (WIDTH,), **_convolutions("feature_extractor.conv_layers"), **norm("layer_norm", 8),
    **affine("post_extract_proj", WIDTH, 8), **affine("encoder.pos_conv.0.0", WIDTH, 4, 5),
    **affine("encoder.pos_conv.1.0", WIDTH, 4, 5), **norm("encoder.layer_norm"), **_fairseq_blocks("encoder.layers"),
    **affine("final_proj.0", WIDTH, WIDTH),
}  # fmt: skip
TEXT1: Shapes = {
    "encoder.sentence_encoder.embed_tokens.weight": (70, WIDTH), "encoder.sentence_encoder.embed_positions.weight": (34, WIDTH),
    **norm("encoder.sentence_encoder.layernorm_embedding"), **_fairseq_blocks("encoder.sentence_encoder.layers"),
    "encoder.sentence_encoder.version": (1,), **affine("encoder.regression_head.0", 2 * WIDTH, WIDTH),
    **affine("encoder.regression_head.2", WIDTH, 2 * WIDTH),
}  # fmt: skip
VISION1: Shapes = {
    "cls_token": (1, 1, WIDTH), "mask_token": (1, 1, WIDTH), **affine("patch_embed.proj", WIDTH, 3, 4, 4),
    "rel_pos_bias.relative_position_bias_table": (84, 4), "rel_pos_bias.relative_position_index": (26, 26),
    **_timm_block("blocks.0", biased=False), **_timm_block("blocks.1", biased=False), **norm("norm"),
    **affine("lm_head", WIDTH, WIDTH),
}  # fmt: skip
_A, _I, _T = (f"modality_encoders.{kind}" for kind in ("AUDIO", "IMAGE", "TEXT"))
_BLOCKS2 = _timm_block("blocks.0") | _timm_block("blocks.1")
SPEECH2: Shapes = {
    **_convolutions(f"{_A}.local_encoder.conv_layers"), **norm(f"{_A}.project_features.1", 8),
    **affine(f"{_A}.project_features.2", WIDTH, 8), **affine(f"{_A}.relative_positional_encoder.1.0", WIDTH, 4, 5),
    **affine(f"{_A}.relative_positional_encoder.2.0", WIDTH, 4, 5), f"{_A}.alibi_scale": (1, 1, 4, 1, 1),
    **norm(f"{_A}.context_encoder.norm"), **_BLOCKS2, **affine(f"{_A}.decoder.blocks.0.0", 24, 8, 7),
    **affine(f"{_A}.decoder.blocks.1.0", 24, 3, 7), **affine(f"{_A}.decoder.proj", WIDTH, 24),
}  # fmt: skip
VISION2: Shapes = {
    **affine(f"{_I}.local_encoder.proj", WIDTH, 3, 4, 4), f"{_I}.extra_tokens": (1, 1, WIDTH),
    f"{_I}.fixed_positional_encoder.positions": (1, 25, WIDTH), **norm(f"{_I}.context_encoder.norm"),
    **_timm_block(f"{_I}.context_encoder.blocks.0"), **_BLOCKS2, **affine(f"{_I}.decoder.blocks.0.0", WIDTH, 4, 3, 3),
    **affine(f"{_I}.decoder.proj", WIDTH, WIDTH),
}  # fmt: skip
TEXT2: Shapes = {
    f"{_T}.local_encoder.embed_tokens.weight": (70, WIDTH), f"{_T}.local_encoder.embed_positions.weight": (34, WIDTH),
    **norm(f"{_T}.local_encoder.layernorm_embedding"), **_BLOCKS2, **affine(f"{_T}.decoder.blocks.0.0", WIDTH, WIDTH, 9),
    **affine(f"{_T}.decoder.proj.0", 2 * WIDTH, WIDTH), **affine(f"{_T}.decoder.proj.2", WIDTH, 2 * WIDTH),
}  # fmt: skip
MODELS = {"speech1": SPEECH1, "text1": TEXT1, "vision1": VISION1, "speech2": SPEECH2, "vision2": VISION2, "text2": TEXT2}


def _without(shapes: Shapes, *parts: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not any(part in name for part in parts)}


def _below(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


TEACHERS = {
    "speech1": _below(SPEECH1, "encoder."),
    "text1": _below(TEXT1, "encoder.sentence_encoder."),
    "vision1": VISION1,
    "speech2": _without(SPEECH2, ".decoder.", ".local_encoder.", ".project_features."),
    "vision2": _without(VISION2, ".decoder."),
    "text2": _below(TEXT2, "blocks."),
}
PREDICTION = ("final_proj", "regression_head", "lm_head", ".decoder.")
ENCODERS = {name: _without(shapes, *PREDICTION) for name, shapes in MODELS.items()}

CONFIGS: dict[str, dict[str, Any]] = {
    "speech1": {"_name": "data2vec_audio", "encoder_attention_heads": 4, "ema_layers_only": False, "ema_decay": 0.75,
                "average_top_k_layers": 2, "dropout": 0.2},
    "text1": {"_name": "data2vec_text", "transformer": {"encoder": {"attention_heads": 4}, "dropout": 0.2}, "ema_decay": 0.75},
    "vision1": {"model": "beit_base", "layer_results": "end", "target_layers": "[1]", "ema_decay": 0.75, "l1_beta": 1.5,
                "l2_loss": False, "drop_path": 0.125, "input_size": 20, "patch_size": (4, 4),
                "post_target_layer_norm": True},
    "speech2": {"_name": "data2vec_multi", "supported_modality": "AUDIO", "clone_batch": 3, "ema_decay": 0.75,
                "modalities": {"audio": {"mask_prob": 0.25}, "image": {"decoder": None}}, "ema_encoder_only": False},
    "vision2": {"_name": "data2vec_multi", "num_heads": 4, "clone_batch": 3, "ema_decay": 0.75, "cls_loss": 0.5,
                "ema_anneal_end_step": "${optimization.max_update}", "modalities": {"image": {"mask_prob": 0.75}}},
    "text2": {"_name": "data2vec_multi", "num_heads": 4, "clone_batch": 3, "ema_decay": 0.75, "modalities": "???"},
}  # fmt: skip


def random(shapes: Shapes, seed: int = 0, half: bool = False) -> dict[str, Tensor]:
    from data2vec.nn.position_encoders import sincos_positions

    generator = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, value in made.items():
        if name.endswith("positional_encoder.positions"):
            side = int(value.shape[1] ** 0.5)
            made[name] = sincos_positions((side, side), WIDTH)[None]
        if name.endswith("relative_position_index"):
            made[name] = torch.zeros(value.shape, dtype=torch.int64)
    return {name: value.half() if half and value.is_floating_point() else value for name, value in made.items()}


def content(name: str, config: Any = None, half: bool = True, **student: Tensor) -> dict[str, Any]:
    """The content of a pre-trained checkpoint: the student in half precision, the teacher in single."""
    weights: dict[str, Any] = random(MODELS[name], half=half) | student
    teacher = random(TEACHERS[name], seed=1)
    config = CONFIGS[name] if config is None else config
    if name == "vision1":
        return {"model": weights, "model_ema": teacher, "optimizer": {}, "epoch": 799, "args": argparse.Namespace(**config)}
    weights["encoder._ema" if name == "text1" else "_ema"] = teacher
    whole = {"model": config, "task": {"normalize": True, "mask_prob": 0.2}, "optimization": {"max_update": 77}}
    return {"args": None, "cfg": whole, "model": weights, "optimizer_history": [], "extra_state": {}}


def fine_tuned(name: str, head: Shapes, prefix: str = "", **outer: Any) -> dict[str, Any]:
    """The content of a fine-tuned checkpoint: encoder under `prefix`, head, and configuration."""
    weights = {prefix + each: value for each, value in random(ENCODERS[name], half=True).items()} | random(head, seed=2)
    inner = {"model": CONFIGS[name], "task": {"normalize": True}}
    nested = {"w2v_args" if prefix.startswith("w2v") else "pretrained_model_args": inner}
    return {"args": None, "cfg": {"model": outer | nested if prefix else CONFIGS[name]}, "model": weights}


def save(folder: Path, made: Any, name: str = "model.pt") -> Path:
    torch.save(made, folder / name)
    return folder / name
