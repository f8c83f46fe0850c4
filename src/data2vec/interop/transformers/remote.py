"""Folders that contain their model code, which transformers runs with `trust_remote_code=True`.

transformers has no classes for version 2. Parameters have our names, after `encoder.` and `head.` if there is a head.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from data2vec.atomic_io import merge_dir
from data2vec.errors import UserError, get_logger
from data2vec.interop.transformers.card import omitted_parts, usage_example
from data2vec.interop.transformers.config import HINT, unsupported_setting
from data2vec.interop.transformers.processors import read_processors, write_processors
from data2vec.interop.transformers.weights import read_weights
from data2vec.modalities.sound import SoundSettings
from data2vec.modalities.speech import SpeechSettings
from data2vec.modalities.text import TextSettings
from data2vec.model import Model, blank_model
from data2vec.model_card import render_model_card
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.loading import untrusted_recipe
from data2vec.recipe.training_history import origin_of, read_origin
from data2vec.settings import JsonDict, JsonMapping
from data2vec.untrusted import read_json

log = get_logger(__name__)

MODULE = "modeling_data2vec2"
CODE = Path(__file__).parent / "remote_code" / f"{MODULE}.py"
"""The model code that is copied into a folder: configuration, embeddings, Transformer, models and losses."""
OFFSET = 2
"""Rows of the position table before the first position."""

ENCODER = {
    **{"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "ffn_width": "intermediate_size"},
    **{"activation": "hidden_act", "norm_eps": "layer_norm_eps", "dropout": "hidden_dropout"},
    **{key: key for key in ("norm", "input_norm", "final_norm", "extra_tokens", "key_bias", "layer_scale")},
    **{key: key for key in ("attention_dropout", "activation_dropout", "drop_path", "layerdrop")},
}
"""Our setting: the setting in config.json. Others, such as the initialisation, matter to pre-training only."""
MODALITIES = {
    "speech": {
        **{key: key for key in ("conv_norm", "conv_bias", "position_depth", "position_kernel", "position_groups")},
        **{key: key for key in ("alibi", "mask_vector")},
    },
    "vision": {
        **{"image": "image_size", "patch": "patch_size"},
        **{key: key for key in ("positions", "position_tables", "mask_vector")},
    },
    "sound": {
        **{"frames": "num_frames", "patch": "spectrogram_patch"},
        **{key: key for key in ("position_scale", "attend_padding", "mask_vector")},
    },
    "text": {
        **{key: key for key in ("vocab_size", "embedding_norm", "scale_embedding")},
        **{key: key for key in ("position_depth", "position_kernel", "position_groups")},
        "positions": "text_positions",
    },
}
DEFAULTS: dict[str, JsonDict] = {
    "text": {"text_positions": "learned", "position_depth": 2, "position_kernel": 9, "position_groups": 16},
    "sound": {"position_scale": 1.0},
}
"""What folders mean that were written before these settings."""
WRITABLE = {"vision": {"stem": "patch"}}
"""The only values that the model code in a folder supports."""
CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")
CLASSIFIER = {key: f"classifier_{key}" for key in ("pooling", "norm_eps", "hidden_layer", "hidden_width")}
CLASSIFIERS = {
    "speech": "ForAudioClassification",
    "sound": "ForAudioClassification",
    "vision": "ForImageClassification",
    "text": "ForSequenceClassification",
}
OTHER_HEADS = {
    "speech": ("ForCTC", "ForAudioFrameClassification"),
    "vision": (),
    "sound": (),
    "text": ("ForTokenClassification", "ForMaskedLM"),
}
"""Further classes of the model code; the last refuses with a reason. Of their heads only that of CTC exists here."""
DEFAULT_CLASSIFIERS: dict[str, JsonDict] = {
    "speech": {"pooling": "mean"},
    "vision": {"pooling": "mean", "norm_eps": 1e-6},
    "sound": {"pooling": "mean", "norm_eps": 1e-6},
    "text": {"pooling": "first", "hidden_layer": "tanh"},
}
"""The classifier that transformers adds to a model without one: for images and text that of the released models."""


def write_remote_folder(model: Model, folder: Path) -> list[str]:
    """Write a model folder that transformers opens; other files in it are left alone.

    Returns a description of each part of the model that is left out. Raises UserError for an unsupported modality or head."""
    config = _config(model)
    tensors = dict(model.encoder.state_dict())
    if model.head is not None:
        tensors = {f"encoder.{name}": value for name, value in tensors.items()}
        tensors |= {f"head.{name}": value for name, value in model.head.state_dict().items()}
    with merge_dir(folder, "config.json") as tmp:
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp / "model.safetensors", {"format": "pt"})
        (tmp / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")
        shutil.copyfile(CODE, tmp / CODE.name)
        write_processors(model, tmp)
        (tmp / "README.md").write_text(
            render_model_card(model, library="transformers", usage=usage_example(model, remote=True)), encoding="utf-8"
        )
    return omitted_parts(model, "the decoder", "zero_every_layer")


def read_remote_folder(folder: Path) -> Model:
    """The model in such a folder, also after transformers has fine-tuned it or added a head.

    Raises UserError when its files are damaged, when weights are missing, or when settings and weights disagree."""
    path = folder / "config.json"
    try:
        config = read_json(path)
        name, processors = config["modality"], read_processors(folder, config["modality"])
        raw = config.get(HINT, {}).get("recipe", {"modality": {"name": name}})
        for section, settings in _sections(config).items():
            raw[section] = {**raw.get(section, {}), **settings, **processors.get(section, {})}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path} is not a config.json of a data2vec2 model, or is damaged ({error!r})") from None
    tensors = {key.removeprefix("encoder."): value for key, value in read_weights(folder).items()}
    try:
        head = _head(config, tensors, processors.get("head", {}).get("labels", []), path)
    except ValidationError as error:
        raise UserError(f"{path}: invalid head: {error.errors()[0]['msg']}") from None
    model = blank_model(untrusted_recipe(raw, str(path)), head, sum(tensor.nbytes for tensor in tensors.values()))
    used = _load_weights(model.encoder, "", tensors, folder)
    if model.head is not None:
        used |= _load_weights(model.head, "head.", tensors, folder)
    if unknown := sorted(tensors.keys() - used):
        log.warning("%s: ignored unknown weights: %s", folder, ", ".join(unknown))
    return replace(model, **read_origin(config.get(HINT, {}), str(folder / "config.json")))


def _config(model: Model) -> JsonDict:
    recipe, settings = model.recipe, model.modality.settings
    name = settings.name
    if name not in MODALITIES:
        raise UserError(f"modality.name: {name} cannot be written for transformers; only {', '.join(MODALITIES)}")
    for key, value in WRITABLE.get(name, {}).items():
        if getattr(settings, key) != value:
            raise unsupported_setting(f"modality.{key}", getattr(settings, key), f"its model code has {value} only")
    classes = {"AutoModel": "Model"} | {f"AutoModel{ending}": ending for ending in (CLASSIFIERS[name], *OTHER_HEADS[name])}
    config: JsonDict = {
        "model_type": "data2vec2",
        "architectures": [f"Data2Vec2{_class_ending(model)}"],
        "auto_map": {"AutoConfig": f"{MODULE}.Data2Vec2Config"}
        | {auto: f"{MODULE}.Data2Vec2{ending}" for auto, ending in classes.items()},
        "dtype": "float32",
        "modality": name,
        **{theirs: getattr(recipe.encoder, ours) for ours, theirs in ENCODER.items()},
        **{theirs: getattr(settings, ours) for ours, theirs in MODALITIES[name].items()},
    }
    if isinstance(settings, SoundSettings):
        config |= {"spectrogram_patch": list(settings.patch), "num_mel_bins": settings.fbank.bins}
    if isinstance(settings, SpeechSettings):
        config |= {key: list(each) for key, each in zip(CONVOLUTIONS, zip(*settings.conv_layers, strict=True), strict=True)}
    if isinstance(settings, TextSettings):
        config |= {"max_position_embeddings": settings.max_length + OFFSET, "pad_token_id": 1}
    stored_recipe = recipe.without_local_paths()
    if "tokenizer" in stored_recipe["data"]:
        stored_recipe["data"]["tokenizer"] = None  # it is in the folder
    hint = {"recipe": stored_recipe, **origin_of(model)}
    return config | _head_config(model) | {HINT: hint}


def _class_ending(model: Model) -> str:
    """The end of the class name."""
    if model.head is None:
        return "Model"
    name = model.modality.settings.name
    if model.head.settings.name == "ctc" and name != "speech":
        raise UserError(f"head.name: ctc on {name} cannot be written for transformers; only on speech")
    return "ForCTC" if model.head.settings.name == "ctc" else CLASSIFIERS[name]


def _head_config(model: Model) -> JsonDict:
    default = DEFAULT_CLASSIFIERS[model.modality.settings.name]
    config: JsonDict = {theirs: default.get(ours) for ours, theirs in CLASSIFIER.items()}
    if model.head is None:
        return config
    settings = model.head.settings
    config["weighted_layers"] = settings.weighted_layers
    config["id2label"] = {str(i): label for i, label in enumerate(settings.labels)}
    config["label2id"] = {label: i for i, label in enumerate(settings.labels)}
    if isinstance(settings, CTCSettings):
        return config | {"vocab_size": len(settings.labels), "pad_token_id": 0}
    if len(settings.labels) == 1 and settings.problem_type == "single_label_classification":
        raise UserError("head.labels: one label cannot be written for transformers, unless head.problem_type is regression")
    config["problem_type"] = settings.problem_type
    if settings.pooling == "class-token" and model.modality.settings.name != "sound":
        raise UserError("head.pooling: class-token cannot be written for transformers, except of sound; use another")
    return config | {theirs: getattr(settings, ours) for ours, theirs in CLASSIFIER.items()}


def _sections(config: JsonMapping) -> dict[str, JsonDict]:
    """The recipe sections of a config.json. Raises KeyError for a missing setting."""
    name = config["modality"]
    config = DEFAULTS.get(name, {}) | dict(config)
    modality = {"name": name, **{ours: config[theirs] for ours, theirs in MODALITIES[name].items()}}
    if name == "speech":
        modality["conv_layers"] = [list(layer) for layer in zip(*(config[key] for key in CONVOLUTIONS), strict=True)]
    if name == "text":
        modality["max_length"] = config["max_position_embeddings"] - OFFSET
    return {"modality": modality, "encoder": {ours: config[theirs] for ours, theirs in ENCODER.items()}, "data": {}}


def _head(
    config: JsonMapping, tensors: dict[str, Tensor], vocabulary: list[str], path: Path
) -> CTCSettings | ClassifierSettings | None:
    """The settings of the head, if any. The CTC blank is moved to the first label and the first row of the weights.

    A head that exists in the model code only is ignored, with a warning."""
    if "head.out.weight" not in tensors:
        return None
    architecture = str((config.get("architectures") or [""])[0])
    ending = architecture.removeprefix("Data2Vec2")
    if ending not in ("ForCTC", *CLASSIFIERS.values()):
        log.warning("%s: unsupported head of %s; only the encoder is loaded", path, architecture or "an unnamed class")
        for name in [name for name in tensors if name.startswith("head.")]:
            del tensors[name]
        return None
    count, names, mixed = len(tensors["head.out.weight"]), config.get("id2label") or {}, config.get("weighted_layers")
    is_ctc = ending == "ForCTC"
    labels = [str(names[key]) for key in sorted(names, key=int)]
    if is_ctc and len(vocabulary) == count:
        labels = vocabulary
    if len(labels) != count:
        if labels or is_ctc:  # transformers leaves out names that it has made up itself
            log.warning("%s names %d labels but the head has %d; they are named LABEL_0, LABEL_1, …", path, len(labels), count)
        labels = [f"LABEL_{i}" for i in range(count)]
    if not is_ctc:
        problem = config.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
        shape = {ours: config.get(theirs) for ours, theirs in CLASSIFIER.items()} | {"weighted_layers": mixed}
        return ClassifierSettings.model_validate({"labels": labels, "problem_type": problem, **shape})
    blank = config.get("pad_token_id") or 0
    if not 0 <= blank < count:
        raise UserError(f"{path}: pad_token_id: {blank} is not one of the {count} labels")
    order = [blank, *(i for i in range(count) if i != blank)]
    tensors |= {name: tensors[name][order] for name in ("head.out.weight", "head.out.bias") if name in tensors}
    return CTCSettings(labels=tuple(labels[i] for i in order), weighted_layers=mixed)


def _load_weights(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor], folder: Path) -> set[str]:
    """Load the weights under `prefix` into a module; returns their names."""
    names = {f"{prefix}{name}": name for name in module.state_dict()}
    if missing := sorted(names.keys() - tensors.keys()):
        raise UserError(f"{folder}: weights are missing: {', '.join(missing)}")
    try:
        module.load_state_dict({name: tensors[theirs] for theirs, name in names.items()})
    except RuntimeError as error:
        why = " ".join(str(error).split()).partition(": ")[2][:200]
        raise UserError(f"{folder}: weights do not match the sizes in config.json: {why}") from None
    return set(names)
