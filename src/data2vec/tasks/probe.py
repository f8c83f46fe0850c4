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

from data2vec import model as models
from data2vec import recipe as recipes
from data2vec.errors import UserError
from data2vec.modalities.base import Examples
from data2vec.model import Model
from data2vec.nn import encoder as encoders
from data2vec.nn.encoder import Encoder
from data2vec.recipe import Recipe
from data2vec.tasks.pooled import pooled


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
    train: str | Path | None = None,
    valid: str | Path | None = None,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
) -> Probe:
    """Measure every layer of a trained encoder, beside the same encoder untrained (same recipe and seed).

    `model`: a Model, or the folder of a run or model. `train` and `valid`: labelled data, in place of the recipe's
    `probe.train` and `probe.valid`. `overrides`: of the recipe, such as {"probe.label": "speaker"}. The result is also
    written to `out`, by default probe.json in the model's folder, when that was given.

    Raises UserError when data or labels are missing, when there is only one class, or when a class is only in `valid`."""
    if not isinstance(model, Model):
        out = out if out is not None else Path(model) / "probe.json"
        model = models.load(model)
    recipe = recipes.load(model.recipe, overrides)
    recipe = recipes.load(recipe, {"data.streaming": False})
    settings, modality, device = recipe.probe, recipe.build_modality(), _device(recipe.train.device)

    sets: dict[str, tuple[Examples, np.ndarray, np.ndarray]] = {}
    for name, given in (("train", train or settings.train), ("valid", valid or settings.valid)):
        if given is None:
            raise UserError(f"probe.{name}: where is the labelled data? A folder of class folders, or a table with labels")
        examples = modality.labelled(modality.rows(str(given)))
        indices = np.arange(len(examples))
        if name == "train" and len(indices) > settings.limit:
            indices = np.random.default_rng(recipe.train.seed).permutation(len(indices))[: settings.limit]
        sets[name] = examples, indices, _labels(examples, indices, settings.label, str(given))
    _check(sets["train"][2], sets["valid"][2], settings.label)

    pair = [encoder.to(device).eval() for encoder in (model.encoder, untrained(recipe))]
    features, labels = {}, {}
    for name, (examples, indices, values) in sets.items():
        features[name], kept = pooled(pair, modality, examples, indices, device)
        if not len(kept):
            raise UserError(f"probe.{name}: none of the {len(indices)} examples can be read")
        if not np.isfinite(features[name]).all():
            raise UserError("the features of this encoder are not numbers: its training went wrong, see its metrics.jsonl")
        labels[name] = values[kept]
    result = _score(features, labels, settings.neighbours, recipe.train.seed)
    if out is not None:
        Path(out).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def untrained(recipe: Recipe) -> Encoder:
    """The encoder with the weights that a run of this recipe starts from, on the CPU, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return encoders.build(recipe.build_modality(), recipe.encoder).eval().requires_grad_(False)


def _score(features: dict[str, np.ndarray], labels: dict[str, np.ndarray], neighbours: int, seed: int) -> Probe:
    """Fit both classifiers on each layer of the (encoders, layers, n, D) features, and count what they get right."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits
    from tqdm import tqdm

    train, valid = labels["train"], labels["valid"]
    classifiers: tuple[Any, Any] = (
        LogisticRegression(C=0.1, max_iter=2000, tol=1e-3, random_state=seed),
        KNeighborsClassifier(min(neighbours, len(train)), metric="cosine"),
    )
    rows = []
    for layer in tqdm(range(features["train"].shape[1]), "classifiers", unit="layer", leave=False, disable=None):
        scores = []
        for encoder in range(len(features["train"])):
            scaler = StandardScaler().fit(features["train"][encoder, layer])
            x, held = (scaler.transform(features[name][encoder, layer]) for name in ("train", "valid"))
            with threadpool_limits(1):  # such small matrices are slower on several threads, far slower on a busy machine
                scores += [float((classifier.fit(x, train).predict(held) == valid).mean()) for classifier in classifiers]
        rows.append(Row(layer + 1, *scores))
    classes, counts = np.unique(train, return_counts=True)
    return Probe(rows, classes.tolist(), len(train), len(valid), float((valid == classes[counts.argmax()]).mean()))


def _labels(examples: Examples, indices: np.ndarray, column: str, where: str) -> np.ndarray:
    """(n,) the classes as words."""
    try:
        values = [examples.label(int(index), column) for index in indices]
    except UserError as error:
        raise UserError(f"probe.label: {error} ({where})") from None
    if missing := sum(value is None for value in values):
        raise UserError(f"probe.label: {missing} of {len(values)} examples in {where} have no {column!r}; label or remove them")
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise UserError(f"probe.label: {column!r} in {where} holds numbers, such as {values[0]:g}, not classes")
    return np.array([str(value) for value in values])


def _check(train: np.ndarray, valid: np.ndarray, column: str) -> None:
    classes = np.unique(train)
    if len(classes) < 2:
        raise UserError(f"probe.train: every example has the {column} {str(classes[0])!r}; a probe needs at least two classes")
    if strange := sorted(set(valid) - set(classes)):
        raise UserError(
            f"probe.valid: {column} {', '.join(strange[:5])} {'is' if len(strange) == 1 else 'are'} not in probe.train, "
            f"which has {', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
        )


def _device(name: str) -> torch.device:
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
