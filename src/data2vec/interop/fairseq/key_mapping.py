"""Where the keys of an official checkpoint are mapped: a table per model, with our parameter name on the left.

The tables use the key names of the current official code. `current_names` first renames keys of older files, of fine-tuned
models and of the fairseq port of the vision model to these. `key_table` picks the table of a model.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.key_mapping import Table, affine
from data2vec.settings import JsonDict, JsonMapping

FairseqConfig = JsonDict
"""The configuration of an official model or task, as plain containers."""
Tensors = dict[str, Tensor]
ModalityName = Literal["speech", "vision", "text", "sound"]
MODALITY_KEYS: dict[ModalityName, str] = {"speech": "AUDIO", "vision": "IMAGE", "text": "TEXT", "sound": "IMAGE"}
"""Our modality names and those in the keys of version 2: `modality_encoders.AUDIO.…`. EAT is the code for images."""


@dataclass(frozen=True)
class Family:
    """One of the six official models; or EAT, version 2 of sound."""

    modality: ModalityName
    version: Literal[1, 2]

    @property
    def modality_key(self) -> str:
        """Name of the modality in keys and configurations of version 2."""
        return MODALITY_KEYS[self.modality]

    def __str__(self) -> str:
        return "EAT" if self.modality == "sound" else f"data2vec {self.version} {self.modality}"

    def released_recipe(self, size: str) -> str:
        """The name of the recipe of the released model of this size: base, large or huge."""
        return f"{self.modality}/v{self.version}-{'eat-' if self.modality == 'sound' else ''}{size}"


SPEECH_1, TEXT_1 = Family("speech", 1), Family("text", 1)
EAT = Family("sound", 2)
BEIT = Family("vision", 1)
"""Version 1 for images was released outside fairseq, as a fork of BEiT."""


def _post_norm_blocks(prefix: str) -> dict[str, str | tuple[str, ...]]:
    """fairseq's TransformerSentenceEncoderLayer."""
    block, layer = "transformer.blocks.{i}", prefix + "layers.{i}"
    return {
        **affine(f"{block}.attention.qkv", *(f"{layer}.self_attn.{x}_proj" for x in "qkv")),
        **affine(f"{block}.attention.out", f"{layer}.self_attn.out_proj"),
        **affine(f"{block}.norm1", f"{layer}.self_attn_layer_norm"),
        **affine(f"{block}.ffn.0", f"{layer}.fc1"),
        **affine(f"{block}.ffn.3", f"{layer}.fc2"),
        **affine(f"{block}.norm2", f"{layer}.final_layer_norm"),
    }


SPEECH: Table = {
    "local_encoder.mask_vector": "mask_emb",
    **affine("local_encoder.conv.convs.{i}", "feature_extractor.conv_layers.{i}.0"),
    **affine("local_encoder.conv.norms.{i}", "feature_extractor.conv_layers.{i}.2.1"),
    **affine("local_encoder.norm", "layer_norm"),
    **affine("local_encoder.project", "post_extract_proj"),
    **affine("position_encoder.convs.{i}", "encoder.pos_conv.{i}.0"),
    **affine("transformer.input_norm", "encoder.layer_norm"),
    **_post_norm_blocks("encoder."),
    **affine("head.0", "final_proj"),
}
"""examples/data2vec/models/data2vec_audio.py"""

TEXT: Table = {
    "local_encoder.tokens.weight": "encoder.sentence_encoder.embed_tokens.weight",
    "position_encoder.table.weight": "encoder.sentence_encoder.embed_positions.weight",
    **affine("position_encoder.norm", "encoder.sentence_encoder.layernorm_embedding"),
    **_post_norm_blocks("encoder.sentence_encoder."),
    **affine("transformer.final_norm", "encoder.sentence_encoder.layer_norm"),
    **affine("head.{i}", "encoder.regression_head.{i}"),
}
"""examples/data2vec/models/data2vec_text.py"""

VISION: Table = {
    "local_encoder.mask_vector": "mask_token",
    **affine("local_encoder.project", "patch_embed.proj"),
    "position_encoder.table": "rel_pos_bias.relative_position_bias_table",
    "transformer.extra_tokens": "cls_token",
    **affine("transformer.blocks.{i}.attention.qkv", "blocks.{i}.attn.qkv"),
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


def speech_table(config: JsonMapping) -> Table:
    """The table of the version 1 speech model; norms depend on its configuration."""
    table = dict(SPEECH)
    if config["extractor_mode"] != "layer_norm":
        table |= affine("local_encoder.conv.norms.0", "feature_extractor.conv_layers.0.2")
    if config["layer_norm_first"]:
        table |= affine("transformer.final_norm", "encoder.layer_norm")
    return table


def vision_table(position_tables: int) -> Table:
    """The table of the version 1 vision model; fine-tuned models have a relative position bias table per block."""
    if position_tables == 1:
        return VISION
    per_block = tuple(f"blocks.{i}.attn.relative_position_bias_table" for i in range(position_tables))
    return {**VISION, "position_encoder.table": per_block}


def version2_table(config: JsonMapping) -> Table:
    """The table of a version 2 model (examples/data2vec/models/data2vec2.py), with its decoder under `decoder`."""
    modality_key = config["supported_modality"]
    modality = config["modalities"][modality_key.lower()]
    root, prenet = f"modality_encoders.{modality_key}", modality["prenet_depth"]
    table: dict[str, str | tuple[str, ...]] = {
        "transformer.extra_tokens": f"{root}.extra_tokens",
        **affine("transformer.input_norm", f"{root}.context_encoder.norm"),
        **affine("decoder.convs.{i}", f"{root}.decoder.blocks.{{i}}.0"),
    }
    if modality["decoder"]["projection_layers"] == 1:
        table |= affine("decoder.head.0", f"{root}.decoder.proj")
    else:
        table |= affine("decoder.head.{i}", f"{root}.decoder.proj.{{i}}")
    for i in range(prenet + config["depth"]):
        block = f"transformer.blocks.{i}"
        layer = f"{root}.context_encoder.blocks.{i}" if i < prenet else f"blocks.{i - prenet}"
        names = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj", "norm1": "norm1", "norm2": "norm2",
                 "ffn.0": "mlp.fc1", "ffn.3": "mlp.fc2"}  # fmt: skip
        for name, foreign in names.items():
            table |= affine(f"{block}.{name}", f"{layer}.{foreign}")
    if modality_key == "AUDIO":
        table |= affine("local_encoder.conv.convs.{i}", f"{root}.local_encoder.conv_layers.{{i}}.0")
        if modality["extractor_mode"] == "layer_norm":
            table |= affine("local_encoder.conv.norms.{i}", f"{root}.local_encoder.conv_layers.{{i}}.2.1")
        else:
            table |= affine("local_encoder.conv.norms.0", f"{root}.local_encoder.conv_layers.0.2")
        table |= affine("local_encoder.norm", f"{root}.project_features.1")
        table |= affine("local_encoder.project", f"{root}.project_features.2")
        for i in range(modality["conv_pos_depth"]):  # index 0 of the official module is a transpose
            table |= affine(f"position_encoder.convs.{i}", f"{root}.relative_positional_encoder.{i + 1}.0")
        table["position_encoder.alibi.scale"] = f"{root}.alibi_scale"
    elif modality_key == "IMAGE":
        table |= affine("local_encoder.project", f"{root}.local_encoder.proj")
    else:
        table["local_encoder.tokens.weight"] = f"{root}.local_encoder.embed_tokens.weight"
        table["position_encoder.table.weight"] = f"{root}.local_encoder.embed_positions.weight"
        table |= affine("position_encoder.norm", f"{root}.local_encoder.layernorm_embedding")
    return table


def key_table(family: Family, config: JsonMapping, position_tables: int = 1) -> Table:
    """The table of a model with this configuration; `position_tables` as in the settings of vision."""
    if family.version == 2:
        return version2_table(config)
    if family.modality == "speech":
        return speech_table(config)
    return TEXT if family.modality == "text" else vision_table(position_tables)


# Older and derived files: their keys under the current names.

CURRENT_NAMES = [
    (r"^(w2v_encoder\.w2v_model|model)\.", ""),  # fine-tuned models
    (r"^w2v_encoder\.proj\.", "proj."),
    (r"^decoder\.", "encoder."),  # old text models, renamed as in the official loader
    (r"(^|\.)emb_layer_norm\.", r"\1layernorm_embedding."),
    (r"^encoder\.lm_head\.(\d)", r"encoder.regression_head.\1"),
    (r"^final_proj\.0\.", "final_proj."),  # the released speech model
    (r"\.positional_encoder\.(pos_embed|positions)$", ".fixed_positional_encoder.positions"),
]
PORT_NAMES = [
    (r"^cls_emb$", "cls_token"),
    (r"^mask_emb$", "mask_token"),
    (r"^patch_embed\.conv\.", "patch_embed.proj."),
    (r"^encoder\.", ""),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"^final_proj\.", "lm_head."),
]
"""Keys of the fairseq port of the version 1 vision model, and those of the original."""
PORT_PREFIX = "patch_embed.conv."
"""Only the fairseq port has keys that start with this."""
COMPUTED = re.compile(r"(^|\.)(version|encoder_mask|relative_position_index)$")
"""Buffers that are stored in checkpoints and recomputed here."""
HEADS = re.compile(r"^(proj|fc_norm|head|classification_heads)\.")
"""Heads of fine-tuned models."""
VERSION_1_PREFIXES = {"feature_extractor.": SPEECH_1, "encoder.sentence_encoder.": TEXT_1, "patch_embed.": BEIT}


def current_names(tensors: Mapping[Any, Any], port: bool = False) -> Tensors:
    """The tensors in float32 under the current key names, without computed buffers and values that are not tensors.

    `port`: whether the keys are those of the fairseq port of the vision model."""
    renamed = {}
    for key, value in tensors.items():
        name = ascii(str(key))[1:-1]  # safe to print, whatever the file contains
        if not isinstance(value, Tensor) or COMPUTED.search(name):
            continue
        for pattern, replacement in (*CURRENT_NAMES, *PORT_NAMES) if port else CURRENT_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value.float() if value.is_floating_point() else value
    return renamed


def family_of_keys(keys: Iterable[str], where: str) -> Family:
    """The official model that has these (current) key names. Raises UserError when none does."""
    keys = set(keys)
    modality_keys = {match[1] for key in keys if (match := re.match(r"modality_encoders\.(\w+)\.", key))}
    if len(modality_keys) > 1:
        raise UserError(
            f"{where}: multimodal models are not supported ({', '.join(sorted(modality_keys))}); give a model of one modality"
        )
    for modality, modality_key in MODALITY_KEYS.items():
        if modality_key in modality_keys:
            return Family(modality, 2)
    if {"encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"} & keys:
        raise UserError(
            f"{where}: has a single positional convolution with weight norm, as in wav2vec 2.0 (pos_conv_depth: 1); "
            "only pos_conv_depth of 2 or more is supported"
        )
    for prefix, family in VERSION_1_PREFIXES.items():
        if any(key.startswith(prefix) for key in keys):
            return family
    examples = ", ".join(sorted(keys)[:5]) or "none"
    raise UserError(f"{where}: not a data2vec 1 or 2 model; its keys: {examples}")


def teacher_prefix(family: Family, keys: Iterable[str]) -> str:
    """The prefix that keys of the EMA teacher (`_ema`) lack where only a part of the model is averaged; else empty."""
    first = {key.partition(".")[0] for key in keys}
    if family.version == 2:
        return "blocks." if "0" in first else ""
    if "layers" not in first:
        return ""
    return "encoder." if family.modality == "speech" else "encoder.sentence_encoder."


def count_modules(keys: Iterable[str], prefix: str) -> int:
    """The number of modules that are numbered after `prefix`: the highest number plus one."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return max((int(match[1]) + 1 for key in keys if (match := pattern.match(key))), default=0)
