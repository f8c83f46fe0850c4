"""The names in official files as today's official code has them, and which model they are of."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.fairseq import keys as fairseq
from data2vec.interop.fairseq.models import BEIT, Config, Family
from data2vec.interop.key_mapping import Table

Tensors = dict[str, Tensor]

RENAMED = [
    (r"^(w2v_encoder\.w2v_model|model)\.", ""),  # fine-tuned models
    (r"^w2v_encoder\.proj\.", "proj."),
    (r"^decoder\.", "encoder."),  # old text models, as the official code renames them
    (r"(^|\.)emb_layer_norm\.", r"\1layernorm_embedding."),
    (r"^encoder\.lm_head\.(\d)", r"encoder.regression_head.\1"),
    (r"^final_proj\.0\.", "final_proj."),  # the released speech model
    (r"\.positional_encoder\.(pos_embed|positions)$", ".fixed_positional_encoder.positions"),
]
PORT = [
    (r"^cls_emb$", "cls_token"),
    (r"^mask_emb$", "mask_token"),
    (r"^patch_embed\.conv\.", "patch_embed.proj."),
    (r"^encoder\.", ""),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.2\.", ".mlp.fc2."),
    (r"^final_proj\.", "lm_head."),
]
"""Version 1 for images was ported to fairseq; these are its names for those of the original."""
PORT_SIGN = "patch_embed.conv."
STARTS = {
    "feature_extractor.": Family("speech", 1),
    "encoder.sentence_encoder.": Family("text", 1),
    "patch_embed.": BEIT,
}
"""What a name of version 1 begins with."""
COMPUTED = re.compile(r"(^|\.)(version|encoder_mask|relative_position_index)$")
"""Stored, but of no use: they are computed."""
HEADS = re.compile(r"^(proj|fc_norm|head|classification_heads)\.")
"""What fine-tuning puts on an encoder."""


def renamed(tensors: Mapping[Any, Any], port: bool = False) -> Tensors:
    """Today's names, in float32; without what is computed, and what is not a tensor."""
    found = {}
    for key, value in tensors.items():
        name = ascii(str(key))[1:-1]  # safe to print, whatever the file has put into it
        if not isinstance(value, Tensor) or COMPUTED.search(name):
            continue
        for old, new in (*RENAMED, *PORT) if port else RENAMED:
            name = re.sub(old, new, name)
        found[name] = value.float() if value.is_floating_point() else value
    return found


def family_of(names: Iterable[str], where: str) -> Family:
    """Which of the official models has these (today's) names. Raises UserError when none has."""
    names = set(names)
    kinds = {found[1] for name in names if (found := re.match(r"modality_encoders\.(\w+)\.", name))}
    modalities: dict[str, Any] = {"AUDIO": "speech", "IMAGE": "vision", "TEXT": "text"}
    if len(kinds) > 1:
        raise UserError(f"{where}: is a model of several modalities, {', '.join(sorted(kinds))}; only one can be opened")
    if kinds & modalities.keys():
        return Family(modalities[kinds.pop()], 2)
    if {"encoder.pos_conv.0.weight_g", "encoder.pos_conv.0.weight_v"} & names:
        raise UserError(f"{where}: has one positional convolution with weight norm, as wav2vec 2.0 (pos_conv_depth: 1)")
    for start, family in STARTS.items():
        if any(name.startswith(start) for name in names):
            return family
    few = ", ".join(sorted(names)[:5]) or "no tensors"
    raise UserError(f"{where}: is no data2vec model of version 1 or 2; it has {few}")


def teacher_prefix(family: Family, names: Iterable[str]) -> str:
    """What the names in `_ema` lack, since only a part of the model was averaged."""
    first = {name.partition(".")[0] for name in names}
    if family.version == 2:
        return "blocks." if "0" in first else ""
    if "layers" not in first:
        return ""
    return "encoder." if family.modality == "speech" else "encoder.sentence_encoder."


def count(names: Iterable[str], start: str) -> int:
    """How many there are of a numbered part: one more than its highest number."""
    pattern = re.compile(re.escape(start) + r"(\d+)\.")
    return max((int(found[1]) + 1 for name in names if (found := pattern.match(name))), default=0)


def table(family: Family, config: Config, tables: int = 1) -> Table:
    """Our names for the official ones of a model of this configuration; `tables`: see `modality.position_tables`."""
    if family.version == 2:
        return fairseq.v2_table(config)
    if family.modality == "speech":
        return fairseq.speech_table(config)
    if family.modality == "text":
        return fairseq.TEXT
    each = tuple(f"blocks.{i}.attn.relative_position_bias_table" for i in range(tables))
    return {**fairseq.VISION, "position_encoder.table": each} if tables > 1 else fairseq.VISION
