"""The sizes of an official model, in the terms of its configuration, from the names and shapes of its tensors."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.fairseq.config_to_recipe import layer_list
from data2vec.interop.fairseq.key_versions import Tensors, count
from data2vec.interop.fairseq.models import BEIT, Config, Family, ratio
from data2vec.nn.conv_feature_extractor import WAV2VEC

log = logging.getLogger(__name__)


def sizes(family: Family, tensors: Tensors, told: Config, where: str) -> Config:
    """What the tensors say, and of the configuration in the file, `told`, what only it can say of these.

    Raises UserError when something is told by neither."""
    return _SIZES.get(family, _version2)(family, tensors, told, where)


def merged(base: Config, over: Config) -> Config:
    """`base` with what is in `over`, section by section."""
    both = {k: merged(base[k], v) if isinstance(base.get(k), dict) and isinstance(v, dict) else v for k, v in over.items()}
    return base | both


def contradictions(told: Config, true: Config) -> list[str]:
    """Where the configuration in the file says something else than the tensors."""
    found = []
    for key, value in true.items():
        if isinstance(value, dict) and isinstance(told.get(key), dict):
            found += contradictions(told[key], value)
        elif key in told and key != "supported_modality" and not _same(told[key], value):
            found.append(f"{key} is {told[key]!r} in its configuration, and {value!r} by its tensors")
    return found


def _same(told: Any, true: Any) -> bool:
    if isinstance(told, str) and isinstance(true, str) and told.startswith("["):
        return layer_list(told) == layer_list(true)
    return told == true or (isinstance(true, float) and isinstance(told, int | float) and abs(told - true) < 1e-6)


def _part(config: Config, key: str) -> Config:
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _need(tensors: Tensors, name: str, where: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"{where}: weights are missing: {name}")
    return tensors[name]


def _has(key: str, tensors: Tensors, start: str, told: Config) -> Config:
    """A setting that says whether a part is there. What the configuration tells of, but is not there, is missing."""
    there = any(name.startswith(start) for name in tensors)
    return {} if not there and told.get(key) else {key: there}


def _heads(told: Any, width: int, where: str) -> int:
    """The heads that the configuration tells, or those of every released model of this width."""
    if isinstance(told, int) and told > 0 and width % told == 0:
        return told
    each = 80 if width == 1280 else 64
    if width % each:
        raise UserError(f"{where}: neither its tensors nor its configuration tell the number of attention heads")
    log.warning("%s: the number of attention heads is told nowhere; taken to be %d, of %d each", where, width // each, each)
    return width // each


def _convolutions(tensors: Tensors, start: str, told: Any, where: str) -> str:
    """fairseq's list of (channels, kernel, stride). A stride is in no tensor."""
    weights = [_need(tensors, f"{start}{i}.0.weight", where) for i in range(count(tensors, start))]
    shapes = [(w.shape[0], w.shape[2]) for w in weights]
    kernels = [kernel for _, kernel in shapes]
    for layers in (layer_list(told) if isinstance(told, str) else (), WAV2VEC):
        if [layer[1] for layer in layers] == kernels:
            return str([(*shape, layer[2]) for shape, layer in zip(shapes, layers, strict=True)])
    raise UserError(f"{where}: neither its tensors nor its configuration tell the strides of its convolutions, of {kernels}")


def _stack(tensors: Tensors, start: str, first: int, width: int, where: str) -> tuple[int, int, int]:
    """Depth, kernel and groups of a stack of positional convolutions, numbered from `first` on."""
    weight = _need(tensors, f"{start}{first}.0.weight", where)
    return count(tensors, start) - first, weight.shape[2], width // weight.shape[1]


def _speech(family: Family, tensors: Tensors, told: Config, where: str) -> Config:
    width = len(_need(tensors, "post_extract_proj.weight", where))
    depth, kernel, groups = _stack(tensors, "encoder.pos_conv.", 0, width, where)
    front = "feature_extractor.conv_layers."
    return {
        "encoder_embed_dim": width,
        "encoder_layers": count(tensors, "encoder.layers."),
        "encoder_ffn_embed_dim": len(_need(tensors, "encoder.layers.0.fc1.weight", where)),
        "encoder_attention_heads": _heads(told.get("encoder_attention_heads"), width, where),
        "conv_feature_layers": _convolutions(tensors, front, told.get("conv_feature_layers"), where),
        "extractor_mode": "layer_norm" if f"{front}0.2.1.weight" in tensors else "default",
        **_has("conv_bias", tensors, f"{front}0.0.bias", told),
        "pos_conv_depth": depth,
        "conv_pos": kernel * depth,
        "conv_pos_groups": groups,
    }


def _text(family: Family, tensors: Tensors, told: Config, where: str) -> Config:
    root, head = "encoder.sentence_encoder.", "encoder.regression_head."
    width = _need(tensors, f"{root}embed_tokens.weight", where).shape[1]
    whole = _part(told, "transformer")
    given = _part(whole, "encoder")
    return {
        **({"head_layers": count(tensors, head) // 2 + 1} if count(tensors, head) else {}),
        "transformer": {
            "max_source_positions": len(_need(tensors, f"{root}embed_positions.weight", where)) - 2,
            **_has("layernorm_embedding", tensors, f"{root}layernorm_embedding.", whole),
            "encoder": {
                "embed_dim": width,
                "layers": count(tensors, f"{root}layers."),
                "ffn_embed_dim": len(_need(tensors, f"{root}layers.0.fc1.weight", where)),
                "attention_heads": _heads(given.get("attention_heads"), width, where),
                **_has("normalize_before", tensors, f"{root}layer_norm.", given),
            },
        },
    }


def _vision(family: Family, tensors: Tensors, told: Config, where: str) -> Config:
    width, channels, _, patch = _need(tensors, "patch_embed.proj.weight", where).shape
    if channels != 3:
        raise UserError(f"{where}: in_chans {channels} cannot be represented: images have 3 colours")
    tables = [tensors[name] for name in tensors if name.endswith("relative_position_bias_table")]
    if not tables:
        raise UserError(
            f"{where}: weights are missing: rel_pos_bias.relative_position_bias_table; no other positions are known"
        )
    rows, heads = tables[0].shape
    scaled = any(".gamma_" in name for name in tensors)
    side = round(((rows - 3) ** 0.5 + 1) / 2)
    return {
        "embed_dim": width,
        "depth": count(tensors, "blocks."),
        "num_heads": heads,
        "mlp_ratio": ratio(width, len(_need(tensors, "blocks.0.mlp.fc1.weight", where))),
        "patch_size": patch,
        "img_size": side * patch,
        "use_shared_rel_pos_bias": True,
        "use_abs_pos_emb": "pos_embed" in tensors,
        **({} if scaled or told.get("layer_scale_init_value") else {"layer_scale_init_value": 0}),
    }


def _version2(family: Family, tensors: Tensors, told: Config, where: str) -> Config:
    root, kind = f"modality_encoders.{family.kind}.", family.kind.lower()
    width, main = len(_need(tensors, "blocks.0.attn.proj.weight", where)), count(tensors, "blocks.")
    own = _part(_part(told, "modalities"), kind)
    scale = tensors.get(f"{root}alibi_scale")
    heads = scale.shape[-3] if scale is not None and scale.shape[-3] > 1 else _heads(told.get("num_heads"), width, where)
    extra = tensors.get(f"{root}extra_tokens")
    tokens = own.get("num_extra_tokens", 0) if extra is None else extra.shape[-2]
    modality: Config = {
        "prenet_depth": count(tensors, f"{root}context_encoder.blocks."),
        "num_extra_tokens": tokens,
        **_MODALITIES[family.kind](tensors, root, width, own, where),
    }
    if scale is not None:  # one for all heads is as good as one each, and whether it was learned is over
        modality |= {"learned_alibi_scale": True, "learned_alibi_scale_per_head": True}
        modality |= {"learned_alibi_scale_per_layer": scale.ndim == 5 and len(scale) > 1}
    if f"{root}decoder.blocks.0.0.weight" in tensors:
        modality["decoder"] = _decoder(tensors, f"{root}decoder.", width)
    return {
        "supported_modality": family.kind,
        "modalities": {kind: modality},
        "embed_dim": width,
        "depth": main,
        "num_heads": heads,
        "mlp_ratio": ratio(width, len(_need(tensors, "blocks.0.mlp.fc1.weight", where))),
        **({"layer_norm_first": True} if "norm.weight" in tensors else {}),
    }


def _decoder(tensors: Tensors, root: str, width: int) -> Config:
    weight, proj = tensors[f"{root}blocks.0.0.weight"], f"{root}proj."
    first = tensors.get(f"{proj}0.weight")
    return {
        "decoder_layers": count(tensors, f"{root}blocks."),
        "decoder_dim": len(weight),
        "decoder_groups": width // weight.shape[1],
        "decoder_kernel": weight.shape[-1],
        "projection_layers": count(tensors, proj) // 2 + 1,
        **({} if first is None else {"projection_ratio": len(first) / first.shape[1]}),
    }


def _audio2(tensors: Tensors, root: str, width: int, told: Config, where: str) -> Config:
    depth, kernel, groups = _stack(tensors, f"{root}relative_positional_encoder.", 1, width, where)
    front = f"{root}local_encoder.conv_layers."
    return {
        "feature_encoder_spec": _convolutions(tensors, front, told.get("feature_encoder_spec"), where),
        "extractor_mode": "layer_norm" if f"{front}0.2.1.weight" in tensors else "default",
        "conv_pos_depth": depth,
        "conv_pos_width": kernel * depth,
        "conv_pos_groups": groups,
        **_has("use_alibi_encoder", tensors, f"{root}alibi_scale", told),
        "learned_alibi": f"{root}alibi_bias" in tensors,
    }


def _image2(tensors: Tensors, root: str, width: int, told: Config, where: str) -> Config:
    _, channels, _, patch = _need(tensors, f"{root}local_encoder.proj.weight", where).shape
    places = tensors.get(f"{root}fixed_positional_encoder.positions")
    found: Config = {"patch_size": patch, "in_chans": channels}
    return found if places is None else found | {"input_size": round(places.shape[-2] ** 0.5) * patch}


def _text2(tensors: Tensors, root: str, width: int, told: Config, where: str) -> Config:
    local = f"{root}local_encoder."
    _need(tensors, f"{local}embed_tokens.weight", where)
    return {
        "max_source_positions": len(_need(tensors, f"{local}embed_positions.weight", where)) - 2,
        **_has("layernorm_embedding", tensors, f"{local}layernorm_embedding.", told),
    }


_MODALITIES: dict[str, Callable[[Tensors, str, int, Config, str], Config]] = {
    "AUDIO": _audio2,
    "IMAGE": _image2,
    "TEXT": _text2,
}
_SIZES: dict[Family, Callable[[Family, Tensors, Config, str], Config]] = {
    Family("speech", 1): _speech,
    Family("text", 1): _text,
    BEIT: _vision,
}
