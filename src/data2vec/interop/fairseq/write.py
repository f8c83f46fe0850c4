"""Models of ours in the form of the official code: plain containers and tensors only, under its names and in its shapes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError
from data2vec.interop import key_mapping as keys
from data2vec.interop.fairseq import heads as official_heads
from data2vec.interop.fairseq.key_versions import Tensors, table
from data2vec.interop.fairseq.models import BEIT, Config, Family
from data2vec.interop.fairseq.recipe_to_config import family_of, official_config
from data2vec.model import Model
from data2vec.nn.heads import CTCSettings
from data2vec.nn.position_encoders import sincos_2d
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe

VERSION = "encoder.sentence_encoder.version"


def write(model: Model, path: Path) -> list[str]:
    """Write `model` in the official form; returns, in words, what of it has no place there.

    A `.pt` of fairseq with the teacher nested in it as `_ema`; of images of version 1, the form of their own code. Letters of
    speech and the tokenizer of text are put beside it, as `dict.ltr.txt` and `tokenizer.json`. Raises UserError when the
    model cannot be represented, naming the setting."""
    family = family_of(model.recipe)
    config, task, lost = _config(model)
    names = table(family, config, getattr(model.recipe.modality, "position_tables", 1))
    student = _named(model.encoder.state_dict(), names, family) | _computed(model, family)
    teacher: Tensors = {}
    if model.head is None:
        rest = {name: value for name, value in model.pretraining.items() if not name.startswith("teacher.")}
        student |= _named(rest, names, family)
        teacher = _teacher(model, names, family, student)
    else:
        lost += ["the teacher and the prediction head: fine-tuned files have none"] if model.pretraining else []
    inner: Config = {"model": config, "task": task}
    if model.head is not None:
        head, outer, prefix = official_heads.written(family, model.head.settings)
        student = {prefix + name: value for name, value in student.items()}
        student |= _named(model.head.state_dict(), head, family)
        inner = inner | {"model": _around(outer, inner, family)}
    lost += _beside(model, path)
    lost += ["how it was trained: the sections data, train, probe and log of its recipe"]
    lost += [f"its {key}: {value}" for key in ("source", "license") if (value := getattr(model, key))]
    _save(_container(family, student, teacher, inner), path)
    return lost


def _config(model: Model) -> tuple[Config, Config, list[str]]:
    """The official configuration. An objective without a counterpart matters only to one who goes on with pre-training."""
    fine_tuned = model.head is not None
    try:
        return official_config(model.recipe, fine_tuned)
    except UserError as problem:
        if not all(line.startswith("objective.") for line in str(problem).splitlines()):
            raise
        if model.pretraining and not fine_tuned:
            raise UserError(f"{problem}\n(to write the encoder alone, delete its pretraining.safetensors)") from None
        config, task, lost = official_config(_with_official_objective(model.recipe), fine_tuned)
        return config, task, [*lost, f"the objective: {'; '.join(str(problem).splitlines())}"]


def _with_official_objective(recipe: Recipe) -> Recipe:
    family, layers = family_of(recipe), recipe.encoder.layers - recipe.encoder.prenet_layers
    released = load_recipe(f"{family.modality}/v{family.version}-base").objective
    target = released.target.model_copy(update={"top_k": min(released.target.top_k, layers)})
    return recipe.model_copy(update={"objective": released.model_copy(update={"target": target})})


def _named(ours: dict[str, Tensor], names: keys.Table, family: Family) -> Tensors:
    """Our tensors under their official names and in their official shapes."""
    found = {}
    for name, several in keys.names(ours, names).items():
        for each, part in zip(several, ours[name].chunk(len(several)), strict=True):
            found[each] = part.reshape(_shape(each, part, family)).detach().cpu().clone()
    return found


def _shape(name: str, part: Tensor, family: Family) -> tuple[int, ...]:
    shape = tuple(part.shape)
    if name.endswith(("patch_embed.proj.weight", "local_encoder.proj.weight")):
        side = round((shape[1] / 3) ** 0.5)
        return shape[0], 3, side, side
    if name in ("mask_token", "cls_token") or name.endswith(".extra_tokens"):
        return 1, part.numel() // shape[-1], shape[-1]
    if name.endswith(".alibi_scale"):
        return 1, 1, shape[0], 1, 1
    if name.endswith("relative_position_bias_table"):
        return shape[-2:]
    if ".decoder.blocks." in name and part.ndim == 4 and family.modality != "vision":
        return shape[0], shape[1], shape[3]
    return shape


def _teacher(model: Model, names: keys.Table, family: Family, student: Tensors) -> Tensors:
    """`_ema`: what the official code averages, with the student's own where the two share a part."""
    own = {n.removeprefix("teacher.ema."): value for n, value in model.pretraining.items() if n.startswith("teacher.ema.")}
    if not own:
        return {}
    settings = model.recipe.objective.teacher
    whole = student | _named(own, names, family)
    if family.version == 1:
        if family == BEIT or (settings.local_encoder == "averaged" and family.modality == "speech"):
            return whole
        prefix = "encoder." if family.modality == "speech" else "encoder.sentence_encoder."
    elif settings.prenet == "shared":
        prefix = "blocks."
    else:
        shared = () if settings.local_encoder == "averaged" else (".local_encoder.", ".project_features.")
        return {name: value for name, value in whole.items() if not any(part in name for part in (".decoder.", *shared))}
    return {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}


def _computed(model: Model, family: Family) -> Tensors:
    """What official files hold, and ours compute."""
    modality: Any = model.modality
    if family == Family("text", 1):
        return {VERSION: torch.tensor([3.0])}
    if family == Family("vision", 2):
        return {"modality_encoders.IMAGE.fixed_positional_encoder.positions": sincos_2d(modality.side, _width(model))[None]}
    if family == BEIT:
        index, tables = model.encoder.position_encoder.index.clone(), modality.settings.position_tables
        where = ["rel_pos_bias"] if tables == 1 else [f"blocks.{i}.attn" for i in range(tables)]
        return {f"{each}.relative_position_index": index for each in where}
    return {}


def _width(model: Model) -> int:
    return model.recipe.encoder.width


def _around(outer: Config, inner: Config, family: Family) -> Config:
    """The configuration of a fine-tuned model: with that of the pre-trained one inside, or in version 1 mostly the same."""
    if family.version == 1 and family.modality != "speech":
        return inner["model"] | ({"load_checkpoint_heads": True} if family.modality == "text" else {})
    return outer | {"w2v_args" if family.modality == "speech" else "pretrained_model_args": inner}


def _beside(model: Model, path: Path) -> list[str]:
    """Write what official files do not hold but find beside them; returns what finds no place there either."""
    head = None if model.head is None else model.head.settings
    lost = []
    if isinstance(head, CTCSettings):
        lines = "".join(f"{label} 1\n" for label in head.labels[4:])
        if head.labels[:4] != official_heads.SPECIAL:
            lost.append(f"the labels of its head: there the first four must be {', '.join(official_heads.SPECIAL)}")
        elif not _put(path.with_name(official_heads.DICTIONARY), lines):
            lost.append(f"the labels of its head: another {official_heads.DICTIONARY} is there already")
    elif head is not None:
        lost.append("the labels of its head")
        lost += [f"head.problem: {head.problem}"] if head.problem == "multi_label_classification" else []
    tokenizer = getattr(model.modality, "tokenizer", None)
    if tokenizer is not None and not _put(path.with_name("tokenizer.json"), tokenizer.to_str(pretty=True)):
        lost.append("its tokenizer: another tokenizer.json is there already")
    return lost


def _put(path: Path, text: str) -> bool:
    """Whether the file has this content now."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path.read_text(encoding="utf-8") == text


def _container(family: Family, student: Tensors, teacher: Tensors, config: Config) -> dict[str, Any]:
    if family == BEIT:
        return {"model": student, "args": config["model"]} | ({"model_ema": teacher} if teacher else {})
    place = "encoder._ema" if family == Family("text", 1) else "_ema"
    return {
        "args": None,
        "cfg": config,
        "model": student | ({place: teacher} if teacher else {}),
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "ModelCriterion", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": None,
    }


def _save(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as tmp, tmp.open("wb") as file:
        torch.save(content, file)
