"""The heads of fine-tuned official models: their names for ours, and what kind they are."""

import logging
from pathlib import Path
from typing import Any

from data2vec.errors import UserError
from data2vec.interop.fairseq.file import Content
from data2vec.interop.fairseq.key_versions import Tensors
from data2vec.interop.fairseq.models import BEIT, Config, Family
from data2vec.interop.key_mapping import Table, affine
from data2vec.nn.heads import ClassifierSettings, CTCSettings

log = logging.getLogger(__name__)

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LETTERS = (*SPECIAL, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""The dictionary of the released speech models."""
DICTIONARY = "dict.ltr.txt"
"""Where fairseq's labels of speech are, beside the data."""
CTC: Table = affine("out", "proj")
IMAGE: Table = {**affine("norm", "fc_norm"), **affine("out", "head")}
GLUE = "sentence_classification_head"
"""fairseq's name for the head of a classifier of sentences."""
REFUSED = {"CLS_TOKEN": "CLS_TOKEN", "LIN_SOFTMAX": "LIN_SOFTMAX", 2: "CLS_TOKEN", 3: "LIN_SOFTMAX"}
"""Of `prediction_mode`: all but the mean; an Enum is stored by its name or number."""


def sentence(name: str) -> Table:
    """The names of a head for sentences."""
    root = f"classification_heads.{name}"
    return {**affine("inner", f"{root}.dense"), **affine("out", f"{root}.out_proj")}


def settings(content: Content) -> tuple[CTCSettings | ClassifierSettings, Table] | None:
    """The head in a file and the names of its weights; None when there is none.

    Raises UserError for a head of another kind."""
    if not content.head:
        return None
    if content.family.modality == "speech":
        return _ctc(content)
    return _sentence(content) if content.family.modality == "text" else _image(content)


def _ctc(content: Content) -> tuple[CTCSettings, Table] | None:
    if "proj.weight" not in content.head or str(content.outer.get("_name")).startswith("audio_classification"):
        log.warning("%s: its head is not one for CTC, and is left out: %s", content.path, ", ".join(sorted(content.head)))
        return None
    size = len(content.head["proj.weight"])
    beside = _beside(content.path)
    given = [labels for labels in (content.labels, beside, LETTERS) if labels is not None and len(labels) == size]
    return CTCSettings(labels=tuple(given[0]) if given else _numbered(size)), CTC


def _beside(path: Path) -> list[str] | None:
    """The symbols of the dictionary beside the file: four special ones, then one a line, with its count."""
    file = path.with_name(DICTIONARY)
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8").splitlines()
    return [*SPECIAL, *(line.rsplit(" ", 1)[0] for line in lines if line)]


def _image(content: Content) -> tuple[ClassifierSettings, Table]:
    mode = content.outer.get("prediction_mode")
    normed = "fc_norm.weight" in content.head
    if mode in REFUSED or (content.family == BEIT and not normed):
        raise UserError(
            f"{content.path}: prediction_mode {REFUSED.get(mode, 'CLS_TOKEN')} cannot be represented: "
            "a classifier takes the mean of the patches"
        )
    if "head.weight" not in content.head:
        raise UserError(f"{content.path}: weights are missing: head.weight")
    labels = _numbered(len(content.head["head.weight"]))
    return ClassifierSettings(labels=labels, pool="mean", norm_eps=1e-6 if normed else None), IMAGE


def _sentence(content: Content) -> tuple[ClassifierSettings, Table]:
    names = list(dict.fromkeys(name.split(".")[1] for name in content.head if name.startswith("classification_heads.")))
    if not names:
        raise UserError(f"{content.path}: its head is of no known kind: {', '.join(sorted(content.head))}")
    if len(names) > 1:
        log.warning("%s: has the heads %s; %s is taken", content.path, ", ".join(names), names[0])
    table = sentence(names[0])
    dense, out = (content.head.get(f"classification_heads.{names[0]}.{part}.weight") for part in ("dense", "out_proj"))
    if dense is None or out is None:
        raise UserError(f"{content.path}: weights are missing: classification_heads.{names[0]}.dense or .out_proj")
    inner, width = dense.shape
    return ClassifierSettings(
        labels=_numbered(len(out)),
        problem="regression" if len(out) == 1 else "single_label_classification",
        pool="first",
        inner="tanh",
        inner_width=None if inner == width else inner,
    ), table


def _numbered(size: int) -> tuple[str, ...]:
    return tuple(f"label {i}" for i in range(size))


def written(family: Family, head: CTCSettings | ClassifierSettings) -> tuple[Table, Config, str]:
    """For a head of ours: the official names of its weights, the configuration around the pre-trained model's, and the
    prefix of the encoder's names. Raises UserError for a head that the official code does not have."""
    if family.modality == "speech":
        wanted: Any = CTCSettings(labels=head.labels)
        form: tuple[Table, Config, str] = CTC, {"_name": "wav2vec_ctc", "w2v_path": ""}, "w2v_encoder.w2v_model."
    elif family.modality == "vision":
        eps = 1e-6 if family == BEIT or getattr(head, "norm_eps", None) else None
        wanted = ClassifierSettings(labels=head.labels, pool="mean", norm_eps=eps)
        form = IMAGE, {"_name": "mae_image_classification", "use_fc_norm": eps is not None}, "model."
    else:
        wanted = ClassifierSettings(labels=head.labels, pool="first", inner="tanh")
        form = sentence(GLUE), {"_name": "data2vec_text_classification"}, "model."
    free = {"labels", "problem", "inner_width"}
    have, need = head.model_dump(exclude=free), wanted.model_dump(exclude=free)
    for key in have | need:
        if have.get(key) != need.get(key):
            raise UserError(f"head.{key}: {have.get(key)!r} has no counterpart in the official {family}: {need.get(key)!r}")
    single = getattr(head, "problem", None)
    if family.modality == "text" and (single == "regression") != (len(head.labels) == 1):
        raise UserError(
            f"head.problem: {single!r} with {len(head.labels)} labels has no counterpart: one is a regression there"
        )
    table, config, prefix = form
    config = config | {"num_classes": len(head.labels)}
    if family.version == 1 and family.modality != "speech":
        prefix = ""
    return table, config, prefix


def tensors(content: Content, table: Table) -> Tensors:
    """The weights of the head that is taken."""
    wanted = {str(name) for name in table.values()}
    return {name: value for name, value in content.head.items() if name in wanted}
