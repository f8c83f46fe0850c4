"""The heads of fine-tuned official models: CTC, image and sentence classifiers, their settings and key tables."""

from dataclasses import dataclass
from pathlib import Path

from data2vec.data.tokenizer import SPECIAL
from data2vec.errors import UserError, get_logger
from data2vec.interop.fairseq.checkpoint_file import FairseqCheckpoint
from data2vec.interop.fairseq.key_mapping import BEIT, FairseqConfig, Family
from data2vec.interop.key_mapping import Table, affine
from data2vec.nn.heads import ClassifierSettings, CTCSettings

log = get_logger(__name__)

HeadSettings = CTCSettings | ClassifierSettings
LETTERS = (*SPECIAL, *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""The dictionary of the released speech models."""
DICTIONARY = "dict.ltr.txt"
"""fairseq's file of CTC labels, in the data folder or beside the checkpoint."""
CTC_TABLE: Table = affine("out", "proj")
IMAGE_TABLE: Table = {**affine("norm", "fc_norm"), **affine("out", "head")}
GLUE_HEAD = "sentence_classification_head"
"""fairseq's name of the head of a sentence classifier."""
UNSUPPORTED_PREDICTION_MODES = {"CLS_TOKEN": "CLS_TOKEN", "LIN_SOFTMAX": "LIN_SOFTMAX", 2: "CLS_TOKEN", 3: "LIN_SOFTMAX"}
"""Values of `prediction_mode` other than the mean; an Enum is stored by its name or number."""


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
    """The labels in the dictionary file beside a checkpoint: four special ones, then one per line with its count."""
    file = path.with_name(DICTIONARY)
    if not file.is_file():
        return None
    lines = file.read_text(encoding="utf-8").splitlines()
    return [*SPECIAL, *(line.rsplit(" ", 1)[0] for line in lines if line)]


def _image_head(checkpoint: FairseqCheckpoint) -> tuple[ClassifierSettings, Table]:
    mode = checkpoint.fine_tuned_config.get("prediction_mode")
    has_norm = "fc_norm.weight" in checkpoint.head
    if mode in UNSUPPORTED_PREDICTION_MODES or (checkpoint.family == BEIT and not has_norm):
        name = UNSUPPORTED_PREDICTION_MODES.get(mode, "CLS_TOKEN")
        raise UserError(f"{checkpoint.path}: prediction_mode {name} is not supported; only the mean over patches is")
    if "head.weight" not in checkpoint.head:
        raise UserError(f"{checkpoint.path}: weights are missing: head.weight")
    labels = _numbered_labels(len(checkpoint.head["head.weight"]))
    return ClassifierSettings(labels=labels, pooling="mean", norm_eps=1e-6 if has_norm else None), IMAGE_TABLE


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
    settings = ClassifierSettings(
        labels=_numbered_labels(len(out)),
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
    config: FairseqConfig
    """The configuration around that of the pre-trained model."""
    encoder_prefix: str
    """Prefix of the encoder's keys in a fine-tuned checkpoint."""


def head_to_fairseq(family: Family, head: HeadSettings) -> FairseqHead:
    """How the official code stores this head. Raises UserError for a head that it does not have."""
    official: HeadSettings
    if family.modality == "speech":
        official = CTCSettings(labels=head.labels)
        stored = FairseqHead(CTC_TABLE, {"_name": "wav2vec_ctc", "w2v_path": ""}, "w2v_encoder.w2v_model.")
    elif family.modality == "vision":
        eps = 1e-6 if family == BEIT or getattr(head, "norm_eps", None) else None
        official = ClassifierSettings(labels=head.labels, pooling="mean", norm_eps=eps)
        stored = FairseqHead(IMAGE_TABLE, {"_name": "mae_image_classification", "use_fc_norm": eps is not None}, "model.")
    else:
        official = ClassifierSettings(labels=head.labels, pooling="first", hidden_layer="tanh")
        stored = FairseqHead(sentence_table(GLUE_HEAD), {"_name": "data2vec_text_classification"}, "model.")
    stored_elsewhere = {"labels", "problem_type", "hidden_width"}
    ours, theirs = head.model_dump(exclude=stored_elsewhere), official.model_dump(exclude=stored_elsewhere)
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
    prefix = "" if family.version == 1 and family.modality != "speech" else stored.encoder_prefix
    return FairseqHead(stored.table, stored.config | {"num_classes": len(head.labels)}, prefix)
