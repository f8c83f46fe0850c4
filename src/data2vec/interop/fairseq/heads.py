"""The heads of fine-tuned official models: CTC, image and sentence classifiers, their settings and key tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from data2vec.data.tokenizer import SPECIAL
from data2vec.errors import UserError, get_logger
from data2vec.interop.fairseq.checkpoint_file import FairseqCheckpoint
from data2vec.interop.fairseq.config import DATA_FOLDER, family_of_recipe
from data2vec.interop.fairseq.key_mapping import BEIT, EAT, TEXT_1, FairseqConfig
from data2vec.interop.key_mapping import Table, affine
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict

log = get_logger(__name__)

HeadSettings = CTCSettings | ClassifierSettings
LETTERS = (*SPECIAL, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""The dictionary of the released speech models."""
LABELS_EXTENSION = "ltr"
"""fairseq's name for letters as labels."""
DICTIONARY = f"dict.{LABELS_EXTENSION}.txt"
"""fairseq's file of CTC labels, in the data folder or beside the checkpoint."""
LABEL_DICTIONARY = "label/dict.txt"
"""fairseq's file of the labels of a sentence classifier."""
CTC_TABLE: Table = affine("out", "proj")
IMAGE_TABLE: Table = {**affine("norm", "fc_norm"), **affine("out", "head")}
GLUE_HEAD = "sentence_classification_head"
"""fairseq's name of the head of a sentence classifier."""
UNSUPPORTED_PREDICTION_MODES = {"CLS_TOKEN": "CLS_TOKEN", "LIN_SOFTMAX": "LIN_SOFTMAX", 2: "CLS_TOKEN", 3: "LIN_SOFTMAX"}
"""Values of `prediction_mode` other than the mean; an Enum is stored by its name or number."""


SOUND_POOLINGS: dict[object, Literal["class-token", "mean"]] = {
    **dict.fromkeys((None, "CLS_TOKEN", 2), "class-token"),
    **dict.fromkeys(("MEAN_POOLING", 1), "mean"),
}
"""Values of `prediction_mode` of EAT."""
AUDIOSET_CLASSES = 527


def sentence_table(head_name: str) -> Table:
    """The key table of a sentence classifier of this name."""
    root = f"classification_heads.{head_name}"
    return {**affine("hidden", f"{root}.dense"), **affine("out", f"{root}.out_proj")}


def head_of_checkpoint(checkpoint: FairseqCheckpoint) -> tuple[HeadSettings, Table] | None:
    """The settings and the key table of the head in a checkpoint; None if there is none, or none for CTC in a speech model.

    Raises UserError for an unsupported head."""
    if not checkpoint.head:
        return None
    if checkpoint.family.modality == "speech":
        return _ctc_head(checkpoint)
    return _sentence_head(checkpoint) if checkpoint.family.modality == "text" else _image_head(checkpoint)


def _ctc_head(checkpoint: FairseqCheckpoint) -> tuple[CTCSettings, Table] | None:
    model_name = str(checkpoint.fine_tuned_config.get("_name"))
    if "proj.weight" not in checkpoint.head or model_name.startswith("audio_classification"):
        log.warning("%s: ignored its head, which is not a CTC head: %s", checkpoint.path, ", ".join(sorted(checkpoint.head)))
        return None
    size = len(checkpoint.head["proj.weight"])
    candidates = (checkpoint.labels, _dictionary_labels(checkpoint.path), LETTERS)
    matching = [tuple(labels) for labels in candidates if labels is not None and len(labels) == size]
    return CTCSettings(labels=matching[0] if matching else _numbered_labels(size)), CTC_TABLE


def _dictionary_labels(path: Path) -> list[str] | None:
    """The labels in the dictionary file beside a checkpoint, after the four special ones."""
    symbols = _dictionary_symbols(path.with_name(DICTIONARY))
    return None if symbols is None else [*SPECIAL, *symbols]


def _dictionary_symbols(file: Path) -> list[str] | None:
    """The symbols in a dictionary file, which has one per line, with its count. Raises UserError if it is no UTF-8 text."""
    if not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not UTF-8 text; convert it, or move it away to number the labels") from None
    return [line.rsplit(" ", 1)[0] for line in lines if line]


def _image_head(checkpoint: FairseqCheckpoint) -> tuple[ClassifierSettings, Table]:
    mode = checkpoint.fine_tuned_config.get("prediction_mode")
    if checkpoint.family == EAT:
        return _sound_head(checkpoint, mode)
    has_norm = "fc_norm.weight" in checkpoint.head
    if mode in UNSUPPORTED_PREDICTION_MODES or (checkpoint.family == BEIT and not has_norm):
        name = UNSUPPORTED_PREDICTION_MODES.get(mode, "CLS_TOKEN")
        raise UserError(f"{checkpoint.path}: prediction_mode {name} is not supported; only the mean over patches is")
    if "head.weight" not in checkpoint.head:
        raise UserError(f"{checkpoint.path}: weights are missing: head.weight")
    labels = _numbered_labels(len(checkpoint.head["head.weight"]))
    return ClassifierSettings(labels=labels, pooling="mean", norm_eps=1e-6 if has_norm else None), IMAGE_TABLE


def _sound_head(checkpoint: FairseqCheckpoint, mode: object) -> tuple[ClassifierSettings, Table]:
    """The head of EAT: a layer norm and a linear layer, on the class token unless its configuration says the mean."""
    pooling = SOUND_POOLINGS.get(mode)
    if pooling is None:
        raise UserError(f"{checkpoint.path}: prediction_mode {mode} is not supported; only the class token or the mean is")
    if "head.weight" not in checkpoint.head:
        raise UserError(f"{checkpoint.path}: weights are missing: head.weight")
    count, own = len(checkpoint.head["head.weight"]), checkpoint.own_settings.get("head")
    settings: JsonDict = {"labels": _numbered_labels(count), "pooling": pooling}
    settings["norm_eps"] = 1e-6 if "fc_norm.weight" in checkpoint.head else None
    if isinstance(own, dict):
        settings |= {key: own[key] for key in ("labels", "problem_type", "norm_eps") if key in own}
    elif count == AUDIOSET_CLASSES:
        settings["problem_type"] = "multi_label_classification"
    else:
        log.warning("%s: its %d classes are taken as exclusive; the file does not say whether they are", checkpoint.path, count)
    return ClassifierSettings.model_validate(settings), IMAGE_TABLE


def _sentence_head(checkpoint: FairseqCheckpoint) -> tuple[ClassifierSettings, Table]:
    path, head = checkpoint.path, checkpoint.head
    names = list(dict.fromkeys(key.split(".")[1] for key in head if key.startswith("classification_heads.")))
    if not names:
        raise UserError(f"{path}: unsupported head: {', '.join(sorted(head))}; expected classification_heads")
    if len(names) > 1:
        log.warning("%s: has heads %s; using %s", path, ", ".join(names), names[0])
    dense, out = (head.get(f"classification_heads.{names[0]}.{part}.weight") for part in ("dense", "out_proj"))
    if dense is None or out is None:
        raise UserError(f"{path}: weights are missing: classification_heads.{names[0]}.dense or .out_proj")
    hidden_width, width = dense.shape
    named = [label for label in _dictionary_symbols(path.parent / LABEL_DICTIONARY) or () if not label.startswith("madeupword")]
    settings = ClassifierSettings(
        labels=tuple(named) if len(named) == len(out) else _numbered_labels(len(out)),
        problem_type="regression" if len(out) == 1 else "single_label_classification",
        pooling="first",
        hidden_layer="tanh",
        hidden_width=None if hidden_width == width else hidden_width,
    )
    return settings, sentence_table(names[0])


def _numbered_labels(size: int) -> tuple[str, ...]:
    return tuple(f"label {i}" for i in range(size))


@dataclass(frozen=True)
class FairseqHead:
    """How the official code stores a head."""

    table: Table
    """Keys of its weights."""
    model: FairseqConfig
    """The configuration of the model."""
    task: FairseqConfig
    """The configuration of its task."""
    encoder_prefix: str
    """Prefix of the encoder's keys in a fine-tuned checkpoint."""


def head_to_fairseq(recipe: Recipe, head: HeadSettings, pretrained: FairseqConfig) -> FairseqHead:
    """How the official code stores this head on a model with the configuration `pretrained` ("model" and "task").

    Raises UserError for a head that it does not have."""
    family = family_of_recipe(recipe)
    official: HeadSettings
    if family.modality == "speech":
        official = CTCSettings(labels=head.labels)
        stored = _ctc_to_fairseq(pretrained)
    elif family == EAT:
        given = cast(ClassifierSettings, head)
        shape: JsonDict = {"pooling": "mean" if given.pooling == "mean" else "class-token", "norm_eps": given.norm_eps}
        official = ClassifierSettings(labels=head.labels, **shape)
        stored = _image_head_to_fairseq(recipe, len(head.labels), given.norm_eps is not None, pretrained)
        stored.model["prediction_mode"] = "MEAN_POOLING" if given.pooling == "mean" else "CLS_TOKEN"
    elif family.modality == "vision":
        eps = 1e-6 if family == BEIT or getattr(head, "norm_eps", None) else None
        official = ClassifierSettings(labels=head.labels, pooling="mean", norm_eps=eps)
        stored = _image_head_to_fairseq(recipe, len(head.labels), eps is not None, pretrained)
    else:
        official = ClassifierSettings(labels=head.labels, pooling="first", hidden_layer="tanh")
        stored = _sentence_head_to_fairseq(recipe, len(head.labels), pretrained)
    stored_elsewhere = {"labels", "problem_type"}
    ours, theirs = head.model_dump(exclude=stored_elsewhere), official.model_dump(exclude=stored_elsewhere)
    if ours.get("hidden_width") == recipe.encoder.width:
        theirs["hidden_width"] = recipe.encoder.width  # the official default
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"head.{key}: {ours.get(key)!r} is not supported by the official {family} model; it has {theirs.get(key)!r}"
            )
    problem = getattr(head, "problem_type", None)
    if family.modality == "text" and (problem == "regression") != (len(head.labels) == 1):
        raise UserError(
            f"head.problem_type: {problem!r} with {len(head.labels)} labels is not supported by the official {family} model; "
            "there one label is a regression, several are not"
        )
    return stored


def _ctc_to_fairseq(pretrained: FairseqConfig) -> FairseqHead:
    model = {"_name": "wav2vec_ctc", "w2v_path": "", "data": DATA_FOLDER, "normalize": True, "w2v_args": pretrained}
    task = {"_name": "audio_finetuning", "data": DATA_FOLDER, "labels": LABELS_EXTENSION, "normalize": True}
    return FairseqHead(affine("out", "w2v_encoder.proj"), model, task, "w2v_encoder.w2v_model.")


def _image_head_to_fairseq(recipe: Recipe, classes: int, has_norm: bool, pretrained: FairseqConfig) -> FairseqHead:
    if family_of_recipe(recipe) == BEIT:
        return FairseqHead(IMAGE_TABLE, pretrained["model"] | {"nb_classes": classes}, pretrained["task"], "")
    e = recipe.encoder
    model = {
        "_name": "mae_image_classification",
        "model_path": "",
        "data": DATA_FOLDER,
        "num_classes": classes,
        "use_fc_norm": has_norm,
        # The official model overwrites the settings of the pre-trained one with these.
        "drop_path_rate": e.drop_path,
        "encoder_dropout": e.dropout,
        "post_mlp_drop": e.dropout,
        "prenet_dropout": e.dropout,
        "attention_dropout": e.attention_dropout,
        "activation_dropout": e.activation_dropout,
        "layerdrop": e.layerdrop,
        "prenet_layerdrop": e.layerdrop,
        "pretrained_model_args": pretrained,
    }
    task = {"_name": "mae_image_classification", "data": DATA_FOLDER}
    task |= {key: value for key, value in pretrained["task"].items() if key == "input_size"}
    return FairseqHead(IMAGE_TABLE, model, task, "model.")


def _sentence_head_to_fairseq(recipe: Recipe, classes: int, pretrained: FairseqConfig) -> FairseqHead:
    max_length = pretrained["task"]["tokens_per_sample"]
    task = {
        "_name": "sentence_prediction",
        "data": DATA_FOLDER,
        "num_classes": classes,
        "regression_target": classes == 1,
        "classification_head_name": GLUE_HEAD,
        "init_token": 0,
        "separator_token": 2,
        "max_positions": max_length,
        "d2v2_multi": family_of_recipe(recipe).version == 2,
    }
    table = sentence_table(GLUE_HEAD)
    if family_of_recipe(recipe) == TEXT_1:
        return FairseqHead(table, pretrained["model"] | {"load_checkpoint_heads": True}, task, "")
    model = {"_name": "data2vec_text_classification", "model_path": "", "pretrained_model_args": pretrained}
    return FairseqHead(table, model, task, "model.")
