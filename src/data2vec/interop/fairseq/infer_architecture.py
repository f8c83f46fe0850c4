"""The recipe of the model in an official checkpoint: sizes from its tensors, the rest from its configuration, and what neither
says from the released recipe.

`architecture_from_tensors` gives sizes under the names of official configurations; `infer_recipe` puts everything together.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data2vec.data.tokenizer import has_tokenizer
from data2vec.errors import UserError, get_logger
from data2vec.interop.fairseq.checkpoint_file import FairseqCheckpoint
from data2vec.interop.fairseq.config import (
    SOUND_SETTINGS,
    Sections,
    fairseq_config,
    mlp_ratio,
    parse_conv_layers,
    recipe_sections,
)
from data2vec.interop.fairseq.key_mapping import BEIT, EAT, SPEECH_1, TEXT_1, FairseqConfig, Family, Tensors, count_modules
from data2vec.interop.fairseq.own_settings import (
    PRETRAINING_ONLY,
    RecordedConfig,
    Settings,
    flatten,
    nest,
    usable_settings,
    without_counterpart,
)
from data2vec.modalities.text import TextData
from data2vec.nn.conv_feature_extractor import WAV2VEC
from data2vec.objective.latent import LatentObjective
from data2vec.recipe.loading import load_recipe, validate_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.shipped import recipe_names

log = get_logger(__name__)

ENCODER_SETTINGS = {
    "_name", "supported_modality", "type", "layer_type", "layer_norm_first", "normalize_before", "activation_fn", "norm_eps",
    "norm_affine", "layer_norm_eps", "layer_scale_init_value", "use_shared_rel_pos_bias", "use_abs_pos_emb", "img_size",
    "input_size", "learned_pos", "no_token_positional_embeddings", "no_scale_embedding", "fixed_positions", "learned_alibi",
    "use_alibi_encoder", "conv_pos_pre_ln", "in_chans",
}  # fmt: skip
"""Official settings that change what an encoder computes and do not follow from its tensors."""


@dataclass(frozen=True)
class InferredRecipe:
    """The recipe of a checkpoint and what it was inferred from."""

    recipe: Recipe
    config: FairseqConfig
    """The complete official configuration of the model."""
    objective: LatentObjective | None
    """On the meta device, without values; None where the checkpoint holds an encoder only."""
    reads: set[tuple[str, ...]]
    """The paths of the settings that were read: ("model", …)."""


def infer_recipe(checkpoint: FairseqCheckpoint, architecture: FairseqConfig) -> InferredRecipe:
    """The recipe of the model in a checkpoint; `architecture` as inferred from its tensors.

    Settings in its configuration that cannot be used are left at the value of the released recipe, one by one, with a warning
    that lists them. Raises UserError when the encoder is not supported."""
    own = _own_settings(checkpoint)
    encoder = {path: value for path, value in own.items() if path[-1] in ENCODER_SETTINGS}
    others = {path: value for path, value in own.items() if path not in encoder}

    def problem_of(settings: Settings) -> str | None:
        try:
            _infer(checkpoint, nest(encoder | settings), architecture)
        except (UserError, ValueError, KeyError, TypeError, AttributeError) as problem:
            return str(problem).partition("\n")[0]
        return None

    used, problems = others, dict[tuple[str, ...], str]()
    if problem_of(others) is not None:
        if (problem := problem_of({})) is not None:
            raise UserError(f"{checkpoint.path}: {problem}")
        used, problems = usable_settings(others, problem_of)
    inferred = _infer(checkpoint, nest(encoder | used), architecture)
    _warn_of_settings(checkpoint, own, problems, inferred)
    return inferred


def _own_settings(checkpoint: FairseqCheckpoint) -> Settings:
    """The settings in the file: "model" and "task", without those of other modalities and of a decoder that it lacks."""
    key = checkpoint.family.modality_key.lower()
    model = checkpoint.model_config
    if checkpoint.family.version == 2 and isinstance(modalities := model.get("modalities"), dict):
        own = {name: value for name, value in _subsection(modalities, key).items() if (name, value) != ("decoder", None)}
        model = model | {"modalities": {key: own}}
    return flatten({"model": model}) | flatten({"task": checkpoint.task_config})


def _warn_of_settings(
    checkpoint: FairseqCheckpoint, own: Settings, problems: dict[tuple[str, ...], str], inferred: InferredRecipe
) -> None:
    def listed(settings: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
        names = {path: ".".join(path[1:]) for path in settings}
        return [path for path in names if not (checkpoint.head and PRETRAINING_ONLY.search(names[path]))]

    if paths := listed(problems):
        lines = (f"{'.'.join(path[1:])} {own[path]!r} ({problems[path]})" for path in paths)
        log.warning("%s: settings not understood, left at those of the released recipe: %s", checkpoint.path, "; ".join(lines))
    if "_name" not in checkpoint.model_config:  # then they are the arguments of a command, most of which are not of the model
        return
    model = {path: value for path, value in own.items() if path[0] == "model" and path not in problems}
    if paths := listed(without_counterpart(model, inferred.reads)):
        lines = (f"{'.'.join(path[1:])} {own[path]!r}" for path in paths)
        log.warning("%s: settings without a counterpart here, ignored: %s", checkpoint.path, "; ".join(lines))


def _infer(checkpoint: FairseqCheckpoint, own: FairseqConfig, architecture: FairseqConfig) -> InferredRecipe:
    family, model_config, task_config = checkpoint.family, own.get("model", {}), own.get("task", {})
    released_config, released_task, _ = fairseq_config(_released_recipe(family, architecture))
    config = merge_configs(merge_configs(released_config, model_config), architecture)
    _match_tensors(config, model_config, checkpoint)
    vocab = next((len(value) for name, value in checkpoint.student.items() if name.endswith("embed_tokens.weight")), 0)
    reads: set[tuple[str, ...]] = set()
    sections = recipe_sections(family, RecordedConfig(config, reads, ("model",)), vocab, released_task | task_config)
    reads |= flatten({"model": architecture}).keys()
    sections = merge_configs(sections, _sections_from_tensors(checkpoint, config))
    if family == EAT and isinstance(stored := checkpoint.own_settings.get("modality"), dict):
        sections["modality"] |= {key: stored[key] for key in SOUND_SETTINGS if key in stored}
    data: FairseqConfig = {}
    if family.modality == "text":
        data["block_size"] = min(TextData().block_size, sections["modality"]["max_length"])
        if has_tokenizer(checkpoint.path.parent):
            data["tokenizer"] = str(checkpoint.path.parent.resolve())
    recipe = validate_recipe({**sections, "data": data}, "its recipe")
    if not checkpoint.teacher and not checkpoint.has_prediction_head:
        return InferredRecipe(recipe, config, None, reads)
    with torch.device("meta"):
        objective = recipe.build_objective()
    assert isinstance(objective, LatentObjective)
    return InferredRecipe(recipe, config, objective, reads)


def _released_recipe(family: Family, architecture: FairseqConfig) -> Recipe:
    """The shipped recipe of the released model that is closest in size."""
    width = (
        architecture.get("encoder_embed_dim")
        or architecture.get("embed_dim")
        or architecture["transformer"]["encoder"]["embed_dim"]
    )
    sizes = ["huge"] * (width >= 1280) + ["large"] * (width >= 1024) + ["base"]
    shipped = recipe_names()
    return load_recipe(next(name for size in sizes if (name := family.released_recipe(size)) in shipped))


def _match_tensors(config: FairseqConfig, model_config: FairseqConfig, checkpoint: FairseqCheckpoint) -> None:
    """Adapt settings that the file does not configure: not more averaged layers than exist, the parts of the teacher, and in
    version 2 dropouts that follow the first."""
    blocks = config.get("encoder_layers") or config.get("depth") or config["transformer"]["encoder"]["layers"]
    if checkpoint.family == BEIT:
        if "target_layers" not in model_config:
            config["target_layers"] = list(range(max(0, blocks - len(config["target_layers"])), blocks))
    elif "average_top_k_layers" not in model_config:
        config["average_top_k_layers"] = min(config["average_top_k_layers"], blocks)
    if checkpoint.family.version == 2:
        _follow_first_dropout(config, model_config, checkpoint.family.modality_key.lower())
    teacher = checkpoint.teacher
    if teacher and checkpoint.family.version == 2:
        modality_key = checkpoint.family.modality_key
        local_encoder = f"modality_encoders.{modality_key}.local_encoder."
        config["ema_encoder_only"] = checkpoint.teacher_prefix == "blocks."
        config["modalities"][modality_key.lower()]["ema_local_encoder"] = any(
            name.startswith(local_encoder) for name in teacher
        )
    if teacher and checkpoint.family == SPEECH_1:
        partial = bool(checkpoint.teacher_prefix)
        config |= {"ema_transformer_only": partial, "ema_layers_only": partial and config["ema_layers_only"]}


def _follow_first_dropout(config: FairseqConfig, model_config: FairseqConfig, key: str) -> None:
    """Older files have one dropout and one layerdrop, for which the official code has several by now."""
    modality, own = config["modalities"][key], _subsection(_subsection(model_config, "modalities"), key)
    if "post_mlp_drop" not in model_config:
        config["post_mlp_drop"] = config["encoder_dropout"]
    for name, first in (
        ("prenet_dropout", "encoder_dropout"),
        ("dropout", "encoder_dropout"),
        ("prenet_layerdrop", "layerdrop"),
    ):
        if name not in own:
            modality[name] = config[first]


def _sections_from_tensors(checkpoint: FairseqCheckpoint, config: FairseqConfig) -> Sections:
    """Recipe settings that official configurations lack."""
    student = checkpoint.student
    if checkpoint.family != BEIT:
        return {}
    table_per_block = "rel_pos_bias.relative_position_bias_table" not in student
    modality: FairseqConfig = {"position_tables": config["depth"] if table_per_block else 1}
    encoder: FairseqConfig = {"key_bias": "blocks.0.attn.qkv.bias" in student}
    if checkpoint.head:
        modality |= {"mask_vector": "mask_token" in student, "mean": [0.5] * 3, "std": [0.5] * 3}
        encoder |= {"final_norm": "norm.weight" in student}
    return {"modality": modality, "encoder": encoder}


def merge_configs(base: FairseqConfig, over: FairseqConfig) -> FairseqConfig:
    """`base` updated with `over`, section by section."""
    merged = {
        k: merge_configs(base[k], v) if isinstance(base.get(k), dict) and isinstance(v, dict) else v for k, v in over.items()
    }
    return base | merged


def config_contradictions(config: FairseqConfig, architecture: FairseqConfig) -> list[str]:
    """Settings in which the configuration of a file differs from its tensors, as sentences."""
    contradictions = []
    for key, value in architecture.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            contradictions += config_contradictions(config[key], value)
        elif key in config and key != "supported_modality" and not _same_setting(config[key], value):
            contradictions.append(f"{key} is {config[key]!r} in its configuration but {value!r} in its tensors")
    return contradictions


def _same_setting(configured: Any, inferred: Any) -> bool:
    if isinstance(configured, str) and isinstance(inferred, str) and configured.startswith("["):
        return parse_conv_layers(configured) == parse_conv_layers(inferred)
    if isinstance(inferred, float) and isinstance(configured, int | float):
        return abs(configured - inferred) < 1e-6
    return configured == inferred


# Sizes from names and shapes of tensors. `config` is the configuration in the file, for what tensors cannot say.


def architecture_from_tensors(family: Family, tensors: Tensors, config: FairseqConfig, where: str) -> FairseqConfig:
    """Sizes of a model, as settings of its official configuration.

    Raises UserError when neither tensors nor `config` determine one of them, and for tensors of other shapes."""
    infer = {SPEECH_1: _speech, TEXT_1: _text, BEIT: _vision}.get(family, _version2)
    try:
        return infer(family, tensors, config, where)
    except (IndexError, ValueError, ZeroDivisionError):  # of a shape with too few axes
        raise UserError(f"{where}: its weights have shapes that no data2vec model has") from None


def _subsection(config: FairseqConfig, key: str) -> FairseqConfig:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _required(tensors: Tensors, name: str, where: str) -> Tensor:
    if name not in tensors:
        raise UserError(f"{where}: weights are missing: {name}")
    return tensors[name]


def _presence(key: str, tensors: Tensors, prefix: str, config: FairseqConfig) -> FairseqConfig:
    """The setting `key` for whether a part exists. A part that is configured but absent counts as missing weights later."""
    present = any(name.startswith(prefix) for name in tensors)
    return {} if not present and config.get(key) else {key: present}


def _attention_heads(configured: Any, width: int, where: str) -> int:
    """The configured number of heads, or that of every released model of this width."""
    if isinstance(configured, int) and configured > 0 and width % configured == 0:
        return configured
    head_width = 80 if width == 1280 else 64
    if width % head_width:
        raise UserError(f"{where}: neither its tensors nor its configuration give the number of attention heads")
    heads = width // head_width
    log.warning("%s: number of attention heads not configured; using %d, of width %d", where, heads, head_width)
    return heads


def _conv_layers(tensors: Tensors, prefix: str, configured: Any, where: str) -> str:
    """fairseq's list of (channels, kernel, stride); strides are in no tensor."""
    weights = [_required(tensors, f"{prefix}{i}.0.weight", where) for i in range(count_modules(tensors, prefix))]
    shapes = [(w.shape[0], w.shape[2]) for w in weights]
    kernels = [kernel for _, kernel in shapes]
    for layers in (parse_conv_layers(configured) if isinstance(configured, str) else (), WAV2VEC):
        if [layer[1] for layer in layers] == kernels:
            return str([(*shape, layer[2]) for shape, layer in zip(shapes, layers, strict=True)])
    raise UserError(f"{where}: neither its tensors nor its configuration give the strides of the convolutions {kernels}")


def _positional_convolutions(tensors: Tensors, prefix: str, first: int, width: int, where: str) -> tuple[int, int, int]:
    """Depth, kernel and groups of the positional convolutions, which are numbered from `first`."""
    weight = _required(tensors, f"{prefix}{first}.0.weight", where)
    return count_modules(tensors, prefix) - first, weight.shape[2], width // weight.shape[1]


def _speech(family: Family, tensors: Tensors, config: FairseqConfig, where: str) -> FairseqConfig:
    width = len(_required(tensors, "post_extract_proj.weight", where))
    depth, kernel, groups = _positional_convolutions(tensors, "encoder.pos_conv.", 0, width, where)
    extractor = "feature_extractor.conv_layers."
    return {
        "encoder_embed_dim": width,
        "encoder_layers": count_modules(tensors, "encoder.layers."),
        "encoder_ffn_embed_dim": len(_required(tensors, "encoder.layers.0.fc1.weight", where)),
        "encoder_attention_heads": _attention_heads(config.get("encoder_attention_heads"), width, where),
        "conv_feature_layers": _conv_layers(tensors, extractor, config.get("conv_feature_layers"), where),
        "extractor_mode": "layer_norm" if f"{extractor}0.2.1.weight" in tensors else "default",
        **_presence("conv_bias", tensors, f"{extractor}0.0.bias", config),
        "pos_conv_depth": depth,
        "conv_pos": kernel * depth,
        "conv_pos_groups": groups,
    }


def _text(family: Family, tensors: Tensors, config: FairseqConfig, where: str) -> FairseqConfig:
    root, head = "encoder.sentence_encoder.", "encoder.regression_head."
    width = _required(tensors, f"{root}embed_tokens.weight", where).shape[1]
    transformer = _subsection(config, "transformer")
    encoder = _subsection(transformer, "encoder")
    return {
        **({"head_layers": count_modules(tensors, head) // 2 + 1} if count_modules(tensors, head) else {}),
        "transformer": {
            "max_source_positions": len(_required(tensors, f"{root}embed_positions.weight", where)) - 2,
            **_presence("layernorm_embedding", tensors, f"{root}layernorm_embedding.", transformer),
            "encoder": {
                "embed_dim": width,
                "layers": count_modules(tensors, f"{root}layers."),
                "ffn_embed_dim": len(_required(tensors, f"{root}layers.0.fc1.weight", where)),
                "attention_heads": _attention_heads(encoder.get("attention_heads"), width, where),
                **_presence("normalize_before", tensors, f"{root}layer_norm.", encoder),
            },
        },
    }


def _vision(family: Family, tensors: Tensors, config: FairseqConfig, where: str) -> FairseqConfig:
    width, channels, _, patch = _required(tensors, "patch_embed.proj.weight", where).shape
    if channels != 3:
        raise UserError(f"{where}: in_chans {channels} is not supported; images must have 3 channels")
    tables = [tensors[name] for name in tensors if name.endswith("relative_position_bias_table")]
    if not tables:
        raise UserError(
            f"{where}: weights are missing: rel_pos_bias.relative_position_bias_table (other positions are not supported)"
        )
    rows, heads = tables[0].shape
    has_layer_scale = any(".gamma_" in name for name in tensors)
    side = round(((rows - 3) ** 0.5 + 1) / 2)
    return {
        "embed_dim": width,
        "depth": count_modules(tensors, "blocks."),
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(width, len(_required(tensors, "blocks.0.mlp.fc1.weight", where))),
        "patch_size": patch,
        "img_size": side * patch,
        "use_shared_rel_pos_bias": True,
        "use_abs_pos_emb": "pos_embed" in tensors,
        **({} if has_layer_scale or config.get("layer_scale_init_value") else {"layer_scale_init_value": 0}),
    }


def _version2(family: Family, tensors: Tensors, config: FairseqConfig, where: str) -> FairseqConfig:
    root, section = f"modality_encoders.{family.modality_key}.", family.modality_key.lower()
    width, main_blocks = len(_required(tensors, "blocks.0.attn.proj.weight", where)), count_modules(tensors, "blocks.")
    configured = _subsection(_subsection(config, "modalities"), section)
    scale = tensors.get(f"{root}alibi_scale")
    if scale is not None and scale.shape[-3] > 1:
        heads = scale.shape[-3]
    else:
        heads = _attention_heads(config.get("num_heads"), width, where)
    extra_tokens = tensors.get(f"{root}extra_tokens")
    modality: FairseqConfig = {
        "prenet_depth": count_modules(tensors, f"{root}context_encoder.blocks."),
        "num_extra_tokens": configured.get("num_extra_tokens", 0) if extra_tokens is None else extra_tokens.shape[-2],
        **_VERSION_2_MODALITIES[str(family.modality)](tensors, root, width, configured, where),
    }
    if scale is not None:  # one scale for all heads is expanded, and whether it was trained no longer matters
        modality |= {"learned_alibi_scale": True, "learned_alibi_scale_per_head": True}
        modality |= {"learned_alibi_scale_per_layer": scale.ndim == 5 and len(scale) > 1}
    if f"{root}decoder.blocks.0.0.weight" in tensors:
        modality["decoder"] = _decoder(tensors, f"{root}decoder.", width)
    return {
        "supported_modality": family.modality_key,
        "modalities": {section: modality},
        "embed_dim": width,
        "depth": main_blocks,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio(width, len(_required(tensors, "blocks.0.mlp.fc1.weight", where))),
        **({"layer_norm_first": True} if "norm.weight" in tensors else {}),
    }


def _decoder(tensors: Tensors, root: str, width: int) -> FairseqConfig:
    weight, projection = tensors[f"{root}blocks.0.0.weight"], f"{root}proj."
    first = tensors.get(f"{projection}0.weight")
    return {
        "decoder_layers": count_modules(tensors, f"{root}blocks."),
        "decoder_dim": len(weight),
        "decoder_groups": width // weight.shape[1],
        "decoder_kernel": weight.shape[-1],
        "projection_layers": count_modules(tensors, projection) // 2 + 1,
        **({} if first is None else {"projection_ratio": len(first) / first.shape[1]}),
    }


def _version2_audio(tensors: Tensors, root: str, width: int, config: FairseqConfig, where: str) -> FairseqConfig:
    depth, kernel, groups = _positional_convolutions(tensors, f"{root}relative_positional_encoder.", 1, width, where)
    extractor = f"{root}local_encoder.conv_layers."
    if f"{root}extra_tokens" in tensors:
        log.warning("%s: an emotion2vec model, opened as data2vec 2 speech; its utterance-level loss is left out", where)
    return {
        "feature_encoder_spec": _conv_layers(tensors, extractor, config.get("feature_encoder_spec"), where),
        "extractor_mode": "layer_norm" if f"{extractor}0.2.1.weight" in tensors else "default",
        "conv_pos_depth": depth,
        "conv_pos_width": kernel * depth,
        "conv_pos_groups": groups,
        **_presence("use_alibi_encoder", tensors, f"{root}alibi_scale", config),
        "learned_alibi": f"{root}alibi_bias" in tensors,
    }


def _version2_image(tensors: Tensors, root: str, width: int, config: FairseqConfig, where: str) -> FairseqConfig:
    _, channels, _, patch = _required(tensors, f"{root}local_encoder.proj.weight", where).shape
    positions = tensors.get(f"{root}fixed_positional_encoder.positions")
    size = {} if positions is None else {"input_size": round(positions.shape[-2] ** 0.5) * patch}
    return {"patch_size": patch, "in_chans": channels, **size}


def _version2_sound(tensors: Tensors, root: str, width: int, config: FairseqConfig, where: str) -> FairseqConfig:
    _, _, time, band = _required(tensors, f"{root}local_encoder.proj.weight", where).shape
    if time != band:
        raise UserError(f"{where}: patches of {time} x {band} are not supported, only square ones")
    return {"patch_size": time, "in_chans": 1}


def _version2_text(tensors: Tensors, root: str, width: int, config: FairseqConfig, where: str) -> FairseqConfig:
    local_encoder = f"{root}local_encoder."
    _required(tensors, f"{local_encoder}embed_tokens.weight", where)
    return {
        "max_source_positions": len(_required(tensors, f"{local_encoder}embed_positions.weight", where)) - 2,
        **_presence("layernorm_embedding", tensors, f"{local_encoder}layernorm_embedding.", config),
    }


_VERSION_2_MODALITIES: dict[str, Callable[[Tensors, str, int, FairseqConfig, str], FairseqConfig]] = {
    "speech": _version2_audio,
    "vision": _version2_image,
    "text": _version2_text,
    "sound": _version2_sound,
}
