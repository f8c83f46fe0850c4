"""Official models, read: whatever code wrote the file, one `Model` comes of it. They are written by `official_write`."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop import key_mapping as keys
from data2vec.interop.fairseq import heads as official_heads
from data2vec.interop.fairseq.file import Content, open_file
from data2vec.interop.fairseq.infer_recipe import recipe_of
from data2vec.interop.fairseq.infer_sizes import contradictions, sizes
from data2vec.interop.fairseq.key_versions import Tensors, table
from data2vec.interop.fairseq.write import write
from data2vec.model import Model, blank_model
from data2vec.nn.position_encoders import sincos_2d
from data2vec.objective import Objective
from data2vec.recipe.recipe import Recipe

__all__ = ["read", "write"]

log = logging.getLogger(__name__)

POSITIONS = "modality_encoders.IMAGE.fixed_positional_encoder.positions"


def read(path: Path) -> Model:
    """The model in an official `.pt` or `.pth` of version 1 or 2: any modality, pre-trained or fine-tuned.

    What its tensors tell is taken from them; the rest from the configuration in the file, and where that is silent from
    the released recipe. Of a fine-tuned image model of version 1, mean and deviation of the colours are 0.5, as in the
    commands it was trained with. Raises UserError for a file that is damaged, lacks weights, or cannot be represented."""
    content = open_file(path)
    known = sizes(content.family, content.student, content.model, str(path))
    for line in contradictions(content.model, known):
        log.warning("%s: %s; the tensors are followed", path, line)
    recipe, config, objective = recipe_of(content, known)
    content = _widened(content, recipe.encoder.heads)
    names = table(content.family, config, getattr(recipe.modality, "position_tables", 1))
    head = official_heads.settings(content)
    model = blank_model(recipe, head[0] if head else None)
    used = _fill(model.encoder, content.student, names, path)
    if model.head is not None and head is not None:
        used |= _fill(model.head, content.head, head[1], path)
    _check_positions(content, recipe)
    pretraining, also = _pretraining(content, objective, names)
    unknown = sorted((content.student.keys() | content.head.keys() | content.teacher.keys()) - used - also - {POSITIONS})
    if unknown:
        log.warning("%s: tensors of no known use were left out: %s", path, ", ".join(unknown))
    return _shared(replace(model, pretraining=pretraining, source=f"the official file {path.name}"))


def _fill(part: torch.nn.Module, foreign: Tensors, names: keys.Table, path: Path) -> set[str]:
    """Put the official weights into a part of ours; returns the names of those that were used."""
    ours = part.state_dict()
    part.load_state_dict(_taken(foreign, ours, names, path))
    return _foreign(names, ours)


def _foreign(names: keys.Table, ours: Any) -> set[str]:
    return {name for several in keys.names(ours, names).values() for name in several}


def _taken(foreign: Tensors, ours: Mapping[str, Tensor], names: keys.Table, path: Path) -> dict[str, Tensor]:
    """Official weights by our names. Raises UserError for missing ones, and for one of another shape."""
    wanted = keys.names(ours, names)
    missing = [name for several in wanted.values() for name in several if name not in foreign]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise UserError(f"{path}: weights are missing: {', '.join(missing[:10])}{more}")
    for name, several in wanted.items():
        for each in several:
            if not _fits(foreign[each], ours[name], len(several)):
                shape, needed = tuple(foreign[each].shape), tuple(ours[name].shape)
                raise UserError(f"{path}: {each} is of shape {shape}, which does not fit the others ({name}: {needed})")
    return keys.read(foreign, ours, names)


def _fits(official: Tensor, ours: Tensor, parts: int) -> bool:
    """Whether the official tensor is ours, or one of its `parts`, but for axes of length 1 and for flattened patches."""
    have = [size for size in (official.flatten(1) if ours.ndim == 2 and official.ndim == 4 else official).shape if size != 1]
    need = [size for size in (ours.shape[0] // parts, *ours.shape[1:]) if size != 1]
    return have == need


def _widened(content: Content, heads: int) -> Content:
    """With an ALiBi scale for each head, where one was stored for all of them."""

    def wide(tensors: Tensors) -> Tensors:
        single = {name for name, value in tensors.items() if name.endswith(".alibi_scale") and value.numel() == 1}
        return tensors | {name: tensors[name].reshape(1).repeat(heads) for name in single}

    return replace(content, student=wide(content.student), teacher=wide(content.teacher))


def _check_positions(content: Content, recipe: Recipe) -> None:
    """Fixed positions are computed here, not stored. Raises UserError when those in the file are others."""
    for tensors in (content.student, content.teacher):
        if (stored := tensors.get(POSITIONS)) is not None:
            modality: Any = recipe.build_modality()
            computed = sincos_2d(modality.side, recipe.encoder.width)
            if stored.numel() != computed.numel() or not torch.allclose(stored.view(computed.shape), computed, atol=2e-3):
                raise UserError(f"{content.path}: {POSITIONS} are not sines and cosines; others cannot be represented")


def _pretraining(content: Content, objective: Objective | None, names: keys.Table) -> tuple[dict[str, Tensor], set[str]]:
    """Teacher and prediction head or decoder by the names of the objective, as far as they are there at all; and the
    official names they may have."""
    if objective is None:
        return {}, set()
    own = objective.teacher.ema.state_dict()
    rest = {name: value for name, value in objective.state_dict().items() if not name.startswith(("student.", "teacher."))}
    found = _taken(content.student, rest, names, content.path) if content.predicts else {}
    if content.teacher:
        taken = _taken(content.teacher, own, names, content.path)
        found |= {f"teacher.ema.{name}": value for name, value in taken.items()}
    return found, _foreign(names, rest)


def _shared(model: Model) -> Model:
    """Parts of a teacher that are copies of the student's are the student's own: the same in training, and free."""
    teacher, student = model.recipe.objective.teacher, model.encoder.state_dict()
    pretraining, shared = dict(model.pretraining), {}
    for part in ("local_encoder", "position_encoder"):
        own = {name for name in pretraining if name.startswith(f"teacher.ema.{part}.")}
        same = all(torch.equal(pretraining[name], student[name.removeprefix("teacher.ema.")]) for name in own)
        if getattr(teacher, part) == "copied" and same:
            shared[part] = "shared"
            pretraining = {name: value for name, value in pretraining.items() if name not in own}
    objective = model.recipe.objective.model_copy(update={"teacher": teacher.model_copy(update=shared)})
    return replace(model, recipe=model.recipe.model_copy(update={"objective": objective}), pretraining=pretraining)
