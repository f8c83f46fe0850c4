"""Converting a model to another form, verified by reading it back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.fairseq.write import write_fairseq_checkpoint
from data2vec.interop.load import load
from data2vec.interop.transformers.folder import write_transformers_folder
from data2vec.local_path import local_path
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model, save_model_folder
from data2vec.objective import Data2Vec2Settings
from data2vec.recipe.task_settings import SupervisedSettings

Form = Literal["data2vec", "transformers", "fairseq"]
WITHOUT_PRETRAINING = "trained on labels from new weights, without pre-training"
"""The source of a model that fine-tuning has trained from scratch, in forms that cannot record its objective."""


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion."""

    path: Path
    """The folder or file that was written."""
    weights: int
    """The number of weights that were read back and are bit-identical to those of the source."""
    omitted: tuple[str, ...]
    """A description of each part of the source that the new form cannot store."""

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.weights} weights, read back and bit-identical"]
        return "\n".join([*lines, *(f"not included: {part}" for part in self.omitted)])


def convert(
    model: str | Path | Model,
    dest: str | Path,
    to: Form,
    source: str | None = None,
    license: str | None = None,
    modality: CustomClass | None = None,
) -> Conversion:
    """Write a model in another form, and read it back to verify that its weights are the same.

    `model`: anything that `data2vec.load` opens. `to`: "data2vec" is a model folder; "transformers" a folder for
    `from_pretrained`, for version 2 with its model code; "fairseq" an official checkpoint (`.pt`). `source` and `license` (a
    licence id of the hub, such as "cc-by-nc-4.0") go into the model card and replace what the model says. `modality`: see
    `data2vec.load`.

    Raises UserError when `dest` exists, or when the model cannot be represented in that form."""
    path = local_path(dest)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{dest}: already exists; choose another name")
    model = load(model, modality)
    model = replace(model, source=source or model.source, license=license or model.license)
    if isinstance(model.recipe.objective, SupervisedSettings) and to != "data2vec":
        # Never pre-trained: the form of version 2 holds any encoder, and its objective says nothing of this one.
        recipe = model.recipe.model_copy(update={"objective": Data2Vec2Settings()})
        model = replace(model, recipe=recipe, source=model.source or WITHOUT_PRETRAINING)
    objective = model.recipe.objective.name
    if to != "data2vec" and objective not in ("data2vec", "data2vec2"):
        raise UserError(f"objective.name: {objective} has no form as {to}, which has data2vec and data2vec2; use --to data2vec")
    omitted = _WRITERS[to](model, path)
    written, expected = _all_weights(load(path)), _all_weights(model)
    stored = {name: weight for name, weight in expected.items() if name in written}
    missing = [name for name in expected if name not in written and not name.startswith("pretraining.")]
    if wrong := missing + [name for name, weight in stored.items() if not torch.equal(weight, written[name])]:
        raise RuntimeError(f"{dest} is wrong, do not use it: these weights differ when read back: {', '.join(wrong[:5])}")
    return Conversion(path, len(stored), tuple(omitted))


def _write_model_folder(model: Model, path: Path) -> list[str]:
    save_model_folder(model, path)
    return []


_WRITERS: dict[str, Callable[[Model, Path], list[str]]] = {
    "data2vec": _write_model_folder,
    "transformers": write_transformers_folder,
    "fairseq": write_fairseq_checkpoint,
}


def _all_weights(model: Model) -> dict[str, Tensor]:
    """The weights of the encoder, the head, and what pre-training has besides."""
    head = {} if model.head is None else model.head.state_dict()
    parts = {"encoder": model.encoder.state_dict(), "head": head, "pretraining": model.pretraining}
    return {f"{part}.{name}": weight for part, weights in parts.items() for name, weight in weights.items()}
