"""The official models: their names for our parameters. Their configurations are read in `fairseq_config`."""

from collections.abc import Mapping
from typing import Any

from data2vec.interop.key_mapping import Table, affine


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


def speech_table(config: Mapping[str, Any]) -> Table:
    """The names of the speech model, which depend a little on its configuration."""
    table = dict(SPEECH)
    if config["extractor_mode"] != "layer_norm":
        table |= affine("local_encoder.conv.norms.0", "feature_extractor.conv_layers.0.2")
    if config["layer_norm_first"]:
        table |= affine("transformer.final_norm", "encoder.layer_norm")
    return table


def v2_table(config: Mapping[str, Any]) -> Table:
    """The names of a data2vec 2.0 model (examples/data2vec/models/data2vec2.py) by its configuration.

    Its decoder is here too, under `decoder`."""
    kind = config["supported_modality"]
    modality = config["modalities"][kind.lower()]
    root, prenet = f"modality_encoders.{kind}", modality["prenet_depth"]
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
        ours = f"transformer.blocks.{i}"
        theirs = f"{root}.context_encoder.blocks.{i}" if i < prenet else f"blocks.{i - prenet}"
        names = {"attention.qkv": "attn.qkv", "attention.out": "attn.proj", "norm1": "norm1", "norm2": "norm2",
                 "ffn.0": "mlp.fc1", "ffn.3": "mlp.fc2"}  # fmt: skip
        for name, foreign in names.items():
            table |= affine(f"{ours}.{name}", f"{theirs}.{foreign}")
    if kind == "AUDIO":
        table |= affine("local_encoder.conv.convs.{i}", f"{root}.local_encoder.conv_layers.{{i}}.0")
        layered = modality["extractor_mode"] == "layer_norm"
        table |= (
            affine("local_encoder.conv.norms.{i}", f"{root}.local_encoder.conv_layers.{{i}}.2.1")
            if layered
            else affine("local_encoder.conv.norms.0", f"{root}.local_encoder.conv_layers.0.2")
        )
        table |= affine("local_encoder.norm", f"{root}.project_features.1")
        table |= affine("local_encoder.project", f"{root}.project_features.2")
        for i in range(modality["conv_pos_depth"]):  # theirs begins with a transposition
            table |= affine(f"position_encoder.convs.{i}", f"{root}.relative_positional_encoder.{i + 1}.0")
        table["position_encoder.alibi.scale"] = f"{root}.alibi_scale"
    elif kind == "IMAGE":
        table |= affine("local_encoder.project", f"{root}.local_encoder.proj")
    else:
        table["local_encoder.tokens.weight"] = f"{root}.local_encoder.embed_tokens.weight"
        table["position_encoder.table.weight"] = f"{root}.local_encoder.embed_positions.weight"
        table |= affine("position_encoder.norm", f"{root}.local_encoder.layernorm_embedding")
    return table
