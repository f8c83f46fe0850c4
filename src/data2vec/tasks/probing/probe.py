"""Probing: simple classifiers on frozen features of every layer, trained and untrained.

Each layer's features are averaged over an example's positions, standardised, and classified by logistic regression and by
nearest neighbours (cosine distance). The same is measured for the untrained encoder, since untrained features are often
good already; the difference is what the encoder has learned.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from data2vec.atomic_io import write_json
from data2vec.console.progress import progress
from data2vec.data.sources.library import data_path
from data2vec.distributed import Process, current_process, local_rank, resolve_device
from data2vec.errors import UserError
from data2vec.feature_extraction import Layers, check_computation
from data2vec.interop.load import load
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.run_dir import load_run_recipe, result_file, run_of_model
from data2vec.settings import JsonDict, JsonMapping
from data2vec.tasks.digests import examples_digest, model_digest
from data2vec.tasks.eval_batches import EvalPass
from data2vec.tasks.metrics import Scores, format_score
from data2vec.tasks.probing.classifiers import METRICS, build_classifiers, format_scores, metric_score, probability_scores
from data2vec.tasks.probing.dataset import ProbeSet, load_probe_set, load_probe_sets, require_two_classes
from data2vec.tasks.probing.features import compute_pooled, stack_pooled
from data2vec.tasks.probing.folds import Fold, cross_validate, fold_mean, split_folds
from data2vec.tasks.shared_outputs import shared_outputs

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")
MEASURES = ("linear", "knn", "untrained_linear", "untrained_knn")
"""The scores of a layer."""


@dataclass(frozen=True)
class LayerScores:
    """Scores on held-out data of one layer's features, in the metric of the probe."""

    layer: int
    """From 1, the output of the first block."""
    linear: float
    knn: float
    untrained_linear: float
    untrained_knn: float


@dataclass(frozen=True)
class Probe:
    """The result of a probe; `str()` of it is a table."""

    rows: list[LayerScores]
    classes: list[str]
    train: int
    """Number of training examples of the classifiers."""
    valid: int
    """Number of held-out examples."""
    chance: float
    """Score of always predicting the most frequent class of the training examples; with cross-validation, its accuracy."""
    metric: str = "accuracy"
    """Of the scores above: one of `METRICS`."""
    scores: Scores = field(default_factory=dict)
    """All of `METRICS`, of the linear probe of the trained encoder's best layer; without cross-validation."""
    untrained_scores: Scores = field(default_factory=dict)
    """The same of the untrained encoder."""

    folds: list[Fold] = field(default_factory=list)
    """With cross-validation, what each fold gives with the layer `fold_layer`."""
    fold_layer: int | None = None
    """The layer whose linear probe has the highest mean accuracy over the folds, chosen by that: an optimistic score."""

    def _fold_lines(self) -> list[str]:
        names = ("accuracy", "balanced_accuracy", "kappa", "weighted_f1")
        lines = [
            f"Mean {METRICS[self.metric]} over {len(self.folds)} folds of {self.valid} examples of {len(self.classes)} "
            f"classes; {self.chance:.1%} accuracy for always predicting the most frequent class.",
            f"Linear probe of layer {self.fold_layer} (the best), by what is held out:",
            f"{'held out':<24}{'examples':>10}{'accuracy':>10}{'balanced':>10}{'kappa':>8}{'F1':>8}",
        ]
        for fold in self.folds:
            values = [getattr(fold, name) for name in names]
            shown = f"{values[0]:10.1%}{values[1]:10.1%}{values[2]:8.3f}{values[3]:8.3f}"
            lines.append(f"{fold.held_out[:24]:<24}{fold.examples:10d}{shown}")
        means = [fold_mean(self.folds, name) for name in names]
        spread = float(np.std([fold.accuracy for fold in self.folds]))
        lines.append(f"{'mean':<24}{'':>10}{means[0]:10.1%}{means[1]:10.1%}{means[2]:8.3f}{means[3]:8.3f}")
        return [*lines, f"Standard deviation of the accuracy over the folds: {spread:.1%}."]

    def best(self, measure: str) -> LayerScores:
        """The layer with the highest `measure` (a field of LayerScores), selected on the held-out data: an optimistic score."""
        return max(self.rows, key=lambda row: getattr(row, measure))

    def __str__(self) -> str:
        head = f"{'':>8}{'trained':^20}{'untrained':^20}\n{'layer':>8}{'linear':>10}{'kNN':>10}{'linear':>10}{'kNN':>10}"
        cells = [f"{row.layer:8d}" + self._cells(*(getattr(row, m) for m in MEASURES)) for row in self.rows]
        best = [self.best(measure) for measure in MEASURES]
        cells.append(f"{'best of':>8}" + self._cells(*(getattr(row, m) for row, m in zip(best, MEASURES, strict=True))))
        cells.append(f"{'at layer':>8}" + "".join(f"{row.layer:10d}" for row in best))
        if self.folds:
            return "\n".join([head, *cells, *self._fold_lines()])
        for encoder, scores in (("trained", self.scores), ("untrained", self.untrained_scores)):
            cells.append(f"best linear, {encoder}: {format_scores(scores)}")
        name = METRICS[self.metric]
        return "\n".join(
            [
                head,
                *cells,
                f"{name[0].upper()}{name[1:]} on {self.valid} held-out examples of {len(self.classes)} classes; {self.train} "
                f"training examples; {format_score(self.metric, self.chance)} for always predicting the most frequent class.",
            ]
        )

    def _cells(self, *scores: float) -> str:
        return "".join(f"{format_score(self.metric, score):>10}" for score in scores)


def probe(
    model: Model | str | Path,
    data: Any = None,
    valid: Any = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    modality: CustomClass | None = None,
    metric: str = "accuracy",
    shard: str | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Probe:
    """Probe every layer of a trained encoder, and of the same encoder untrained (same recipe and seed).

    `model`: a Model, or the folder of a run or model. `data` and `valid`: labelled data, as paths, or as a `datasets.Dataset`
    or `DatasetDict`, instead of the run's `probe.data` and `probe.valid`; `data` alone replaces both, and a fifth of it is
    held out. `overrides`: of the recipe, such as {"probe.label": "speaker"}. The result is also written to `out`, by default
    probe.json in the model's folder if the model was given as a folder. `modality`: see `data2vec.load`.
    `metric`: what is reported for every layer: accuracy, balanced_accuracy, kappa, weighted_f1 or auroc. `precision`: bf16
    computes the matrix products of the encoders in bfloat16. `shard`: as for `data2vec.evaluate`; processes of torchrun share
    the features by themselves, and the last one to finish fits the classifiers.

    Raises UserError if data or labels are missing, if there is only one class, if a class is in the held-out data only, or if
    these are of one class and the metric is auroc; Unfinished in a process that is not the last one."""
    if metric not in METRICS:
        raise UserError(f"metric: {metric!r} does not exist; use {', '.join(METRICS)}")
    frozen = open_probe(model, data, valid, overrides, out, modality, shard=shard, precision=precision, compile=compile)
    if frozen.recipe.probe.folds is not None and metric == "auroc":
        raise UserError("metric: auroc, but folds may lack classes; use another one with probe.folds")
    return _held_out(frozen, metric) if frozen.recipe.probe.folds is None else _cross_validated(frozen, metric)


def _held_out(frozen: "FrozenEncoders", metric: str) -> Probe:
    """The scores on the validation set."""
    settings, seed = frozen.recipe.probe, frozen.recipe.train.seed
    train_set, valid_set = load_probe_sets(frozen.modality, settings, seed)
    if metric == "auroc" and len(occurring := np.unique(valid_set.classes)) < 2:
        raise UserError(
            f"metric: auroc needs two classes, but all held-out examples are of {str(occurring[0])!r}; use accuracy"
        )
    with frozen.features(train_set, valid_set) as ((x, train_set), (y, valid_set)):
        names, counts = np.unique(train_set.classes, return_counts=True)
        rows = []
        best: list[tuple[float, np.ndarray]] = [(-np.inf, np.empty(0))] * 2
        for layer in progress(range(x.shape[1]), "classifiers", unit="layer"):
            scores = []
            for i in (0, 1):
                classifiers = build_classifiers(x[i, layer], train_set.classes, settings.knn_k, seed)
                linear, knn = (each(y[i, layer]) for each in classifiers)
                scores += [metric_score(metric, each, names, valid_set.classes) for each in (linear, knn)]
                best[i] = max(best[i], (scores[-2], linear), key=lambda pair: pair[0])
            rows.append(LayerScores(layer + 1, *scores))
        constant = np.tile(np.eye(len(names))[counts.argmax()], (len(valid_set.classes), 1))
        chance = metric_score(metric, constant, names, valid_set.classes)
        linear_scores = [probability_scores(probabilities, names, valid_set.classes) for _, probabilities in best]
        sizes = len(train_set.classes), len(valid_set.classes)
        return frozen.write(Probe(rows, names.tolist(), *sizes, chance, metric, linear_scores[0], linear_scores[1]))


def _cross_validated(frozen: "FrozenEncoders", metric: str) -> Probe:
    """The means over the folds, whose features are computed once."""
    settings, seed = frozen.recipe.probe, frozen.recipe.train.seed
    assert settings.folds is not None
    with frozen.features(load_probe_set(frozen.modality, settings, seed)) as ((x, probe_set),):
        classes, counts = np.unique(probe_set.classes, return_counts=True)
        require_two_classes(classes, settings.label)
        parts = split_folds(probe_set, settings.folds, seed)
        rows, of_layers = list[LayerScores](), list[list[Fold]]()
        for layer in progress(range(x.shape[1]), "classifiers", unit="layer"):
            folds = [cross_validate(x[i, layer], probe_set.classes, parts, settings.knn_k, seed) for i in (0, 1)]
            rows.append(LayerScores(layer + 1, *(fold_mean(each, metric) for of_encoder in folds for each in of_encoder)))
            of_layers.append(folds[0][0])
        best = max(rows, key=lambda row: row.linear).layer
        chance = float(counts.max() / counts.sum())
        total = len(probe_set.classes)
        result = Probe(rows, classes.tolist(), total, total, chance, metric, folds=of_layers[best - 1], fold_layer=best)
        return frozen.write(result)


@dataclass(frozen=True)
class FrozenEncoders:
    """A trained encoder and the same one untrained, on the device, to be probed."""

    encoders: tuple[Encoder, Encoder]
    """Trained, untrained."""
    recipe: Recipe
    """With the settings of the probe."""
    modality: Modality
    process: Process
    out: Path | None = None
    """The file for the result, if it is to be written."""
    model: Model | None = None
    """With `out`: the trained model."""
    shard: str | None = None
    precision: str = "fp32"
    compile: bool = False

    @contextmanager
    def features(self, *sets: ProbeSet, layers: Layers = "all") -> Iterator[list[tuple[np.ndarray, ProbeSet]]]:
        """A block that writes the result of the features of these sets, as of `stack_pooled`; processes share the work as
        `shared_outputs` says."""

        def settings() -> JsonDict:
            assert self.model is not None
            return {
                "model": model_digest(self.model),
                "untrained": [self.recipe.encoder.model_dump(mode="json"), self.recipe.train.seed],
                "data": [examples_digest(self.modality, each.rows, each.indices) for each in sets],
                "layers": layers,
                "device": self.process.device.type,
                "precision": self.precision,
                "compile": self.compile,
            }

        compute = compute_pooled(self.encoders, self.modality, layers, self.precision, self.compile)
        passes = [EvalPass(self.modality, each.examples, each.indices, self.process.device) for each in sets]
        width = self.recipe.encoder.width
        shared = (self.process, self.out, self.shard, settings, "features")
        with shared_outputs(passes, compute, *shared, reusable=True) as found:  # with fewer shots or folds, say
            yield [stack_pooled(outputs, each, 2, width) for outputs, each in zip(found, sets, strict=True)]

    def write(self, result: R) -> R:
        """Write the result as JSON, and return it."""
        if (out := self.out) is not None:
            self.process.on_main_process(lambda: write_json(out, asdict(result)))
        return result


def open_probe(
    model: Model | str | Path,
    data: Any,
    valid: Any,
    overrides: Iterable[str] | JsonMapping,
    out: str | Path | None,
    modality: CustomClass | None,
    name: str = "probe",
    shard: str | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> FrozenEncoders:
    """What is probed. The arguments are those of `probe`; the file for the result is by default `name`.json in the folder of
    the model. Raises UserError."""
    settings_of_run: JsonDict = {}
    if not isinstance(model, Model):
        folder = run_of_model(model)
        out = result_file(model, name) if out is None else out
        model = load(model, modality)
        if (folder / "recipe.yaml").is_file():  # a run's own record; the folder of a model names no data
            settings_of_run = {f"probe.{key}": value for key, value in load_run_recipe(folder).probe.model_dump().items()}
    data, valid = (None if each is None else data_path(each) for each in (data, valid))
    given = {"probe.data": data, "probe.valid": valid}
    datasets = {key: path for key, path in given.items() if path is not None or data is not None}
    # The recipe's selection of rows is of its own data.
    other_rows: JsonDict = {f"{key}_rows": {} for key in datasets}
    settings_of_run["train.device"] = "auto"  # that of the training is of its machine
    recipe = load_recipe(load_recipe(load_recipe(model.recipe, settings_of_run), other_rows), overrides)
    recipe = load_recipe(recipe, {"data.streaming": False} | datasets)
    if recipe.probe.folds is not None and name != "probe":
        raise UserError(f"probe.folds: {recipe.probe.folds}, but this probe has no cross-validation; set probe.folds=null")
    process = current_process(resolve_device(recipe.train.device, local_rank(), "train.device"))
    check_computation(process.device, precision, compile)
    trained, untrained = (each.to(process.device).eval() for each in (model.encoder, untrained_encoder(recipe)))
    encoders, where = (trained, untrained), None if out is None else Path(out)
    return FrozenEncoders(encoders, recipe, recipe.build_modality(), process, where, model, shard, precision, compile)


def untrained_encoder(recipe: Recipe) -> Encoder:
    """The encoder with the initial weights of a run of this recipe, on the CPU, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return build_encoder(recipe.build_modality(), recipe.encoder).eval().requires_grad_(False)
