"""Heads of fine-tuned models for the Data2Vec classes in transformers, and from them."""

from collections.abc import Mapping

import torch
from pydantic import ValidationError
from torch import Tensor

from data2vec.errors import UserError, get_logger
from data2vec.interop.key_mapping import TensorMap, to_foreign_keys
from data2vec.interop.transformers.config import HINT, NativeFamily, as_yaml, unsupported_setting
from data2vec.model import Model
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.nn.transformer import TransformerSettings
from data2vec.settings import JsonDict, JsonMapping

log = get_logger(__name__)

HeadSettings = CTCSettings | ClassifierSettings
FIXED_SETTINGS: Mapping[str, JsonMapping] = {
    "speech": {"pooling": "mean", "norm_eps": None, "hidden_layer": None},
    "text": {"pooling": "first", "norm_eps": None, "hidden_layer": "tanh"},
    "vision": {"pooling": "mean", "hidden_layer": None},
}
"""Settings that the classifiers of transformers fix."""


def head_to_transformers(family: NativeFamily, model: Model) -> tuple[str, JsonDict, dict[str, Tensor]]:
    """For the head of a model: the end of the class name, its part of the configuration, and its weights.

    Raises UserError for a head that no class supports."""
    if model.head is None:
        return "Model", {}, {}
    settings, width = model.head.settings, model.recipe.encoder.width
    if settings.weighted_layers is not None:
        raise unsupported_setting(
            "head.weighted_layers", settings.weighted_layers, f"heads of {family.name} read the last block"
        )
    if settings.name not in family.heads:
        raise unsupported_setting("head.name", settings.name, f"{family.name} supports {', '.join(family.heads)} only")
    ending, table = family.heads[settings.name]
    ours = {name: value.detach().cpu().clone() for name, value in model.head.named_parameters()}
    if isinstance(settings, CTCSettings):
        ids = {f"{kind}_token_id": _label_index(settings.labels, token) for kind, token in (("bos", "<s>"), ("eos", "</s>"))}
        return ending, {"vocab_size": len(settings.labels), **ids}, to_foreign_keys(ours, {}, table)
    _check_classifier(family, settings, model.recipe.encoder)
    if family.modality == "speech" and settings.hidden_layer is None:
        ours |= {"hidden.weight": torch.eye(width), "hidden.bias": torch.zeros(width)}
    config = {
        "id2label": {str(i): label for i, label in enumerate(settings.labels)},
        "label2id": {label: i for i, label in enumerate(settings.labels)},
        "problem_type": settings.problem_type,
    }
    if family.modality == "speech":
        config["classifier_proj_size"] = len(ours["hidden.bias"])
    return ending, config, to_foreign_keys(ours, {}, table)


def head_from_transformers(
    family: NativeFamily, config: JsonMapping, tensors: TensorMap, labels: list[str], where: str
) -> tuple[HeadSettings | None, TensorMap]:
    """The settings of the head, or None without a supported one, and the weights in the order of its labels.

    `labels`: those of the CTC vocabulary, if any. An unsupported head is ignored, with a warning."""
    architecture = (config.get("architectures") or [f"{family.name}Model"])[0]
    name = next((name for name, (ending, _) in family.heads.items() if architecture == family.name + ending), None)
    why = ""
    if name == "classifier" and not config.get("use_mean_pooling", True):
        why = " (use_mean_pooling: false, so it reads the CLS token; fine-tune with use_mean_pooling=True)"
    elif name == "classifier" and config.get("use_weighted_layer_sum", False):
        why = " (use_weighted_layer_sum: true; fine-tune with false)"
    if name is None or why:
        if architecture != f"{family.name}Model":
            log.warning("%s: unsupported head of %s%s; only the encoder is loaded", where, architecture, why)
        return None, tensors
    try:
        return (_ctc if name == "ctc" else _classifier)(family, config, dict(tensors), labels, where)
    except KeyError as error:
        raise UserError(f"{where}: weights of the head are missing: {error.args[0]}") from None
    except ValidationError as error:
        raise UserError(f"{where}: invalid head: {error.errors()[0]['msg']}") from None


def _ctc(
    family: NativeFamily, config: JsonMapping, tensors: dict[str, Tensor], labels: list[str], where: str
) -> tuple[HeadSettings, TensorMap]:
    count = len(tensors["lm_head.weight"])
    if len(labels) != count:
        log.warning("%s: vocab.json has %d tokens but the head has %d; labels are numbered instead", where, len(labels), count)
        labels = [str(i) for i in range(count)]
    blank = config.get("pad_token_id") or 0
    if not 0 <= blank < count:
        raise UserError(f"{where}: pad_token_id: {blank} is not one of the {count} labels")
    order = [blank, *(i for i in range(count) if i != blank)]  # the blank comes first here
    tensors |= {name: tensors[name][order] for name in ("lm_head.weight", "lm_head.bias")}
    return CTCSettings(labels=tuple(labels[i] for i in order)), tensors


def _classifier(
    family: NativeFamily, config: JsonMapping, tensors: dict[str, Tensor], labels: list[str], where: str
) -> tuple[HeadSettings, TensorMap]:
    table = family.heads["classifier"][1]
    count = len(tensors[str(table["out.weight"])])
    id2label = config.get("id2label") or {}
    names = [str(id2label[key]) for key in sorted(id2label, key=int)] or [f"LABEL_{i}" for i in range(count)]
    hint = config.get(HINT, {}).get("head") or {}
    hint = hint if hint.get("name") == "classifier" else {}
    settings: JsonDict = {**hint, **FIXED_SETTINGS[family.modality]}
    if family.modality == "vision":
        settings["norm_eps"] = config.get("layer_norm_eps", 1e-12)
    if family.modality == "speech":
        weight, bias = tensors["projector.weight"], tensors["projector.bias"]
        square = weight.shape[0] == weight.shape[1]
        if square and not hint.get("hidden_layer") and weight.equal(torch.eye(len(weight)).to(weight)) and not bias.any():
            del tensors["projector.weight"], tensors["projector.bias"]  # the identity that `head_to_transformers` writes
        else:
            settings |= {
                "hidden_layer": "linear",
                "hidden_width": None if square and not hint.get("hidden_width") else len(weight),
            }
    problem = config.get("problem_type") or ("regression" if count == 1 else "single_label_classification")
    settings |= {"labels": names, "problem_type": problem}
    return ClassifierSettings.model_validate(settings), tensors


def _check_classifier(family: NativeFamily, settings: ClassifierSettings, encoder: TransformerSettings) -> None:
    """Raises UserError where the class in transformers computes something else."""
    needed = dict(FIXED_SETTINGS[family.modality])
    if family.modality == "speech" and settings.hidden_layer == "linear":
        needed["hidden_layer"] = "linear"
    if family.modality == "text" and settings.hidden_width not in (None, encoder.width):
        needed["hidden_width"] = encoder.width
    if family.modality == "vision":
        needed["norm_eps"] = encoder.norm_eps
        if encoder.final_norm:
            raise unsupported_setting("encoder.final_norm", True, f"with a head {family.name} supports false only")
    for key, value in needed.items():
        if getattr(settings, key) != value:
            raise unsupported_setting(f"head.{key}", getattr(settings, key), f"{family.name} supports {as_yaml(value)} only")
    if len(settings.labels) == 1 and settings.problem_type == "single_label_classification":
        raise unsupported_setting(
            "head.problem_type", settings.problem_type, "it needs at least two labels; one label is a regression"
        )


def _label_index(labels: tuple[str, ...], token: str) -> int | None:
    return labels.index(token) if token in labels else None
