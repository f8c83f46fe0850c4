"""Features of many inputs into one file, in bounded memory; what is done stays done when it is stopped."""

import copy
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.data.cache import fingerprint
from data2vec.distributed import resolve_device
from data2vec.errors import UserError
from data2vec.feature_extraction import (
    Layers,
    LayerWeights,
    extract_features,
    layer_weights,
    max_positions,
    require_tokenizer,
)
from data2vec.interop.load import load
from data2vec.modalities.base import Modality
from data2vec.model import Model
from data2vec.nn.encoder import Encoder, padding_invariant
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.extraction import writers as forms
from data2vec.tasks.extraction.columns import columns
from data2vec.tasks.extraction.decode import Read, windows
from data2vec.tasks.extraction.shard_writer import Part, Parts

WINDOW = 8
"""Batches whose inputs are sorted by length together."""
PART_BYTES, PART_SECONDS = 2**26, 60.0
"""A part is written when it has so many bytes, or took so long."""


@dataclass(frozen=True)
class FeatureFile:
    """What was written."""

    path: Path
    inputs: int
    """How many there were, with those that cannot be read."""
    positions: int
    """Of all of them together."""
    unreadable: list[str]
    """ "name: reason" of each input without features."""

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.inputs - len(self.unreadable)} inputs, {self.positions} positions"]
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} more cannot be read, and have length 0:")
            lines += [f"  {each}" for each in self.unreadable[:20]]
        if len(self.unreadable) > 20:
            lines.append(f"  and {len(self.unreadable) - 20} more, all named in the file")
        return "\n".join(lines)


def features(
    model: Model | str | Path,
    inputs: str | Path | Sequence[Any],
    out: str | Path,
    layers: Layers = "last",
    pool: bool = False,
    device: str = "auto",
    split: str = "train",
    batch: int | None = None,
) -> FeatureFile:
    """Write the features of many inputs into one file, the same as `Model.features` gives.

    `model`: a Model, or what `data2vec.load` opens. `inputs`: a data set, as `data.train` may be, of which `split` is taken;
    or a list of what `Model.features` takes. `out`: a file whose ending says its form, .safetensors, .npy or .parquet
    (docs/features.md). `layers`, `pool`, `batch`: see `Model.features`. `device`: auto, cpu, cuda or cuda:N.

    Finished parts are kept in the folder `out`.parts: the same call again goes on after the last of them. Inputs that cannot
    be read are left out and named.

    Raises UserError when there is nothing to read, when nothing of it can be read, for a layer or a form that is not there,
    and when `out`.parts was begun with other settings."""
    out = Path(out).expanduser()
    if out.suffix not in forms.FORMS:
        raise UserError(f"{out}: the ending must say the form: {', '.join(forms.FORMS)}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent} to write it into")
    model, place = load(model), resolve_device(device)
    most = max_positions(place, batch)
    weights = layer_weights(layers, len(model.encoder.transformer.blocks))
    modality = load_recipe(model.recipe, {"data.streaming": False, "data.split": split}).build_modality()
    rows = _rows(modality, inputs)
    about = {
        "layers": layers if isinstance(layers, str | int) else [float(weight) for weight in layers],
        "pool": pool,
        "seconds_per_position": modality.seconds_per_position,
        "data": inputs if isinstance(inputs, str) else str(inputs) if isinstance(inputs, Path) else f"{len(rows)} inputs",
        "model": _digest(model),
    }
    how = {"content": _content(modality, rows), "split": split, "device": place.type, "batch": most}
    parts = Parts(out.with_name(f"{out.name}.parts"), about | how)
    on_device = model.encoder if place.type == "cpu" else copy.deepcopy(model.encoder).to(place)
    for part in _computed(padding_invariant(on_device), modality, rows, parts.inputs, weights, pool, most):
        parts.add(part)

    lengths, names, unreadable = parts.index()
    if not lengths.any():
        parts.remove()
        raise UserError(f"none of the {len(rows)} inputs can be read: {'; '.join(unreadable[:3])}")
    kept = () if weights is None or layers != "all" else (len(weights),)
    shape = (len(lengths) if pool else int(lengths.sum()), *kept, model.recipe.encoder.width)
    more = columns(rows, getattr(modality, "kind", ""))
    forms.write(out, forms.Content(parts.hidden(), shape, pool, lengths, names, about | {"unreadable": unreadable}, more))
    parts.remove()
    return FeatureFile(out, len(lengths), int(lengths.sum()), unreadable)


def _rows(modality: Modality, inputs: str | Path | Sequence[Any]) -> Any:
    """A data set, or the list of inputs. Raises UserError when there is nothing."""
    if isinstance(inputs, str | Path):
        require_tokenizer(modality)
        return modality.rows(str(inputs))
    rows = list(inputs)
    if not rows:
        raise UserError("features: there is no input")
    if any(isinstance(each, str | Path) for each in rows):
        require_tokenizer(modality)
    if folder := next((each for each in rows if isinstance(each, Path) and each.is_dir()), None):
        raise UserError(f"{folder} is a folder: give one data set by itself, or files")
    return rows


def _digest(model: Model) -> str:
    """Names the weights and the settings they are used by."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (model.recipe.modality, model.recipe.encoder):
        digest.update(part.model_dump_json().encode())
    for name, weight in model.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _content(modality: Modality, rows: Any) -> str:
    """Names the inputs: changes when they do, or the files they point to."""
    if hasattr(rows, "_fingerprint"):
        return fingerprint(rows, modality.kind)
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        if isinstance(row, Path) and row.exists():
            stat = row.stat()
            row = f"{row}\0{stat.st_size}\0{stat.st_mtime_ns}"
        if not isinstance(row, str | Path | dict):
            array = torch.as_tensor(row).numpy(force=True)
            row = array.shape, array.tobytes()
        digest.update(repr(row).encode())
    return digest.hexdigest()


def _computed(
    encoder: Encoder, modality: Modality, rows: Any, first: int, weights: LayerWeights, pool: bool, most: int
) -> Iterator[Part]:
    """The parts that are missing, from input `first` on."""
    from tqdm import tqdm

    held: list[Part] = []
    begun = time.monotonic()
    with tqdm(total=len(rows), initial=first, desc="features", unit="input", leave=False, disable=None) as bar:
        for window in windows(modality, rows, first, WINDOW * most):
            held.append(_part(encoder, modality, window, weights, pool, most))
            bar.update(len(window))
            if sum(part.hidden.nbytes for part in held) >= PART_BYTES or time.monotonic() - begun >= PART_SECONDS:
                yield Part.joined(held)
                held, begun = [], time.monotonic()
    if held:
        yield Part.joined(held)


def _part(encoder: Encoder, modality: Modality, window: list[Read], weights: LayerWeights, pool: bool, most: int) -> Part:
    items = [item for _, item in window if not isinstance(item, str)]
    found = iter(extract_features(encoder, modality, items, weights, pool, most))
    width, layers = encoder.transformer.settings.width, len(weights or [[]])
    absent = np.zeros((layers, width) if pool else (layers, 0, width), np.float32)
    every = [(absent, 0) if isinstance(item, str) else _array(*next(found)) for _, item in window]
    rows = [vectors for vectors, _ in every]
    hidden = np.stack(rows) if pool else np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 0, 2))
    if not np.isfinite(hidden).all():
        raise UserError("the features of this encoder are not numbers: its training went wrong, see its metrics.jsonl")
    unreadable = [item for _, item in window if isinstance(item, str)]
    return Part(hidden, np.array([length for _, length in every]), [name for name, _ in window], unreadable)


def _array(vectors: torch.Tensor, length: int) -> tuple[np.ndarray, int]:
    return vectors.float().cpu().numpy(), length
