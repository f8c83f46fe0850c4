"""Reading an official checkpoint as a `Model`; files of any fairseq version or of the vision code."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from data2vec.errors import UserError, get_logger
from data2vec.interop.fairseq.checkpoint_file import FairseqCheckpoint, open_checkpoint
from data2vec.interop.fairseq.config import EAT_COLUMNS
from data2vec.interop.fairseq.heads import head_of_checkpoint
from data2vec.interop.fairseq.infer_architecture import architecture_from_tensors, config_contradictions, infer_recipe
from data2vec.interop.fairseq.key_mapping import EAT, Tensors, key_table
from data2vec.interop.key_mapping import Table, foreign_keys, to_our_keys
from data2vec.modalities.sound import SoundSettings
from data2vec.modalities.vision import Vision
from data2vec.model import Model, blank_model
from data2vec.nn.position_encoders import sincos_positions
from data2vec.objective.latent import LatentObjective
from data2vec.recipe.recipe import Recipe

log = get_logger(__name__)

POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


def read_fairseq_checkpoint(path: Path) -> Model:
    """The model in an official `.pt` or `.pth` of version 1 or 2: any modality, pre-trained or fine-tuned.

    Sizes come from its tensors, the rest from the configuration in the file, and what that lacks from the released recipe. A
    fine-tuned version 1 image model normalises with mean and standard deviation 0.5, as in its official fine-tuning command.
    Raises UserError for a file that is damaged, lacks weights, or is not supported."""
    checkpoint = open_checkpoint(path)
    architecture = architecture_from_tensors(checkpoint.family, checkpoint.student, checkpoint.model_config, str(path))
    for contradiction in config_contradictions(checkpoint.model_config, architecture):
        log.warning("%s: %s; using the tensors", path, contradiction)
    inferred = infer_recipe(checkpoint, architecture)
    recipe = inferred.recipe
    if isinstance(recipe.modality, SoundSettings) and recipe.modality.columns != EAT_COLUMNS:
        found = f"{recipe.modality.columns} patches of one channel in frequency, where EAT has {EAT_COLUMNS}"
        raise UserError(f"{path}: {found}; images of one channel are not supported")
    if isinstance(recipe.modality, SoundSettings) and not checkpoint.own_settings:
        message = "%s: an EAT model; its input is normalized by mean %g and std %g, those of AudioSet, as the file has none"
        log.warning(message, path, recipe.modality.mean, recipe.modality.std)
    checkpoint = _expand_alibi_scale(checkpoint, recipe.encoder.heads)
    table = key_table(checkpoint.family, inferred.config, getattr(recipe.modality, "position_tables", 1))
    head = head_of_checkpoint(checkpoint)
    model = blank_model(recipe, head[0] if head else None)
    used = _load_weights(model.encoder, checkpoint.student, table, path)
    if model.head is not None and head is not None:
        used |= _load_weights(model.head, checkpoint.head, head[1], path)
    _check_fixed_positions(checkpoint, recipe)
    pretraining, pretraining_keys = _pretraining_weights(checkpoint, inferred.objective, table)
    stored = checkpoint.student.keys() | checkpoint.head.keys() | checkpoint.teacher.keys()
    if unused := sorted(stored - used - pretraining_keys - {POSITIONS}):
        log.warning("%s: ignored unknown tensors: %s", path, ", ".join(unused))
    return _share_copied_parts(replace(model, pretraining=pretraining, source=f"the official checkpoint {path.name}"))


def _load_weights(module: nn.Module, foreign: Tensors, table: Table, path: Path) -> set[str]:
    """Load official weights into a module; returns the keys that were used."""
    ours = module.state_dict()
    module.load_state_dict(_checked_weights(foreign, ours, table, path))
    return _foreign_key_set(ours, table)


def _foreign_key_set(ours: Iterable[str], table: Table) -> set[str]:
    return {key for keys in foreign_keys(ours, table).values() for key in keys}


def _checked_weights(foreign: Tensors, ours: Mapping[str, Tensor], table: Table, path: Path) -> dict[str, Tensor]:
    """Official weights under our names. Raises UserError for missing ones and for one of another shape."""
    keys_by_name = foreign_keys(ours, table)
    missing = [key for keys in keys_by_name.values() for key in keys if key not in foreign]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(f"{path}: weights are missing: {', '.join(missing[:10])}{more}")
    for name, keys in keys_by_name.items():
        for key in keys:
            if not _same_shape(foreign[key], ours[name], len(keys)):
                shape, expected = tuple(foreign[key].shape), tuple(ours[name].shape)
                raise UserError(f"{path}: {key} has shape {shape}, which does not match {name} of shape {expected}")
    return to_our_keys(foreign, ours, table)


def _same_shape(official: Tensor, ours: Tensor, parts: int) -> bool:
    """Whether `official` has the shape of `ours`, or of one of its `parts`, up to axes of length 1 and flattened patches."""
    flat = official.flatten(1) if ours.ndim == 2 and official.ndim == 4 else official
    actual = [size for size in flat.shape if size != 1]
    expected = [size for size in (ours.shape[0] // parts, *ours.shape[1:]) if size != 1]
    return actual == expected


def _expand_alibi_scale(checkpoint: FairseqCheckpoint, heads: int) -> FairseqCheckpoint:
    """The checkpoint with one ALiBi scale per head, where a single scale for all heads is stored."""

    def expand(tensors: Tensors) -> Tensors:
        single = {name for name, value in tensors.items() if name.endswith(".alibi_scale") and value.numel() == 1}
        return tensors | {name: tensors[name].reshape(1).repeat(heads) for name in single}

    return replace(checkpoint, student=expand(checkpoint.student), teacher=expand(checkpoint.teacher))


def _check_fixed_positions(checkpoint: FairseqCheckpoint, recipe: Recipe) -> None:
    """Fixed positions are computed, not loaded. Raises UserError when those in the file differ."""
    for tensors in (checkpoint.student, checkpoint.teacher):
        if (stored := tensors.get(POSITIONS)) is not None:
            scale = getattr(recipe.modality, "position_scale", 1.0)
            computed = scale * sincos_positions(_grid(recipe, stored), recipe.encoder.width)
            if stored.numel() != computed.numel() or not torch.allclose(stored.view(computed.shape), computed, atol=2e-3):
                gray = f" of EAT, with {EAT_COLUMNS} columns; images of one channel are not supported"
                only = gray if checkpoint.family == EAT else ", the only ones supported"
                raise UserError(f"{checkpoint.path}: {POSITIONS} are not sine-cosine positions{only}")


def _grid(recipe: Recipe, stored: Tensor) -> tuple[int, int]:
    """The grid of `stored` positions: of an image; of sound as many rows as there are."""
    if isinstance(recipe.modality, SoundSettings):
        return max(1, stored.numel() // (recipe.encoder.width * recipe.modality.columns)), recipe.modality.columns
    return cast(Vision, recipe.build_modality()).side


def _pretraining_weights(
    checkpoint: FairseqCheckpoint, objective: LatentObjective | None, table: Table
) -> tuple[dict[str, Tensor], set[str]]:
    """Teacher and prediction head or decoder under the names of the objective, if present, and the keys they may have."""
    if objective is None:
        return {}, set()
    teacher = objective.teacher.ema.state_dict()
    rest = {name: value for name, value in objective.state_dict().items() if not name.startswith(("student.", "teacher."))}
    weights = {}
    if checkpoint.has_prediction_head:
        weights = _checked_weights(checkpoint.student, rest, table, checkpoint.path)
    if checkpoint.teacher:
        averaged = _checked_weights(checkpoint.teacher, teacher, table, checkpoint.path)
        weights |= {f"teacher.ema.{name}": value for name, value in averaged.items()}
    return weights, _foreign_key_set(rest, table)


def _share_copied_parts(model: Model) -> Model:
    """Teacher parts that equal the student's and are copied in training become shared: the same result without the memory."""
    teacher, student = model.recipe.objective.teacher, model.encoder.state_dict()
    pretraining, shared = dict(model.pretraining), {}
    for part in ("local_encoder", "position_encoder"):
        names = {name for name in pretraining if name.startswith(f"teacher.ema.{part}.")}
        equal = all(torch.equal(pretraining[name], student[name.removeprefix("teacher.ema.")]) for name in names)
        if getattr(teacher, part) == "copied" and equal:
            shared[part] = "shared"
            pretraining = {name: value for name, value in pretraining.items() if name not in names}
    objective = model.recipe.objective.model_copy(update={"teacher": teacher.model_copy(update=shared)})
    return replace(model, recipe=model.recipe.model_copy(update={"objective": objective}), pretraining=pretraining)
