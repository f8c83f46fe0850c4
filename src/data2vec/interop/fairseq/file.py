"""What an official file contains, whichever code wrote it: weights by their names of today, and its configuration."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data2vec.errors import UserError
from data2vec.interop import safe_load as unpickle
from data2vec.interop.fairseq.key_versions import HEADS, PORT_SIGN, Tensors, family_of, renamed, teacher_prefix
from data2vec.interop.fairseq.models import Config, Family

log = logging.getLogger(__name__)

PREDICTION = re.compile(r"^(final_proj|lm_head|encoder\.regression_head)\.|\.decoder\.")
"""The prediction head, or the decoder."""
NESTED = ("w2v_args", "pretrained_model_args", "w2v_model_args")
"""Where fine-tuned models keep the configuration of the model they began with."""


@dataclass(frozen=True)
class Content:
    """A file of fairseq (`.pt`), of the vision code of version 1 (`.pth`), or of deepspeed."""

    path: Path
    family: Family
    student: Tensors
    teacher: Tensors
    """Empty where there is none; names as in the student."""
    averaged: str
    """The part of the model that the teacher is made of, by the beginning of its names; empty for all of it."""
    head: Tensors
    """What fine-tuning put on the encoder."""
    model: Config
    """Of the pre-trained model; empty where nothing tells it."""
    task: Config
    outer: Config
    """Of the fine-tuned model; `model` again where there is no other."""
    labels: list[str] | None
    """The symbols of the dictionary in it."""

    @property
    def predicts(self) -> bool:
        """Whether the prediction head or the decoder is there."""
        return any(PREDICTION.search(name) for name in self.student)


def open_file(path: Path) -> Content:
    """Raises UserError for a file that is damaged, asks for anything but weights, or is of no data2vec model."""
    raw = unpickle.read(path)
    if not isinstance(raw, Mapping):
        raise UserError(f"{path}: holds no weights, but a {type(raw).__name__}")
    state = next((raw[key] for key in ("model", "module") if isinstance(raw.get(key), Mapping)), raw)
    port = any(str(name).startswith(PORT_SIGN) for name in state)
    tensors = renamed(state, port)
    family = family_of(tensors, str(path))
    averaged = [value for name, value in state.items() if re.search(r"(^|\.)_ema$", str(name)) and isinstance(value, Mapping)]
    averaged += [raw["model_ema"]] if isinstance(raw.get("model_ema"), Mapping) else []
    teacher = renamed(averaged[0], port) if averaged else {}
    prefix = teacher_prefix(family, teacher)
    outer, model, task = _configurations(raw)
    if port:
        log.warning("%s: is of the port of vision 1 to fairseq, of which only the encoder is of use", path)
        tensors = {name: value for name, value in tensors.items() if not name.startswith("lm_head.")}
        teacher, model = {}, {"layer_norm_eps": 1e-5}
    return Content(
        path=path,
        family=family,
        student={name: value for name, value in tensors.items() if not HEADS.match(name)},
        teacher={prefix + name: value for name, value in teacher.items()},
        averaged=prefix,
        head={name: value for name, value in tensors.items() if HEADS.match(name)},
        model=model,
        task=task,
        outer=outer,
        labels=_labels(raw),
    )


def _configurations(raw: Mapping[str, Any]) -> tuple[Config, Config, Config]:
    """Of the model in the file; of the pre-trained model; and of its task."""
    whole = unpickle.plain(raw.get("cfg") or raw.get("args") or {})
    whole = whole if isinstance(whole, dict) else {}
    whole = _resolved(whole, whole)
    outer = _section(whole, "model")
    inner = next((outer[key] for key in NESTED if isinstance(outer.get(key), dict)), whole)
    return outer, _beit(_section(inner, "model")), _section(inner, "task")


def _section(config: Config, name: str) -> Config:
    """A section; or the whole, where there are none, as in the arguments of a command line."""
    found = config.get(name)
    return found if isinstance(found, dict) else config


def _resolved(tree: Config, whole: Config) -> Config:
    """Without what is missing ("???"), and with what "${a.b}" stands for."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, str) and (link := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            value = whole
            for part in link[1].split("."):
                value = value.get(part, "???") if isinstance(value, dict) else "???"
        if not isinstance(value, str) or (value != "???" and not value.startswith("${")):
            found[str(key)] = _resolved(value, whole) if isinstance(value, dict) and value is not whole else value
    return found


def _beit(config: Config) -> Config:
    """Arguments of the vision code under the names of `fairseq_config`."""
    if isinstance(patch := config.get("patch_size"), list | tuple) and patch:
        config = config | {"patch_size": patch[0]}
    if "layer_results" not in config:
        return config
    layers = config.get("target_layers")
    numbers = [int(number) for number in re.findall(r"\d+", layers)] if isinstance(layers, str) else layers
    known = {"num_heads", "layer_norm_eps", "mlp_ratio", "img_size", "embed_dim", "depth"} & config.keys()
    return config | {
        "target_layers": numbers,
        "target_layer_norm_last": config.get("target_layer_norm_last", not config.get("no_target_layer_norm_last", False)),
        "use_shared_rel_pos_bias": config.get("use_shared_rel_pos_bias", config.get("rel_pos_bias", True)),
        "use_abs_pos_emb": config.get("use_abs_pos_emb", config.get("abs_pos_emb", False)),
        **({} if known or "input_size" not in config else {"img_size": config["input_size"]}),
    }


def _labels(raw: Mapping[str, Any]) -> list[str] | None:
    task_state = raw.get("task_state")
    dictionary = unpickle.plain(task_state.get("target_dictionary")) if isinstance(task_state, Mapping) else None
    symbols = dictionary.get("symbols") if isinstance(dictionary, dict) else None
    return symbols if isinstance(symbols, list) and all(isinstance(each, str) for each in symbols) else None
