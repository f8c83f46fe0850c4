"""How the official code opens a checkpoint, from its configuration alone: the weights that its classes build and load strictly,
and the settings and files that they require. Sources are files of fairseq, and of data2vec_vision for version 1 images.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]
SPECIAL_TOKENS = 4

PRETRAINED = {"wav2vec_ctc": "w2v_args", "mae_image_classification": "pretrained_model_args",
              "data2vec_text_classification": "pretrained_model_args"}  # fmt: skip
"""Where the configuration of a fine-tuned model holds that of the pre-trained one."""

REQUIRED: list[tuple[str, str, str]] = [
    ("cfg", "criterion", "fairseq/models/wav2vec/wav2vec2_asr.py: assigned, in a configuration that takes no new keys"),
    ("cfg", "lr_scheduler", "fairseq/models/wav2vec/wav2vec2_asr.py, examples/data2vec/models/mae_image_classification.py"),
    ("model", "_name", "fairseq/models/__init__.py: build_model"),
    ("task", "_name", "fairseq/tasks/__init__.py: setup_task"),
    ("task masked_lm", "data", "fairseq/tasks/masked_lm.py: MISSING by default, read by load_dict"),
    ("task audio_finetuning", "data", "fairseq/tasks/audio_finetuning.py: load_target_dictionary"),
    ("task audio_finetuning", "labels", "fairseq/tasks/audio_finetuning.py: without them there is no dictionary"),
    ("task sentence_prediction", "data", "fairseq/tasks/sentence_prediction.py: setup_task"),
    ("task sentence_prediction", "num_classes", "fairseq/tasks/sentence_prediction.py: setup_task"),
    ("task sentence_prediction", "regression_target", "the same: ${criterion.…} by default, which a checkpoint lacks"),
    ("task sentence_prediction", "classification_head_name", "the same"),
    ("model wav2vec_ctc", "w2v_args", "fairseq/models/wav2vec/wav2vec2_asr.py: else w2v_path is opened"),
    ("model wav2vec_ctc", "normalize", "the same: must equal that of the pre-training task"),
    ("model wav2vec_ctc", "data", "the same: given to the pre-training task"),
    ("model mae_image_classification", "pretrained_model_args", "examples/data2vec/models/mae_image_classification.py"),
    ("model mae_image_classification", "data", "the same: given to the pre-training task"),
    ("model mae_image_classification", "num_classes", "the same: 1000 by default"),
    ("model data2vec_text_classification", "pretrained_model_args", "…/models/data2vec_text_classification.py"),
    ("modality", "num_alibi_heads", "…/modalities/base.py: ${model.num_heads} by default, which is not found if fine-tuned"),
    ("modality", "model_depth", "…/modalities/base.py: ${model.depth} by default"),
    ("modality IMAGE", "embed_dim", "…/modalities/images.py: 768 by default, and a further layer where the model is wider"),
]
"""Settings without a usable default: where (with the `_name` or modality that it concerns), key, source."""


def problems(content: Config, folder: Path) -> list[str]:
    """What keeps the official code from opening a checkpoint strictly, with dictionaries in `folder`; empty if nothing does."""
    cfg = content["cfg"]
    found = list(_missing_settings(cfg))
    found += [] if found else _missing_files(cfg["task"], folder)
    if found:
        return found
    weights = dict(content["model"])
    expected, teacher, teacher_key = official_weights(cfg, folder)
    stored = weights.pop(teacher_key, None)
    if (stored is None) != (teacher is None):
        found.append(f"{teacher_key}: {'missing' if stored is None else 'not expected'}")
    found += _differences(expected, weights)
    if stored is not None and teacher is not None:
        found += [f"{teacher_key}: {difference}" for difference in _differences(teacher, stored)]
    return found


def beit_problems(content: Config) -> list[str]:
    """The same for a version 1 image model: beit/modeling_cyclical.py, or beit/modeling_finetune.py where there are classes."""
    args = content["args"]
    width, heads, patch = args["embed_dim"], args["num_heads"], args["patch_size"]
    side = args["img_size"] // patch
    table, index = ((2 * side - 1) ** 2 + 3, heads), (side * side + 1, side * side + 1)
    weights: Shapes = {"cls_token": (1, 1, width), **_affine("patch_embed.proj", width, 3, patch, patch)}
    fine_tuned = "nb_classes" in args
    for i in range(args["depth"]):
        block, inner = f"blocks.{i}", int(width * args["mlp_ratio"])
        weights |= _block(block, width, inner)
        del weights[f"{block}.attn.qkv.bias"]
        names = ("attn.q_bias", "attn.v_bias", *(("gamma_1", "gamma_2") if args["layer_scale_init_value"] else ()))
        weights |= {f"{block}.{name}": (width,) for name in names}
        if fine_tuned:
            weights |= {f"{block}.attn.relative_position_bias_table": table, f"{block}.attn.relative_position_index": index}
    if fine_tuned:
        weights |= _affine("fc_norm", width) | _affine("head", args["nb_classes"], width)
    else:
        weights |= {"mask_token": (1, 1, width), **_affine("norm", width), **_affine("lm_head", width, width)}
        weights |= {"rel_pos_bias.relative_position_bias_table": table, "rel_pos_bias.relative_position_index": index}
    found = list(_differences(weights, content["model"]))
    return found if fine_tuned else found + [f"model_ema: {each}" for each in _differences(weights, content["model_ema"])]


def _missing_settings(cfg: Config) -> Iterator[str]:
    model, task = cfg["model"], cfg["task"]
    pairs: list[tuple[str, Config]] = [("model", model), ("task", task), ("cfg", cfg)]
    if inner := model.get(PRETRAINED.get(model.get("_name", ""), "")):
        pairs += [("model", inner["model"]), ("task", inner["task"])]
        if model["_name"] == "wav2vec_ctc" and model.get("normalize") != inner["task"].get("normalize"):
            yield "model.normalize: differs from that of the pre-training task"
    for _, section in pairs[:]:
        for key, modality in section.get("modalities", {}).items():
            pairs += [("modality", modality | {"_name": key.upper()})]
            if modality.get("embed_dim", section["embed_dim"]) != section["embed_dim"]:
                yield "modality.embed_dim: differs from that of the model"
    for kind, section in pairs:
        for where, key, source in REQUIRED:
            if where in (kind, f"{kind} {section.get('_name')}") and key not in section:
                yield f"{where}.{key}: missing ({source})"


def _missing_files(task: Config, folder: Path) -> Iterator[str]:
    names = {"masked_lm": ["dict.txt"], "audio_finetuning": [f"dict.{task.get('labels')}.txt"],
             "sentence_prediction": ["input0/dict.txt", "dict.txt"]}.get(task["_name"], [])  # fmt: skip
    if task["_name"] == "sentence_prediction" and not task.get("regression_target"):
        names.append("label/dict.txt")
    for name in names:
        if not (folder / name).is_file():
            yield f"{name}: no such file"


def _differences(expected: Shapes, weights: dict[str, Tensor]) -> Iterator[str]:
    for name in sorted(expected.keys() | weights.keys()):
        shape = tuple(weights[name].shape) if name in weights else None
        if shape != expected.get(name):
            yield f"{name}: {shape}, but the official class has {expected.get(name)}"


def official_weights(cfg: Config, folder: Path) -> tuple[Shapes, Shapes | None, str]:
    """The weights of the model that the official code builds; those of its teacher, if it has one; and the teacher's key."""
    model, task = cfg["model"], cfg["task"]
    name = model["_name"]
    if name in PRETRAINED:
        inner = model[PRETRAINED[name]]
        weights, _, _ = official_weights(inner, folder)
        unused = (".decoder.", "final_proj.")  # remove_pretraining_modules
        encoder = {key: shape for key, shape in weights.items() if not any(part in key for part in unused)}
        prefix = "w2v_encoder.w2v_model." if name == "wav2vec_ctc" else "model."
        head = _HEADS[name](model, task, _width(inner["model"]), folder)
        return {prefix + key: shape for key, shape in encoder.items()} | head, None, "_ema"
    if name == "data2vec_text":
        weights = _text(model, folder)
        root = "encoder.sentence_encoder."
        if task["_name"] == "sentence_prediction":
            weights |= _sentence_head(model, task, _width(model), folder)
        return weights, _below(weights, root), "encoder._ema"
    if name == "data2vec_audio":
        weights = _audio(model)
        return weights, _below(weights, "encoder.") if model["ema_transformer_only"] else weights, "_ema"
    return *_multi(model, folder), "_ema"


def _width(model: Config) -> int:
    return model.get("encoder_embed_dim") or model.get("embed_dim") or model["transformer"]["encoder"]["embed_dim"]


def _below(weights: Shapes, prefix: str) -> Shapes:
    return {key.removeprefix(prefix): shape for key, shape in weights.items() if key.startswith(prefix)}


def _affine(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _dictionary(file: Path, more: int = 0) -> int:
    return SPECIAL_TOKENS + len(file.read_text(encoding="utf-8").splitlines()) + more


def _extractor(root: str, spec: str, mode: str) -> Shapes:
    """fairseq/models/wav2vec/wav2vec2.py: ConvFeatureExtractionModel"""
    weights, channels = {}, 1
    for i, (width, kernel, _) in enumerate(eval(spec)):
        weights[f"{root}.{i}.0.weight"] = (width, channels, kernel)
        if mode == "layer_norm":
            weights |= _affine(f"{root}.{i}.2.1", width)
        elif i == 0:
            weights |= _affine(f"{root}.{i}.2", width)
        channels = width
    return weights


def _fairseq_layers(root: str, layers: int, width: int, inner: int) -> Shapes:
    """fairseq/modules/transformer_layer.py, fairseq/models/wav2vec/wav2vec2.py: TransformerSentenceEncoderLayer"""
    weights: Shapes = {}
    for i in range(layers):
        layer = f"{root}.{i}"
        for part in "qkv":
            weights |= _affine(f"{layer}.self_attn.{part}_proj", width, width)
        weights |= _affine(f"{layer}.self_attn.out_proj", width, width) | _affine(f"{layer}.self_attn_layer_norm", width)
        weights |= _affine(f"{layer}.fc1", inner, width) | _affine(f"{layer}.fc2", width, inner)
        weights |= _affine(f"{layer}.final_layer_norm", width)
    return weights


def _audio(model: Config) -> Shapes:
    """examples/data2vec/models/data2vec_audio.py"""
    width, last = model["encoder_embed_dim"], eval(model["conv_feature_layers"])[-1][0]
    depth = model["pos_conv_depth"]
    weights = {"mask_emb": (width,), **_affine("layer_norm", last), **_affine("post_extract_proj", width, last)}
    weights |= _extractor("feature_extractor.conv_layers", model["conv_feature_layers"], model["extractor_mode"])
    kernel = max(3, model["conv_pos"] // depth)
    for i in range(depth):
        weights |= _affine(f"encoder.pos_conv.{i}.0", width, width // model["conv_pos_groups"], kernel)
    weights |= _fairseq_layers("encoder.layers", model["encoder_layers"], width, model["encoder_ffn_embed_dim"])
    return weights | _affine("encoder.layer_norm", width) | _affine("final_proj", width, width)


def _text(model: Config, folder: Path) -> Shapes:
    """examples/data2vec/models/data2vec_text.py, fairseq/models/transformer/transformer_encoder.py"""
    transformer = model["transformer"]
    encoder, root = transformer["encoder"], "encoder.sentence_encoder"
    width, current = encoder["embed_dim"], encoder["embed_dim"]
    weights: Shapes = {
        f"{root}.embed_tokens.weight": (_dictionary(folder / "dict.txt", 1), width),
        f"{root}.embed_positions.weight": (transformer["max_source_positions"] + 2, width),
        f"{root}.version": (1,),
    }
    if transformer["layernorm_embedding"]:
        weights |= _affine(f"{root}.layernorm_embedding", width)
    weights |= _fairseq_layers(f"{root}.layers", encoder["layers"], width, encoder["ffn_embed_dim"])
    for i in range(model["head_layers"] - 1):
        weights |= _affine(f"encoder.regression_head.{2 * i}", 2 * width, current)
        current = 2 * width
    return weights | _affine(f"encoder.regression_head.{2 * (model['head_layers'] - 1)}", width, current)


def _block(root: str, width: int, inner: int) -> Shapes:
    """examples/data2vec/models/modalities/modules.py: AltBlock"""
    weights = _affine(f"{root}.attn.qkv", 3 * width, width) | _affine(f"{root}.attn.proj", width, width)
    weights |= _affine(f"{root}.mlp.fc1", inner, width) | _affine(f"{root}.mlp.fc2", width, inner)
    return weights | _affine(f"{root}.norm1", width) | _affine(f"{root}.norm2", width)


def _multi(model: Config, folder: Path) -> tuple[Shapes, Shapes | None]:
    """examples/data2vec/models/data2vec2.py and modalities/: model and teacher"""
    kind, width = model["supported_modality"], model["embed_dim"]
    modality, root = model["modalities"][kind.lower()], f"modality_encoders.{model['supported_modality']}"
    inner = int(width * model["mlp_ratio"])
    weights: Shapes = {}
    if kind != "TEXT" or modality["prenet_depth"]:
        weights |= _affine(f"{root}.context_encoder.norm", width)
    for i in range(modality["prenet_depth"]):
        weights |= _block(f"{root}.context_encoder.blocks.{i}", width, inner)
    if modality["num_extra_tokens"]:
        weights[f"{root}.extra_tokens"] = (1, modality["num_extra_tokens"], width)
    if modality["use_alibi_encoder"]:
        heads = modality["num_alibi_heads"] if modality["learned_alibi_scale_per_head"] else 1
        weights[f"{root}.alibi_scale"] = (1, 1, heads, 1, 1)
    weights |= {"AUDIO": _multi_audio, "IMAGE": _multi_image, "TEXT": _multi_text}[kind](root, modality, width, folder)
    main: Shapes = {}
    for i in range(model["depth"]):
        main |= _block(f"blocks.{i}", width, inner)
    encoder = weights | main
    decoder = (
        {} if modality.get("decoder", 0) is None else _decoder(root, modality["decoder"], width, 2 if kind == "IMAGE" else 1)
    )
    if model.get("skip_ema"):
        return encoder | decoder, None
    if model["ema_encoder_only"]:
        return encoder | decoder, _below(main, "blocks.")
    local = () if modality["ema_local_encoder"] else (f"{root}.local_encoder.", f"{root}.project_features.")
    return encoder | decoder, {key: shape for key, shape in encoder.items() if not key.startswith(local)}


def _decoder(root: str, decoder: Config, width: int, axes: int) -> Shapes:
    """examples/data2vec/models/modalities/modules.py: Decoder1d, Decoder2d"""
    weights, channels = {}, width
    for i in range(decoder["decoder_layers"]):
        shape = (decoder["decoder_dim"], channels // decoder["decoder_groups"], *[decoder["decoder_kernel"]] * axes)
        weights |= _affine(f"{root}.decoder.blocks.{i}.0", *shape)
        channels = decoder["decoder_dim"]
    layers = decoder["projection_layers"]
    for i in range(layers - 1):
        hidden = int(channels * decoder["projection_ratio"]) if i == 0 else channels
        weights |= _affine(f"{root}.decoder.proj.{2 * i}", hidden, channels)
        channels = hidden
    last = f"{root}.decoder.proj" if layers == 1 else f"{root}.decoder.proj.{2 * (layers - 1)}"
    return weights | _affine(last, width, channels)


def _multi_audio(root: str, modality: Config, width: int, folder: Path) -> Shapes:
    last, depth = eval(modality["feature_encoder_spec"])[-1][0], modality["conv_pos_depth"]
    weights = _extractor(f"{root}.local_encoder.conv_layers", modality["feature_encoder_spec"], modality["extractor_mode"])
    weights |= _affine(f"{root}.project_features.1", last) | _affine(f"{root}.project_features.2", width, last)
    kernel = max(3, modality["conv_pos_width"] // depth)
    for i in range(depth):
        name = f"{root}.relative_positional_encoder.{i + 1}.0"
        weights |= _affine(name, width, width // modality["conv_pos_groups"], kernel)
    return weights


def _multi_image(root: str, modality: Config, width: int, folder: Path) -> Shapes:
    patch, inner = modality["patch_size"], modality.get("embed_dim", 768)
    side = modality["input_size"] // patch
    weights = {f"{root}.fixed_positional_encoder.positions": (1, side * side, width)}
    if inner == width:
        return weights | _affine(f"{root}.local_encoder.proj", width, 3, patch, patch)
    return (
        weights
        | _affine(f"{root}.local_encoder.0.proj", inner, 3, patch, patch)
        | _affine(f"{root}.local_encoder.1", width, inner)
    )


def _multi_text(root: str, modality: Config, width: int, folder: Path) -> Shapes:
    weights: Shapes = {
        f"{root}.local_encoder.embed_tokens.weight": (_dictionary(folder / "dict.txt", 1), width),
        f"{root}.local_encoder.embed_positions.weight": (modality["max_source_positions"] + 2, width),
    }
    return weights | (_affine(f"{root}.local_encoder.layernorm_embedding", width) if modality["layernorm_embedding"] else {})


def _ctc_head(model: Config, task: Config, width: int, folder: Path) -> Shapes:
    """fairseq/models/wav2vec/wav2vec2_asr.py: Wav2VecCtc"""
    return _affine("w2v_encoder.proj", _dictionary(folder / f"dict.{task['labels']}.txt"), width)


def _image_head(model: Config, task: Config, width: int, folder: Path) -> Shapes:
    """examples/data2vec/models/mae_image_classification.py"""
    norm = _affine("fc_norm", width) if model.get("use_fc_norm", True) else {}
    return norm | _affine("head", model["num_classes"], width)


def _sentence_head(model: Config, task: Config, width: int, folder: Path) -> Shapes:
    """fairseq/tasks/sentence_prediction.py: build_model registers a head of the width of the model"""
    root = f"classification_heads.{task['classification_head_name']}"
    return _affine(f"{root}.dense", width, width) | _affine(f"{root}.out_proj", task["num_classes"], width)


_HEADS: dict[str, Callable[[Config, Config, int, Path], Shapes]] = {
    "wav2vec_ctc": _ctc_head,
    "mae_image_classification": _image_head,
    "data2vec_text_classification": _sentence_head,
}
