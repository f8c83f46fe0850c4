"""Writing a `Model` as an official checkpoint: plain containers and tensors only, with the official keys and shapes."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from data2vec.atomic_io import atomic_write, write_text
from data2vec.errors import UserError
from data2vec.interop.fairseq.config import fairseq_config, family_of_recipe
from data2vec.interop.fairseq.heads import DICTIONARY, SPECIAL, head_to_fairseq
from data2vec.interop.fairseq.key_mapping import BEIT, TEXT_1, FairseqConfig, Family, Tensors, key_table
from data2vec.interop.fairseq.read import POSITIONS
from data2vec.interop.key_mapping import Table, to_foreign_keys
from data2vec.modalities.vision import Vision
from data2vec.model import Model
from data2vec.nn.heads import CTCSettings
from data2vec.nn.position_encoders import RelativePositionEncoder, sincos_positions
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict

VERSION = "encoder.sentence_encoder.version"


def write_fairseq_checkpoint(model: Model, path: Path) -> list[str]:
    """Write `model` as an official checkpoint; returns a description of each part of it that cannot be stored.

    The file is a fairseq `.pt` with the teacher nested as `_ema`; for version 1 vision, a file of the BEiT fork. CTC labels
    are written beside it as `dict.ltr.txt`, the tokenizer of a text model as `tokenizer.json`. Raises UserError, naming the
    setting, when the official code has no such model."""
    family = family_of_recipe(model.recipe)
    config, task, lost = _official_config(model)
    table = key_table(family, config, getattr(model.recipe.modality, "position_tables", 1))
    student = _official_tensors(model.encoder.state_dict(), table, family) | _computed_buffers(model, family)
    teacher: Tensors = {}
    if model.head is None:
        rest = {name: value for name, value in model.pretraining.items() if not name.startswith("teacher.")}
        student |= _official_tensors(rest, table, family)
        teacher = _teacher(model, table, family, student)
    else:
        lost += ["the teacher and the prediction head: fine-tuned checkpoints have none"] if model.pretraining else []
    whole: FairseqConfig = {"model": config, "task": task}
    if model.head is not None:
        head = head_to_fairseq(family, model.head.settings)
        student = {head.encoder_prefix + name: value for name, value in student.items()}
        student |= _official_tensors(model.head.state_dict(), head.table, family)
        whole = whole | {"model": _fine_tuned_config(head.config, whole, family)}
    lost += _write_files_beside(model, path)
    lost += ["how it was trained: the sections data, train, probe and log of its recipe"]
    lost += [f"its {key}: {value}" for key in ("source", "license") if (value := getattr(model, key))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as tmp, tmp.open("wb") as file:
        torch.save(_container(family, student, teacher, whole), file)
    return lost


def _official_config(model: Model) -> tuple[FairseqConfig, FairseqConfig, list[str]]:
    """The official configuration. The objective is replaced by the released one if unsupported and not needed."""
    fine_tuned = model.head is not None
    try:
        return fairseq_config(model.recipe, fine_tuned)
    except UserError as problem:
        if not all(line.startswith("objective.") for line in str(problem).splitlines()):
            raise
        if model.pretraining and not fine_tuned:
            raise UserError(f"{problem}\n(to write the encoder only, delete its pretraining.safetensors)") from None
        config, task, lost = fairseq_config(_with_released_objective(model.recipe), fine_tuned)
        return config, task, [*lost, f"the objective: {'; '.join(str(problem).splitlines())}"]


def _with_released_objective(recipe: Recipe) -> Recipe:
    family, layers = family_of_recipe(recipe), recipe.encoder.layers - recipe.encoder.prenet_layers
    released = load_recipe(f"{family.modality}/v{family.version}-base").objective
    target = released.target.model_copy(update={"top_k": min(released.target.top_k, layers)})
    return recipe.model_copy(update={"objective": released.model_copy(update={"target": target})})


def _official_tensors(ours: dict[str, Tensor], table: Table, family: Family) -> Tensors:
    """Our tensors under their official keys and in their official shapes."""
    tensors = to_foreign_keys(ours, {}, table)
    return {key: part.reshape(_official_shape(key, part, family)).detach().cpu().clone() for key, part in tensors.items()}


def _official_shape(key: str, part: Tensor, family: Family) -> tuple[int, ...]:
    shape = tuple(part.shape)
    if key.endswith(("patch_embed.proj.weight", "local_encoder.proj.weight")):
        side = round((shape[1] / 3) ** 0.5)
        return shape[0], 3, side, side
    if key in ("mask_token", "cls_token") or key.endswith(".extra_tokens"):
        return 1, part.numel() // shape[-1], shape[-1]
    if key.endswith(".alibi_scale"):
        return 1, 1, shape[0], 1, 1
    if key.endswith("relative_position_bias_table"):
        return shape[-2:]
    if ".decoder.blocks." in key and part.ndim == 4 and family.modality != "vision":
        return shape[0], shape[1], shape[3]
    return shape


def _teacher(model: Model, table: Table, family: Family, student: Tensors) -> Tensors:
    """`_ema`: the part of the model that the official code averages, with the student's weights for shared parts."""
    ours = {n.removeprefix("teacher.ema."): value for n, value in model.pretraining.items() if n.startswith("teacher.ema.")}
    if not ours:
        return {}
    settings = model.recipe.objective.teacher
    teacher = student | _official_tensors(ours, table, family)
    if family.version == 1:
        if family == BEIT or (settings.local_encoder == "averaged" and family.modality == "speech"):
            return teacher
        prefix = "encoder." if family.modality == "speech" else "encoder.sentence_encoder."
    elif settings.prenet == "shared":
        prefix = "blocks."
    else:
        shared = () if settings.local_encoder == "averaged" else (".local_encoder.", ".project_features.")
        return {name: value for name, value in teacher.items() if not any(part in name for part in (".decoder.", *shared))}
    return {name.removeprefix(prefix): value for name, value in teacher.items() if name.startswith(prefix)}


def _computed_buffers(model: Model, family: Family) -> Tensors:
    """Buffers that official checkpoints store and this package computes."""
    if family == TEXT_1:
        return {VERSION: torch.tensor([3.0])}
    if family == Family("vision", 2):
        return {POSITIONS: sincos_positions(cast(Vision, model.modality).side, model.recipe.encoder.width)[None]}
    if family == BEIT:
        positions = cast(RelativePositionEncoder, model.encoder.position_encoder)
        tables = positions.tables
        modules = ["rel_pos_bias"] if tables == 1 else [f"blocks.{i}.attn" for i in range(tables)]
        return {f"{module}.relative_position_index": positions.index.clone() for module in modules}
    return {}


def _fine_tuned_config(outer: FairseqConfig, inner: FairseqConfig, family: Family) -> FairseqConfig:
    """The configuration of a fine-tuned model, which in most models holds that of the pre-trained one."""
    if family.version == 1 and family.modality != "speech":
        return inner["model"] | ({"load_checkpoint_heads": True} if family.modality == "text" else {})
    return outer | {"w2v_args" if family.modality == "speech" else "pretrained_model_args": inner}


def _write_files_beside(model: Model, path: Path) -> list[str]:
    """Write labels and tokenizer, which official code reads from separate files; returns what cannot be stored there."""
    head = None if model.head is None else model.head.settings
    lost = []
    if isinstance(head, CTCSettings):
        lines = "".join(f"{label} 1\n" for label in head.labels[4:])
        if head.labels[:4] != SPECIAL:
            lost.append(f"the labels of its head: the first four must be {', '.join(SPECIAL)}")
        elif not _write_if_absent(path.with_name(DICTIONARY), lines):
            lost.append(f"the labels of its head: a different {DICTIONARY} exists")
    elif head is not None:
        lost.append("the labels of its head")
        lost += [f"head.problem_type: {head.problem_type}"] if head.problem_type == "multi_label_classification" else []
    tokenizer = getattr(model.modality, "tokenizer", None)
    if tokenizer is not None and not _write_if_absent(path.with_name("tokenizer.json"), tokenizer.to_str(pretty=True)):
        lost.append("its tokenizer: a different tokenizer.json exists")
    return lost


def _write_if_absent(path: Path, text: str) -> bool:
    """Write a file unless it exists; whether it has this content now."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    return path.read_text(encoding="utf-8") == text


def _container(family: Family, student: Tensors, teacher: Tensors, config: FairseqConfig) -> JsonDict:
    if family == BEIT:
        return {"model": student, "args": config["model"]} | ({"model_ema": teacher} if teacher else {})
    ema_key = "encoder._ema" if family == TEXT_1 else "_ema"
    return {
        "args": None,
        "cfg": config,
        "model": student | ({ema_key: teacher} if teacher else {}),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "ModelCriterion", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }
