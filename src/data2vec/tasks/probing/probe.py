"""Frozen features, simple classifiers: what the representation is worth before any fine-tuning.

Each layer's features are averaged over an example's positions, standardised, and given to a logistic regression and to
nearest neighbours by cosine distance; beside them, the same for the weights that training started from. The difference is
what the encoder has learned: untrained features are often not bad at all.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data2vec.distributed import Process, resolve_device
from data2vec.interop.load import load
from data2vec.model import Model
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.tasks.probing.classifiers import accuracies
from data2vec.tasks.probing.labelled import open_labelled
from data2vec.tasks.probing.pooled import pooled


@dataclass(frozen=True)
class Row:
    """Accuracies on held-out data, 0 to 1, of the features of one layer."""

    layer: int
    """Counted from 1, the first block's output."""
    linear: float
    knn: float
    untrained_linear: float
    untrained_knn: float


@dataclass(frozen=True)
class Probe:
    """What a probe found; `str()` of it is a table."""

    rows: list[Row]
    classes: list[str]
    train: int
    """Examples the classifiers were fitted on."""
    valid: int
    """Held-out examples."""
    chance: float
    """Accuracy of always saying the class that is commonest in training."""

    def best(self, measure: str) -> Row:
        """The row where `measure` (a field of Row) is greatest. It is chosen on the held-out data: read it as an upper end."""
        return max(self.rows, key=lambda row: getattr(row, measure))

    def __str__(self) -> str:
        head = f"{'':>8}{'trained':^20}{'untrained':^20}\n{'layer':>8}{'linear':>10}{'kNN':>10}{'linear':>10}{'kNN':>10}"
        cells = [
            f"{r.layer:8d}{r.linear:10.1%}{r.knn:10.1%}{r.untrained_linear:10.1%}{r.untrained_knn:10.1%}" for r in self.rows
        ]
        best = [(getattr(self.best(m), m), self.best(m).layer) for m in ("linear", "knn", "untrained_linear", "untrained_knn")]
        cells.append(f"{'best of':>8}" + "".join(f"{value:10.1%}" for value, _ in best))
        cells.append(f"{'at layer':>8}" + "".join(f"{layer:10d}" for _, layer in best))
        return "\n".join(
            [
                head,
                *cells,
                f"Accuracy on {self.valid} held-out examples of {len(self.classes)} classes; {self.train} to fit on; "
                f"{self.chance:.1%} by always saying the commonest class.",
            ]
        )


def probe(
    model: Model | str | Path,
    data: str | Path | None = None,
    valid: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
) -> Probe:
    """Measure every layer of a trained encoder, beside the same encoder untrained (same recipe and seed).

    `model`: a Model, or the folder of a run or model. `data` and `valid`: labelled data, in place of the recipe's
    `probe.data` and `probe.valid`; `data` alone replaces both, and a fifth of it is held out. `overrides`: of the recipe,
    such as {"probe.label": "speaker"}. The result is also written to `out`, by default probe.json in the model's folder,
    when that was given.

    Raises UserError when data or labels are missing, when there is only one class, or when a class is only held out."""
    if not isinstance(model, Model):
        out = out if out is not None else Path(model) / "probe.json"
        model = load(model)
    given = {"probe.data": data, "probe.valid": valid} if data is not None else {"probe.valid": valid} if valid else {}
    recipe = load_recipe(load_recipe(model.recipe, overrides), {"data.streaming": False} | given)
    settings, modality, seed = recipe.probe, recipe.build_modality(), recipe.train.seed
    fit, held = open_labelled(modality, settings, seed)

    process = Process(resolve_device(recipe.train.device))
    pair = [encoder.to(process.device).eval() for encoder in (model.encoder, untrained(recipe))]
    x, fit = pooled(pair, modality, fit, process)
    y, held = pooled(pair, modality, held, process)
    rows = []
    for layer in tqdm(range(x.shape[1]), "classifiers", unit="layer", leave=False, disable=None):
        trained, start = (accuracies(x[i, layer], fit.classes, y[i, layer], held.classes, settings.knn_k, seed) for i in (0, 1))
        rows.append(Row(layer + 1, *trained, *start))
    classes, counts = np.unique(fit.classes, return_counts=True)
    chance = float((held.classes == classes[counts.argmax()]).mean())
    result = Probe(rows, classes.tolist(), len(fit.classes), len(held.classes), chance)
    if out is not None:
        Path(out).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def untrained(recipe: Recipe) -> Encoder:
    """The encoder with the weights that a run of this recipe starts from, on the CPU, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return build_encoder(recipe.build_modality(), recipe.encoder).eval().requires_grad_(False)
