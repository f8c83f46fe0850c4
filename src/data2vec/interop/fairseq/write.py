"""Writing a `Model` as an official checkpoint: plain containers and tensors only, with the official keys and shapes."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError
from data2vec.interop.fairseq.checkpoint_file import NEW, OWN_SETTINGS
from data2vec.interop.fairseq.config import EAT_COLUMNS, fairseq_config, family_of_recipe, own_settings
from data2vec.interop.fairseq.dictionaries import write_dictionaries
from data2vec.interop.fairseq.heads import head_to_fairseq
from data2vec.interop.fairseq.key_mapping import BEIT, EAT, SPEECH_1, TEXT_1, FairseqConfig, Family, Tensors, key_table
from data2vec.interop.fairseq.read import POSITIONS
from data2vec.interop.key_mapping import Table, to_foreign_keys
from data2vec.modalities.sound import SoundSettings
from data2vec.modalities.vision import Vision
from data2vec.model import Model
from data2vec.nn.position_encoders import RelativePositionEncoder, sincos_positions
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.settings import JsonDict

EAT_ROWS = 768
"""Patches in time of the positions that the code of EAT has; it uses the first ones."""
VERSION = "encoder.sentence_encoder.version"


def write_fairseq_checkpoint(model: Model, path: Path) -> list[str]:
    """Write `model` as an official checkpoint; returns a description of each part of it that cannot be stored.

    The file is a fairseq `.pt` with the teacher nested as `_ema`; for version 1 vision, a file of the BEiT fork. Labels and
    tokens are written beside it: see `write_dictionaries`. A version 1 model of speech or text without teacher and prediction
    head gets new ones, which official code requires and `read_fairseq_checkpoint` leaves out. Raises UserError, naming the
    setting, when the official code has no such model."""
    family = family_of_recipe(model.recipe)
    config, task, lost, recipe = _official_config(model)
    table = key_table(family, config, getattr(model.recipe.modality, "position_tables", 1))
    student = _official_tensors(model.encoder.state_dict(), table, family) | _computed_buffers(model, family)
    pretraining = dict(model.pretraining)
    is_new = not pretraining and (family == TEXT_1 or (family == SPEECH_1 and model.head is None))
    if is_new:
        pretraining = _new_pretraining(recipe, model)
        lost.append("its teacher and prediction head: it has none; those in the file are new, as official code requires them")
    head = None if model.head is None else head_to_fairseq(model.recipe, model.head.settings, {"model": config, "task": task})
    teacher: Tensors = {}
    if head is None or family == TEXT_1:
        rest = {name: value for name, value in pretraining.items() if not name.startswith("teacher.")}
        student |= _official_tensors(rest, table, family)
        teacher = _teacher(recipe, pretraining, table, family, student)
    elif pretraining:
        lost += ["the teacher and the prediction head: fine-tuned checkpoints have none"]
    if family.version == 2:
        config |= _without_pretraining(config, bool(teacher), any(".decoder." in name for name in student))
    whole: FairseqConfig = {"model": config, "task": task}
    if head is not None and model.head is not None:
        student = {head.encoder_prefix + name: value for name, value in student.items()}
        student |= _official_tensors(model.head.state_dict(), head.table, family)
        whole = {"model": head.model, "task": head.task}
    lost += write_dictionaries(model, path.parent)
    lost += ["how it was trained: the sections data, train, probe and log of its recipe"]
    lost += [f"its {key}: {value}" for key in ("source", "license") if (value := getattr(model, key))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as tmp, tmp.open("wb") as file:
        container = _container(family, student, teacher, whole, is_new)
        if own := own_settings(model.recipe):
            if model.head is not None:
                own["head"] = model.head.settings.model_dump(mode="json", include={"labels", "problem_type", "norm_eps"})
            container["extra_state"][OWN_SETTINGS] = own
        torch.save(container, file)
    return lost


def _new_pretraining(recipe: Recipe, model: Model) -> dict[str, Tensor]:
    """What pre-training would start with: the teacher as a copy of the student, and a prediction head with new weights."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        objective = recipe.build_objective(model.encoder)
    return {name: value for name, value in objective.state_dict().items() if not name.startswith("student.")}


def _without_pretraining(config: FairseqConfig, has_teacher: bool, has_decoder: bool) -> FairseqConfig:
    """The settings of version 2 for a checkpoint that has no teacher or no decoder."""
    settings: FairseqConfig = {} if has_teacher else {"skip_ema": True}
    if not has_decoder:
        modalities = config["modalities"].items()
        settings["modalities"] = {name: modality | {"decoder": None} for name, modality in modalities}
    return settings


def _official_config(model: Model) -> tuple[FairseqConfig, FairseqConfig, list[str], Recipe]:
    """The official configuration of model and task, what it cannot express, and the recipe that it stands for.

    The objective is replaced by the released one if unsupported and not needed."""
    fine_tuned = model.head is not None
    try:
        return *fairseq_config(model.recipe, fine_tuned), model.recipe
    except UserError as problem:
        if not all(line.startswith("objective.") for line in str(problem).splitlines()):
            raise
        if model.pretraining and not fine_tuned:
            raise UserError(f"{problem}\n(to write the encoder only, delete its pretraining.safetensors)") from None
        recipe = _with_released_objective(model.recipe)
        config, task, lost = fairseq_config(recipe, fine_tuned)
        return config, task, [*lost, f"the objective: {'; '.join(str(problem).splitlines())}"], recipe


def _with_released_objective(recipe: Recipe) -> Recipe:
    family, layers = family_of_recipe(recipe), recipe.encoder.layers - recipe.encoder.prenet_layers
    released = load_recipe(family.released_recipe("base")).objective
    target = released.target.model_copy(update={"top_k": min(released.target.top_k, layers)})
    return recipe.model_copy(update={"objective": released.model_copy(update={"target": target})})


def _official_tensors(ours: dict[str, Tensor], table: Table, family: Family) -> Tensors:
    """Our tensors under their official keys and in their official shapes."""
    tensors = to_foreign_keys(ours, {}, table)
    return {key: part.reshape(_official_shape(key, part, family)).detach().cpu().clone() for key, part in tensors.items()}


def _official_shape(key: str, part: Tensor, family: Family) -> tuple[int, ...]:
    shape = tuple(part.shape)
    if key.endswith(("patch_embed.proj.weight", "local_encoder.proj.weight")):
        channels = 1 if family == EAT else 3
        side = round((shape[1] / channels) ** 0.5)
        return shape[0], channels, side, side
    if key in ("mask_token", "cls_token") or key.endswith(".extra_tokens"):
        return 1, part.numel() // shape[-1], shape[-1]
    if key.endswith(".alibi_scale"):
        return 1, 1, shape[0], 1, 1
    if key.endswith("relative_position_bias_table"):
        return shape[-2:]
    if ".decoder.blocks." in key and part.ndim == 4 and family.modality_key != "IMAGE":
        return shape[0], shape[1], shape[3]
    return shape


def _teacher(recipe: Recipe, pretraining: dict[str, Tensor], table: Table, family: Family, student: Tensors) -> Tensors:
    """`_ema`: the part of the model that the official code averages, with the student's weights for shared parts."""
    ours = {n.removeprefix("teacher.ema."): value for n, value in pretraining.items() if n.startswith("teacher.ema.")}
    if not ours:
        return {}
    settings = recipe.objective.teacher
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
    if family == EAT:
        sound = cast(SoundSettings, model.recipe.modality)
        grid = max(EAT_ROWS, sound.frames // sound.patch[0]), EAT_COLUMNS
        return {POSITIONS: sound.position_scale * sincos_positions(grid, model.recipe.encoder.width)[None]}
    if family == Family("vision", 2):
        return {POSITIONS: sincos_positions(cast(Vision, model.modality).side, model.recipe.encoder.width)[None]}
    if family == BEIT:
        positions = cast(RelativePositionEncoder, model.encoder.position_encoder)
        tables = positions.tables
        modules = ["rel_pos_bias"] if tables == 1 else [f"blocks.{i}.attn" for i in range(tables)]
        return {f"{module}.relative_position_index": positions.index.clone() for module in modules}
    return {}


def _container(family: Family, student: Tensors, teacher: Tensors, config: FairseqConfig, new_pretraining: bool) -> JsonDict:
    if family == BEIT:
        return {"model": student, "args": config["model"]} | ({"model_ema": teacher} if teacher else {})
    ema_key = "encoder._ema" if family == TEXT_1 else "_ema"
    return {
        "args": None,
        "cfg": config | {"criterion": None, "lr_scheduler": None},  # official fine-tuning assigns to them
        "model": student | ({ema_key: teacher} if teacher else {}),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "ModelCriterion", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}} | ({NEW: True} if new_pretraining else {}),
        "last_optimizer_state": None,
    }
