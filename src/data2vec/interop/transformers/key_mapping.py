"""Key tables of the Data2Vec classes in transformers, with our parameter name on the left."""

from data2vec.interop.key_mapping import Table, affine

_AUDIO, _TEXT, _VISION = "encoder.layers.{i}", "encoder.layer.{i}", "encoder.layer.{i}"
_BLOCK = "transformer.blocks.{i}"

AUDIO: Table = {
    "local_encoder.mask_vector": "masked_spec_embed",
    **affine("local_encoder.conv.convs.{i}", "feature_extractor.conv_layers.{i}.conv"),
    **affine("local_encoder.conv.norms.{i}", "feature_extractor.conv_layers.{i}.layer_norm"),
    **affine("local_encoder.norm", "feature_projection.layer_norm"),
    **affine("local_encoder.project", "feature_projection.projection"),
    **affine("position_encoder.convs.{i}", "encoder.pos_conv_embed.layers.{i}.conv"),
    **affine("transformer.input_norm", "encoder.layer_norm"),
    **affine(f"{_BLOCK}.attention.qkv", *(f"{_AUDIO}.attention.{x}_proj" for x in "qkv")),
    **affine(f"{_BLOCK}.attention.out", f"{_AUDIO}.attention.out_proj"),
    **affine(f"{_BLOCK}.norm1", f"{_AUDIO}.layer_norm"),
    **affine(f"{_BLOCK}.ffn.0", f"{_AUDIO}.feed_forward.intermediate_dense"),
    **affine(f"{_BLOCK}.ffn.3", f"{_AUDIO}.feed_forward.output_dense"),
    **affine(f"{_BLOCK}.norm2", f"{_AUDIO}.final_layer_norm"),
}
"""Data2VecAudioModel"""

TEXT: Table = {
    "local_encoder.tokens.weight": "embeddings.word_embeddings.weight",
    "position_encoder.table.weight": "embeddings.position_embeddings.weight",
    **affine("position_encoder.norm", "embeddings.LayerNorm"),
    **affine(f"{_BLOCK}.attention.qkv", *(f"{_TEXT}.attention.self.{x}" for x in ("query", "key", "value"))),
    **affine(f"{_BLOCK}.attention.out", f"{_TEXT}.attention.output.dense"),
    **affine(f"{_BLOCK}.norm1", f"{_TEXT}.attention.output.LayerNorm"),
    **affine(f"{_BLOCK}.ffn.0", f"{_TEXT}.intermediate.dense"),
    **affine(f"{_BLOCK}.ffn.3", f"{_TEXT}.output.dense"),
    **affine(f"{_BLOCK}.norm2", f"{_TEXT}.output.LayerNorm"),
}
"""Data2VecTextModel; its token type embedding has no counterpart and is zero in converted models."""

VISION: Table = {
    "local_encoder.mask_vector": "embeddings.mask_token",
    **affine("local_encoder.project", "embeddings.patch_embeddings.projection"),
    "position_encoder.table": "encoder.relative_position_bias.relative_position_bias_table",
    "transformer.extra_tokens": "embeddings.cls_token",
    f"{_BLOCK}.attention.qkv.weight": tuple(f"{_VISION}.attention.attention.{x}.weight" for x in ("query", "key", "value")),
    f"{_BLOCK}.attention.q_bias": f"{_VISION}.attention.attention.query.bias",
    f"{_BLOCK}.attention.v_bias": f"{_VISION}.attention.attention.value.bias",
    **affine(f"{_BLOCK}.attention.out", f"{_VISION}.attention.output.dense"),
    **affine(f"{_BLOCK}.norm1", f"{_VISION}.layernorm_before"),
    **affine(f"{_BLOCK}.norm2", f"{_VISION}.layernorm_after"),
    **affine(f"{_BLOCK}.ffn.0", f"{_VISION}.intermediate.dense"),
    **affine(f"{_BLOCK}.ffn.3", f"{_VISION}.output.dense"),
    f"{_BLOCK}.scale1": f"{_VISION}.lambda_1",
    f"{_BLOCK}.scale2": f"{_VISION}.lambda_2",
    **affine("transformer.final_norm", "layernorm"),
}
"""Data2VecVisionModel with use_mask_token, use_shared_relative_position_bias and without use_mean_pooling"""
