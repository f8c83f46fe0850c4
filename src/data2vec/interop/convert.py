"""A model from one form to another, and a check that nothing was lost on the way."""

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
from data2vec.model import Model, save_model_folder

Form = Literal["data2vec", "transformers", "fairseq"]


@dataclass(frozen=True)
class Converted:
    """What was written."""

    place: Path
    """The folder or file."""
    equal: int
    """How many weights were read back from it, equal to the last bit to those of the source."""
    lost: tuple[str, ...]
    """In words, what of the source has no place there."""

    def __str__(self) -> str:
        lines = [f"{self.place}: {self.equal} weights, read back and equal to the last bit"]
        return "\n".join([*lines, *(f"not in it: {each}" for each in self.lost)])


def convert(
    model: str | Path | Model, dest: str | Path, to: Form, source: str | None = None, license: str | None = None
) -> Converted:
    """Write a model in another form, and read it back to see that its weights are the same.

    `model`: anything that `data2vec.load` opens. `to`: "data2vec" is a model folder of ours; "transformers" a folder for its
    `from_pretrained`, version 2 with the code that it needs; "fairseq" an official `.pt`. `source` and `license` (as the hub
    names licences, such as "cc-by-nc-4.0") go into the model card, in place of what the model says.

    Raises UserError when `dest` is there already, or when the model cannot be represented there."""
    place = Path(dest).expanduser()
    if place.exists() and (place.is_file() or any(place.iterdir())):
        raise UserError(f"{dest}: is there already; choose another name")
    given = load(model)
    given = replace(given, source=source or given.source, license=license or given.license)
    if given.head is not None and to != "data2vec":
        settings = given.head.settings
        odd = {"weighted_layers": settings.weighted_layers, "pooling": getattr(settings, "pooling", None)}
        for key, value in odd.items():
            if value not in (None, "mean", "first"):
                raise UserError(f"head.{key}: {value} has no place in the form of {to}; only --to data2vec keeps it")
    lost = _WRITERS[to](given, place)
    back, here = _weights(load(place)), _weights(given)
    kept = {name: weight for name, weight in here.items() if name in back}
    missing = [name for name in here if name not in back and not name.startswith("pretraining.")]
    if wrong := missing + [name for name, weight in kept.items() if not torch.equal(weight, back[name])]:
        raise RuntimeError(f"{dest} does not hold what was to be written: {', '.join(wrong[:5])}; do not use it")
    return Converted(place, len(kept), tuple(lost))


def _write_ours(model: Model, place: Path) -> list[str]:
    save_model_folder(model, place)
    return []


_WRITERS: dict[str, Callable[[Model, Path], list[str]]] = {
    "data2vec": _write_ours,
    "transformers": write_transformers_folder,
    "fairseq": write_fairseq_checkpoint,
}


def _weights(model: Model) -> dict[str, Tensor]:
    """Every weight of the encoder, the head, and what pre-training had besides."""
    head = {} if model.head is None else model.head.state_dict()
    parts = {"encoder": model.encoder.state_dict(), "head": head, "pretraining": model.pretraining}
    return {f"{part}.{name}": weight for part, weights in parts.items() for name, weight in weights.items()}
