"""The content of an official checkpoint: weights under current key names, configuration, labels."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data2vec.errors import UserError, get_logger
from data2vec.interop.fairseq.key_mapping import (
    EAT,
    HEADS,
    PORT_PREFIX,
    FairseqConfig,
    Family,
    Tensors,
    current_names,
    family_of_keys,
    teacher_prefix,
)
from data2vec.interop.safe_load import safe_load, to_plain
from data2vec.settings import JsonMapping

log = get_logger(__name__)

PREDICTION_HEAD = re.compile(r"^(final_proj|lm_head|encoder\.regression_head)\.|\.decoder\.")
"""The prediction head of version 1 or the decoder of version 2."""
NEW = "data2vec_new_pretraining"
"""In `extra_state`: whether teacher and prediction head are new, and only there because official code requires them."""
OWN_SETTINGS = "data2vec_settings"
"""In `extra_state`: settings of a model of ours that the official configuration has no place for, by section."""
PATCHES = "modality_encoders.IMAGE.local_encoder.proj.weight"
"""The patch embedding of version 2 for images, and of EAT, whose images have one channel."""
PRETRAINED_CONFIGS = ("w2v_args", "pretrained_model_args", "w2v_model_args")
"""Where the configuration of a fine-tuned model holds that of the pre-trained model."""


@dataclass(frozen=True)
class FairseqCheckpoint:
    """The content of a checkpoint of fairseq (`.pt`), of the BEiT fork (`.pth`) or of DeepSpeed."""

    path: Path
    family: Family
    student: Tensors
    """Encoder and prediction head or decoder."""
    teacher: Tensors
    """The EMA teacher under the student's key names; empty if there is none."""
    teacher_prefix: str
    """Prefix of the part of the model that is averaged; empty if it is the full model."""
    head: Tensors
    """Weights added by fine-tuning."""
    model_config: FairseqConfig
    """Of the pre-trained model; empty if unknown."""
    task_config: FairseqConfig
    fine_tuned_config: FairseqConfig
    """Of the fine-tuned model; equals `model_config` if there is no other."""
    labels: list[str] | None
    """The symbols of the target dictionary in the file."""
    own_settings: JsonMapping
    """What is stored as `OWN_SETTINGS`; empty for a file of others."""

    @property
    def has_prediction_head(self) -> bool:
        """Whether the prediction head or the decoder is in the file."""
        return any(PREDICTION_HEAD.search(name) for name in self.student)


def open_checkpoint(path: Path) -> FairseqCheckpoint:
    """Read an official checkpoint without running anything in it.

    Raises UserError for a file that is damaged, refused by `safe_load`, or not of a data2vec model."""
    content = safe_load(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a checkpoint with named weights, found a {type(content).__name__}")
    state = next((content[key] for key in ("model", "module") if isinstance(content.get(key), Mapping)), content)
    is_port = any(str(name).startswith(PORT_PREFIX) for name in state)
    tensors = current_names(state, is_port)
    family = family_of_keys(tensors, str(path))
    if (patches := tensors.get(PATCHES)) is not None and patches.ndim == 4 and patches.shape[1] == 1:
        family = EAT
    teachers = [value for name, value in state.items() if re.search(r"(^|\.)_ema$", str(name)) and isinstance(value, Mapping)]
    teachers += [content["model_ema"]] if isinstance(content.get("model_ema"), Mapping) else []
    teacher = current_names(teachers[0], is_port) if teachers else {}
    prefix = teacher_prefix(family, teacher)
    fine_tuned_config, model_config, task_config = _configurations(content)
    if is_port:
        log.warning("%s: fairseq port of the version 1 vision model; only the encoder is used", path)
        tensors = {name: value for name, value in tensors.items() if not name.startswith("lm_head.")}
        teacher, model_config = {}, {"layer_norm_eps": 1e-5}
    extra = content.get("extra_state")
    extra = extra if isinstance(extra, Mapping) else {}
    own_settings = to_plain(extra.get(OWN_SETTINGS, {}))
    if extra.get(NEW) is True:
        tensors = {name: value for name, value in tensors.items() if not PREDICTION_HEAD.search(name)}
        teacher = {}
    return FairseqCheckpoint(
        path=path,
        family=family,
        student={name: value for name, value in tensors.items() if not HEADS.match(name)},
        teacher={prefix + name: value for name, value in teacher.items()},
        teacher_prefix=prefix,
        head={name: value for name, value in tensors.items() if HEADS.match(name)},
        model_config=model_config,
        task_config=task_config,
        fine_tuned_config=fine_tuned_config,
        labels=_labels(content),
        own_settings=own_settings if isinstance(own_settings, dict) else {},
    )


def _configurations(content: JsonMapping) -> tuple[FairseqConfig, FairseqConfig, FairseqConfig]:
    """The configurations of the model in the file, of the pre-trained model, and of its task."""
    config = to_plain(content.get("cfg") or content.get("args") or {})
    config = config if isinstance(config, dict) else {}
    config = _interpolate(config, config)
    outer = _section(config, "model")
    pretrained = next((outer[key] for key in PRETRAINED_CONFIGS if isinstance(outer.get(key), dict)), config)
    return outer, _beit_config(_section(pretrained, "model")), _section(pretrained, "task")


def _section(config: FairseqConfig, name: str) -> FairseqConfig:
    """A section, or all of a configuration without sections, such as command line arguments."""
    section = config.get(name)
    return section if isinstance(section, dict) else config


def _interpolate(config: FairseqConfig, root: FairseqConfig) -> FairseqConfig:
    """Resolve references such as "${a.b}" in `root`, and drop missing values ("???")."""
    resolved = {}
    for key, value in config.items():
        if isinstance(value, str) and (reference := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            value = root
            for name in reference[1].split("."):
                value = value.get(name, "???") if isinstance(value, dict) else "???"
        if not isinstance(value, str) or (value != "???" and not value.startswith("${")):
            resolved[str(key)] = _interpolate(value, root) if isinstance(value, dict) and value is not root else value
    return resolved


def _beit_config(config: FairseqConfig) -> FairseqConfig:
    """Command line arguments of the BEiT fork under the names that `fairseq.config` uses."""
    if isinstance(patch := config.get("patch_size"), list | tuple) and patch:
        config = config | {"patch_size": patch[0]}
    if "layer_results" not in config:
        return config
    layers = config.get("target_layers")
    numbers = [int(number) for number in re.findall(r"\d+", layers)] if isinstance(layers, str) else layers
    sizes = {"num_heads", "layer_norm_eps", "mlp_ratio", "img_size", "embed_dim", "depth"} & config.keys()
    return config | {
        "target_layers": numbers,
        "target_layer_norm_last": config.get("target_layer_norm_last", not config.get("no_target_layer_norm_last", False)),
        "use_shared_rel_pos_bias": config.get("use_shared_rel_pos_bias", config.get("rel_pos_bias", True)),
        "use_abs_pos_emb": config.get("use_abs_pos_emb", config.get("abs_pos_emb", False)),
        **({} if sizes or "input_size" not in config else {"img_size": config["input_size"]}),
    }


def _labels(content: JsonMapping) -> list[str] | None:
    task_state = content.get("task_state")
    dictionary = to_plain(task_state.get("target_dictionary")) if isinstance(task_state, Mapping) else None
    symbols = dictionary.get("symbols") if isinstance(dictionary, dict) else None
    return symbols if isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols) else None
