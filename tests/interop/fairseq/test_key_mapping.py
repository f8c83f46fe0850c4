"""Keys and settings of official version 2 models: every parameter has one key, unsupported settings are refused."""

import copy
from typing import Any

import pytest

from data2vec.interop.fairseq.config import version2_recipe
from data2vec.interop.fairseq.key_mapping import version2_table
from data2vec.interop.key_mapping import foreign_keys
from data2vec.objective import Data2Vec2
from data2vec.objective.masking import FixedBlockMask, RandomMask
from data2vec.recipe.loading import validate_recipe

COMMON: dict[str, Any] = {
    "loss_beta": 0, "loss_scale": None, "depth": 2, "end_drop_path_rate": 0.0, "num_heads": 4, "norm_eps": 1e-5,
    "norm_affine": True, "encoder_dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "layerdrop": 0.0,
    "embed_dim": 32, "mlp_ratio": 2.0, "layer_norm_first": False, "average_top_k_layers": 2, "end_of_block_targets": False,
    "clone_batch": 3, "layer_norm_target_layer": False, "batch_norm_target_layer": False, "instance_norm_target_layer": True,
    "instance_norm_targets": False, "layer_norm_targets": True, "ema_decay": 0.6, "ema_end_decay": 0.9,
    "ema_anneal_end_step": 10, "ema_encoder_only": False, "shared_decoder": None, "min_target_var": 0.1,
    "min_pred_var": 0.01, "cls_loss": 0, "recon_loss": 0, "d2v_loss": 1,
}  # fmt: skip
MODALITY: dict[str, Any] = {
    "prenet_depth": 0, "num_extra_tokens": 0, "init_extra_token_zero": True, "mask_noise_std": 0.01, "mask_prob": 0.5,
    "inverse_mask": False, "mask_prob_adjust": 0.05, "keep_masked_pct": 0, "mask_length": 5, "encoder_zero_mask": True,
    "mask_channel_prob": 0.0, "ema_local_encoder": False, "local_grad_mult": 1.0, "use_alibi_encoder": False,
    "learned_alibi": False, "learned_alibi_scale_per_head": False, "learned_alibi_scale_per_layer": False,
    "decoder": {
        "decoder_dim": 16, "decoder_groups": 8, "decoder_kernel": 7, "decoder_layers": 2, "input_dropout": 0.1,
        "add_positions_masked": False, "add_positions_all": False, "decoder_residual": True, "projection_layers": 1,
        "projection_ratio": 2.0,
    },
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "AUDIO": {
        "use_alibi_encoder": True, "learned_alibi_scale_per_head": True, "extractor_mode": "layer_norm",
        "feature_encoder_spec": "[(16,10,5)]+[(16,3,2)]*2", "conv_pos_width": 15, "conv_pos_groups": 16, "conv_pos_depth": 3,
        "conv_pos_pre_ln": False,
    },
    "IMAGE": {
        "num_extra_tokens": 1, "init_extra_token_zero": False, "inverse_mask": True, "ema_local_encoder": True,
        "input_size": 48, "patch_size": 8, "in_chans": 3, "fixed_positions": True, "transformer_decoder": False,
    },
    "TEXT": {
        "mask_prob": 0.48, "mask_length": 1, "max_source_positions": 40, "learned_pos": True, "no_scale_embedding": True,
        "layernorm_embedding": True, "no_token_positional_embeddings": False,
    },
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", OWN)


def config(kind: str, **changes: Any) -> dict[str, Any]:
    """A configuration of the official form; `changes` go where their key is: on top, to the modality or its decoder."""
    made = copy.deepcopy(COMMON | {"supported_modality": kind, "modalities": {kind.lower(): MODALITY | OWN[kind]}})
    modality = made["modalities"][kind.lower()]
    for key, value in changes.items():
        (place,) = [place for place in (made, modality, modality["decoder"]) if key in place]
        place[key] = value
    return made


def objective(given: dict[str, Any]) -> Data2Vec2:
    recipe = validate_recipe(version2_recipe(given, vocab_size=60) | {"data": {}}, "official")
    made = recipe.build_objective()
    assert isinstance(made, Data2Vec2)
    return made


def affine(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in ("weight", "bias")}


def official(kind: str, prenet: int, projection: int) -> set[str]:
    """The parameters of the official model, as its state dict names them."""
    root = f"modality_encoders.{kind}"
    parts = ("attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
    blocks = [f"{root}.context_encoder.blocks.{i}" for i in range(prenet)] + [f"blocks.{i}" for i in range(2)]
    heads = ["proj"] if projection == 1 else ["proj.0", "proj.2"]
    names = affine(*(f"{block}.{part}" for block in blocks for part in parts))
    names |= affine(f"{root}.decoder.blocks.0.0", f"{root}.decoder.blocks.1.0", *(f"{root}.decoder.{head}" for head in heads))
    if kind != "TEXT" or prenet:
        names |= affine(f"{root}.context_encoder.norm")
    if kind == "AUDIO":
        names |= {f"{root}.local_encoder.conv_layers.{i}.0.weight" for i in range(3)}
        names |= affine(*(f"{root}.local_encoder.conv_layers.{i}.2.1" for i in range(3)))
        names |= affine(f"{root}.project_features.1", f"{root}.project_features.2")
        names |= affine(*(f"{root}.relative_positional_encoder.{i}.0" for i in (1, 2, 3)))
        names |= {f"{root}.alibi_scale"}
    elif kind == "IMAGE":
        names |= affine(f"{root}.local_encoder.proj") | {f"{root}.extra_tokens"}
    else:
        names |= {f"{root}.local_encoder.{table}.weight" for table in ("embed_tokens", "embed_positions")}
        names |= affine(f"{root}.local_encoder.layernorm_embedding")
    return names


@KINDS
@pytest.mark.parametrize("prenet", [0, 2])
@pytest.mark.parametrize("projection", [1, 2])
def test_every_parameter_has_exactly_one_official_key(kind: str, prenet: int, projection: int) -> None:
    given = config(kind, prenet_depth=prenet, projection_layers=projection)
    whole = objective(given)
    ours = [name.removeprefix("student.") for name, _ in whole.named_parameters() if not name.startswith("teacher.")]
    keys = [key for several in foreign_keys(ours, version2_table(given)).values() for key in several]
    assert len(keys) == len(set(keys))
    assert set(keys) == official(kind, prenet, projection)


def test_speech_with_group_norm_and_extra_tokens_has_official_keys() -> None:
    given = config("AUDIO", extractor_mode="default", num_extra_tokens=2)
    table = foreign_keys([n.removeprefix("student.") for n, _ in objective(given).student.named_parameters()],
                       version2_table(given))  # fmt: skip
    assert table["local_encoder.conv.norms.0.weight"] == ("modality_encoders.AUDIO.local_encoder.conv_layers.0.2.weight",)
    assert table["transformer.extra_tokens"] == ("modality_encoders.AUDIO.extra_tokens",)


@KINDS
def test_official_settings_become_recipe_settings(kind: str) -> None:
    given = config(kind, prenet_depth=1, projection_layers=2, decoder_residual=False, mask_noise_std=0.03, cls_loss=0.01)
    recipe = validate_recipe(version2_recipe(given, vocab_size=60) | {"data": {}}, "official")
    encoder, method = recipe.encoder, recipe.objective
    assert (encoder.width, encoder.layers, encoder.prenet_layers, encoder.heads, encoder.ffn_width) == (32, 3, 1, 4, 64)
    assert (encoder.norm, encoder.input_norm, encoder.final_norm) == ("post", True, False)
    assert (encoder.extra_tokens, encoder.extra_token_std) == ((1, 1.0) if kind == "IMAGE" else (0, 0.02))
    assert (method.masks_per_sample, method.cls_loss, method.cls_reduction) == (3, 0.01, "sum")
    assert (method.target.top_k, method.target.per_layer_norms, method.target.final_norms) == (2, ("instance",), ("layer",))
    decoder = method.decoder
    assert decoder.kernel == ((7, 7) if kind == "IMAGE" else (7,))
    assert (decoder.layers, decoder.groups, decoder.width, decoder.head_layers) == (2, 8, 16, 2)
    assert (decoder.residual, decoder.dropout, decoder.noise_std) == (False, 0.1, 0.03)
    blocks = FixedBlockMask(prob=0.5, adjust=0.05, length=5, inverse=kind == "IMAGE")
    assert method.mask == (RandomMask(prob=0.48) if kind == "TEXT" else blocks)
    shared = kind != "IMAGE"
    assert method.teacher.local_encoder == ("shared" if shared else "averaged")
    assert method.teacher.position_encoder == ("shared" if kind == "TEXT" else "averaged")


def test_text_without_prenet_has_no_input_norm() -> None:
    assert version2_recipe(config("TEXT"), 60)["encoder"]["input_norm"] is False
    assert version2_recipe(config("TEXT", prenet_depth=1), 60)["encoder"]["input_norm"] is True


@KINDS
def test_pre_norm_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^layer_norm_first: true is refused: in the released pre-norm block .*$"):
        version2_recipe(config(kind, layer_norm_first=True), 60)


@KINDS
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_affine", False), ("recon_loss", 1), ("d2v_loss", 0.5), ("shared_decoder", {"decoder_dim": 8}),
        ("encoder_zero_mask", False), ("keep_masked_pct", 0.1), ("mask_channel_prob", 0.1),
        ("add_positions_masked", True), ("add_positions_all", True), ("learned_alibi", True),
    ],
)  # fmt: skip
def test_setting_unsupported_for_all_modalities_is_refused_by_name(key: str, value: object, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key} .* is not supported, only"):
        version2_recipe(config(kind, **{key: value}), 60)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("AUDIO", "conv_pos_pre_ln", True), ("AUDIO", "learned_alibi_scale_per_head", False),
        ("AUDIO", "learned_alibi_scale_per_layer", True), ("AUDIO", "conv_pos_depth", 1),
        ("IMAGE", "use_alibi_encoder", True), ("IMAGE", "local_grad_mult", 0.5), ("IMAGE", "fixed_positions", False),
        ("IMAGE", "transformer_decoder", True), ("IMAGE", "in_chans", 1),
        ("TEXT", "use_alibi_encoder", True), ("TEXT", "local_grad_mult", 0.5), ("TEXT", "learned_pos", False),
        ("TEXT", "no_token_positional_embeddings", True),
    ],
)  # fmt: skip
def test_setting_unsupported_for_a_modality_is_refused_by_name(kind: str, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{key}\b.* is (not )?supported"):
        version2_recipe(config(kind, **{key: value}), 60)


def test_setting_is_refused_only_where_it_has_an_effect() -> None:
    with pytest.raises(ValueError, match=r"^projection_ratio 4 is not supported, only 2"):
        version2_recipe(config("TEXT", projection_layers=2, projection_ratio=4), 60)
    version2_recipe(config("TEXT", projection_ratio=4), 60)
    version2_recipe(config("AUDIO", use_alibi_encoder=False, learned_alibi_scale_per_head=False))


@pytest.mark.parametrize("kind", ["AUDIO", "IMAGE", "TEXT"])
def test_teacher_with_ema_encoder_only_averages_main_blocks_only(kind: str) -> None:
    recipe = validate_recipe(version2_recipe(config(kind, ema_encoder_only=True, prenet_depth=1), 60) | {"data": {}}, kind)
    whole = recipe.build_objective()
    assert {name.split(".")[2] for name, _ in whole.teacher.ema.named_parameters()} == {str(i) for i in (1, 2)}
