"""The evaluations of a comparison: a probe or a token read-out of frozen features, or fine-tuning.

All choices (layer, regularisation, best step) are made on the `dev` set; the `test` sets are only reported.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field

from data2vec.atomic_io import write_json
from data2vec.comparison.probing import Features, LabelledSet, probe_scores
from data2vec.data.dataset import ExampleDataset, Rows
from data2vec.data.sources.open_dataset import list_splits
from data2vec.data.sources.selection import RowSelection
from data2vec.data.sources.shards import Request
from data2vec.data.sources.splits import TEST, VALID
from data2vec.distributed import Process, resolve_device
from data2vec.errors import UserError
from data2vec.interop.load import load
from data2vec.local_path import local_path
from data2vec.modalities.base import Modality
from data2vec.model import Model, save_model_folder
from data2vec.nn.encoder import Encoder
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import ClassificationSettings, SupervisedSettings
from data2vec.settings import JsonDict, JsonMapping, Settings
from data2vec.tasks.finetuning.evaluate import evaluate as evaluate_model
from data2vec.tasks.metrics import LOWER_IS_BETTER
from data2vec.tasks.probing.dataset import ProbeSet
from data2vec.tasks.probing.features import pool_features
from data2vec.tasks.probing.probe import untrained_encoder
from data2vec.tasks.probing.token_readout import MAX_TOKENS, Unigrams, View, mask_tokens, readout_gains, require_text
from data2vec.train.finetune import finetune, resolve_recipe
from data2vec.train.planning.step_cost import step_cost

Grid = dict[str, Annotated[list[Any], Field(min_length=1)]]
"""Values to try, by dotted key."""


class EvalData(RowSelection):
    """Labelled data of an evaluation: a dataset, and which of its rows."""

    data: str
    """In any form that `data.train` accepts; relative to the folder of the data."""

    @property
    def rows(self) -> RowSelection:
        """The selection alone."""
        return RowSelection.model_validate(self.model_dump(exclude={"data"}))

    def stratified(self, column: str | None, **changes: Any) -> "EvalData":
        """By `column`, unless another one is set; with other changes."""
        return self.model_copy(update={"stratify": self.stratify or column, **changes})

    def below(self, root: Path) -> "EvalData":
        """With `data` relative to `root`, if it is there."""
        path = root / local_path(self.data)
        return self.model_copy(update={"data": str(path.resolve())}) if path.exists() else self


Data = Annotated[EvalData, BeforeValidator(lambda value: {"data": value} if isinstance(value, str) else value)]
"""An `EvalData`, or just its path."""


class _Labelled(Settings):
    train: Data
    """What classifiers or the model are trained on."""
    dev: Data
    """What layer, regularisation, settings and the best step are chosen on."""
    test: Annotated[dict[str, Data], Field(min_length=1)]
    """What is reported, by name."""

    @property
    def sets(self) -> dict[str, EvalData]:
        """All of them: `train`, `dev` and "test NAME"."""
        return {"train": self.train, "dev": self.dev, **{f"test {name}": data for name, data in self.test.items()}}

    def below(self, root: Path) -> Self:
        """With all paths relative to `root`."""
        test = {name: data.below(root) for name, data in self.test.items()}
        return self.model_copy(update={"train": self.train.below(root), "dev": self.dev.below(root), "test": test})


class ProbeEvaluation(_Labelled):
    """Simple classifiers on frozen, mean-pooled features; layer and regularisation are chosen on `dev`."""

    kind: Literal["probe"] = "probe"
    """A probe."""
    label: str = "label"
    """The label column: classes, or numbers for `spearman`."""
    second: str | None = None
    """The column of the second text, for pairs of texts, whose vectors are |u − v| and u·v of both; for classes also u
    and v."""
    metric: Literal["accuracy", "matthews", "spearman"] = "accuracy"
    """What selects and is reported: of classes, or Spearman's correlation with numbers."""
    knn_k: Annotated[int, Field(gt=0)] = 10
    """k of the nearest-neighbour classifier (cosine distance)."""
    regularisation: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = (0.01, 0.1, 1.0, 10.0)
    """The grid of C of logistic regression; of 1/alpha of ridge regression."""


class FinetuneEvaluation(_Labelled):
    """Fine-tuning; the best step is chosen on `dev`. `objective.freeze_encoder: true` with `objective.pooling: attention` in
    `settings` makes it an attentive probe."""

    kind: Literal["finetune"] = "finetune"
    """Fine-tuning."""
    recipe: str
    """The recipe of fine-tuning."""
    label: str | None = None
    """The label column; none: that of the recipe."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The fraction of `train` that is used, drawn anew for each seed, the same for all arms: by class, at least one example of
    each; for recognition and regression of all examples."""
    settings: dict[str, Any] = Field(default={})
    """Overrides of the recipe, by dotted key."""
    grid: Grid = Field(default={})
    """Values to try, by dotted key."""


class TokenEvaluation(_Labelled):
    """Nats below unigrams of a linear read-out of masked tokens from frozen features of a text model; the layer is chosen on
    `dev`. No labels. The same tokens are masked for all arms and seeds; arms with different tokenizers are not comparable."""

    kind: Literal["tokens"] = "tokens"
    """A token read-out."""
    view: View = "neighbours"
    """Predict a masked token from the features of its two neighbours, or see <mask> in its place (mask_token)."""
    max_tokens: Annotated[int, Field(gt=0)] = MAX_TOKENS
    """Masked tokens of `train`; a quarter as many of each other set."""


Evaluation = Annotated[ProbeEvaluation | FinetuneEvaluation | TokenEvaluation, Field(discriminator="kind")]
"""Any evaluation."""


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation."""

    dev: dict[str, float]
    """By metric; the first one selects."""
    test: dict[str, dict[str, float]]
    """By test set and metric."""
    details: JsonDict = field(default_factory=dict)
    """What was chosen, the number of examples, FLOPs and seconds."""

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """By metric. A metric may be preceded by the name of a classifier."""
        return {metric: metric.split()[-1] not in LOWER_IS_BETTER for metric in self.dev}

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> "Scores":
        """Read what `write` has written."""
        return Scores(**json.loads(path.read_text(encoding="utf-8")))


def evaluate(
    evaluation: ProbeEvaluation | FinetuneEvaluation | TokenEvaluation,
    model: Path | None,
    recipe: Recipe | None,
    seed: int,
    out: Path,
    settings: JsonMapping | None = None,
    extra_flops: float = 0.0,
) -> Scores:
    """Evaluate a model, and keep the result in `out`/scores.json, which is returned if it exists.

    `model`: a run or model folder; None: an untrained encoder of `recipe`, which fine-tuning trains from scratch. Fine-tuning
    without both trains its own recipe's encoder. `settings`: overrides of fine-tuning, such as one combination of its grid.
    `extra_flops`: prolongs fine-tuning by as many steps as cost them.

    Raises UserError for unusable data."""
    path = out / "scores.json"
    if path.exists():
        return Scores.read(path)
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    if isinstance(evaluation, FinetuneEvaluation):
        scores = _finetune(evaluation, model, recipe, seed, out, settings or {}, extra_flops)
    elif settings or extra_flops:
        raise ValueError("a probe has no settings and no FLOPs")
    elif isinstance(evaluation, ProbeEvaluation):
        scores = _probe(evaluation, model, recipe, seed)
    else:
        scores = _tokens(evaluation, model, recipe, seed)
    scores.details["seconds"] = round(time.monotonic() - start, 3)
    scores.write(path)
    return scores


def _reader(modality: Modality, name: str) -> Modality:
    """What reads the set `name`: of data with splits, the split that it is named by."""
    split = name.split()[0] if name != "dev" else VALID
    return modality.reading(split, split=split, column=None)


def open_sets(
    evaluation: ProbeEvaluation | FinetuneEvaluation | TokenEvaluation, modality: Modality, column: str | None = None
) -> dict[str, Rows]:
    """The selected rows of each set, `train`, `dev` and "test NAME", by classes of `column` unless another one is set. Raises
    UserError that names the set, also where it is the same as one that choices are made on."""
    found: dict[str, Rows] = {}
    for name, data in evaluation.sets.items():
        with naming(name):
            rows = _reader(modality, name).selected_rows(data.data, data.stratified(column).rows, name)
        identity = getattr(rows, "_fingerprint", None)
        for other in ("train", "dev") if identity is not None else ():
            if other in found and getattr(found[other], "_fingerprint", None) == identity:
                raise UserError(f"{name}: is the same data as {other}; use other data, or select other rows by where or part")
        found[name] = rows
    return found


@contextmanager
def naming(name: str) -> Iterator[None]:
    """A block whose user errors begin with `name`."""
    try:
        yield
    except UserError as error:
        named = (f"{name}.", f"{name}:")
        raise type(error)(*(line if line.startswith(named) else f"{name}: {line}" for line in error.args)) from None


def labelled_sets(evaluation: ProbeEvaluation, modality: Modality) -> dict[str, tuple[list[ExampleDataset], np.ndarray]]:
    """The examples of each set, `train`, `dev` and "test NAME", and their labels (n,); of pairs, those of both texts."""
    found = {}
    column = None if evaluation.metric == "spearman" else evaluation.label
    for name, rows in open_sets(evaluation, modality, column).items():
        where, views = evaluation.sets[name].data, [rows]
        if evaluation.second is not None:
            if evaluation.second not in rows.features:
                raise UserError(f"{name}: there is no column {evaluation.second!r} (second) in {where}")
            views.append(rows.remove_columns(modality.kind).rename_column(evaluation.second, modality.kind))
        with naming(name):
            examples = [modality.labelled(view) for view in views]
            values = [examples[0].label(index, evaluation.label) for index in range(len(examples[0]))]
        if any(value is None for value in values):
            raise UserError(f"{name}: some examples in {where} have no {evaluation.label!r}; label or exclude them")
        try:
            labels = np.array(values, np.float64) if evaluation.metric == "spearman" else np.array([str(v) for v in values])
        except ValueError:
            raise UserError(f"{name}: column {evaluation.label!r} of {where} has no numbers, but metric spearman") from None
        found[name] = examples, labels
    if evaluation.metric != "spearman":
        classes = sorted(set(found["train"][1].tolist()))
        shown = ", ".join(classes[:10])
        if len(classes) < 2:
            raise UserError(f"train: every example has the {evaluation.label} {shown!r}; a probe needs at least two classes")
        for name, (_, labels) in found.items():
            if unknown := sorted(set(labels.tolist()) - set(classes)):
                raise UserError(f"{name}: {evaluation.label} {', '.join(unknown[:5])} is not in train, which has {shown}")
    return found


def _probe(evaluation: ProbeEvaluation, model: Path | None, recipe: Recipe | None, seed: int) -> Scores:
    with TemporaryDirectory() as folder:
        loaded = load(model) if model is not None else untrained_model(recipe, seed, Path(folder))
        modality = load_recipe(loaded.recipe, {"data.streaming": False}).build_modality()
        process = Process(resolve_device(loaded.recipe.train.device, setting="train.device"))
        encoder = loaded.encoder.to(process.device).eval()
        sets = {}
        for name, (examples, labels) in labelled_sets(evaluation, modality).items():
            sets[name] = _features(encoder, modality, name, examples, labels, process)
    return Scores(*probe_scores(evaluation.metric, sets, evaluation.knn_k, evaluation.regularisation, seed))


def _tokens(evaluation: TokenEvaluation, model: Path | None, recipe: Recipe | None, seed: int) -> Scores:
    with TemporaryDirectory() as folder:
        loaded = load(model) if model is not None else untrained_model(recipe, seed, Path(folder))
        modality = load_recipe(loaded.recipe, {"data.streaming": False}).build_modality()
        require_text(modality)
        sets = {}
        for name, rows in open_sets(evaluation, modality).items():
            examples = modality.examples(rows)
            count = evaluation.max_tokens if name == "train" else ceil(evaluation.max_tokens / 4)
            sets[name] = mask_tokens(examples, np.arange(len(examples)), count, seed=0)
    encoder, unigrams = (
        loaded.encoder.to(resolve_device(loaded.recipe.train.device, setting="train.device")).eval(),
        Unigrams(sets["train"]),
    )
    gains = readout_gains(encoder, sets, unigrams, evaluation.view, seed)
    layer = max(range(len(gains)), key=lambda index: gains[index]["dev"])
    metric, found = "nats below unigrams", gains[layer]
    details: JsonDict = {
        "layer": layer + 1,
        "unigrams": {name: unigrams.cross_entropy(masked) for name, masked in sets.items()},
        "classes": len(unigrams.log_probs),
        "tokens": {name: len(masked.tokens) for name, masked in sets.items()},
    }
    return Scores({metric: found["dev"]}, {name: {metric: found[f"test {name}"]} for name in evaluation.test}, details)


def _features(
    encoder: Encoder, modality: Modality, name: str, examples: Sequence[ExampleDataset], labels: np.ndarray, process: Process
) -> LabelledSet:
    """The features of all layers, (layers, n, D) for each text of a pair, of the examples that can be decoded."""
    features: list[np.ndarray] = []
    decoded = []
    for each in examples:
        indices = np.arange(len(each))
        x, kept = pool_features([encoder], modality, ProbeSet(name, each, indices, labels), process)
        features.append(x[0])
        decoded.append(kept.indices)
    common = decoded[0] if len(decoded) == 1 else np.intersect1d(decoded[0], decoded[1])
    views: Features = [x[:, np.isin(indices, common)] for x, indices in zip(features, decoded, strict=True)]
    return LabelledSet(views, labels[common])


def untrained_model(recipe: Recipe | None, seed: int, folder: Path) -> Model:
    """The model of `recipe` with the initial weights of a run with this seed, saved to `folder`; with a tokenizer of its own
    training data, if it needs one."""
    if recipe is None:
        raise UserError("an untrained arm needs a recipe: it has neither a model nor a recipe")
    recipe = load_recipe(recipe, {"train.seed": seed, "data.streaming": False})
    modality = recipe.build_modality()
    examples = None
    if recipe.data.train is not None and getattr(recipe.data, "tokenizer", "none") is None:
        examples = modality.examples(modality.selected_rows(recipe.data.train, recipe.data.train_rows, "data.train_rows"))
    save_model_folder(Model(untrained_encoder(recipe), modality, recipe), folder / "untrained", examples)
    return load(folder / "untrained")


def finetune_overrides(evaluation: FinetuneEvaluation, seed: int, settings: JsonMapping = MappingProxyType({})) -> JsonDict:
    """The overrides of the recipe of a fine-tuning evaluation: `settings`, seed and data.

    Raises UserError if the recipe is none of fine-tuning."""
    chosen = {**evaluation.settings, **settings}
    task = load_recipe(evaluation.recipe, chosen).objective
    if not isinstance(task, SupervisedSettings):
        raise UserError(f"{evaluation.recipe}: is a recipe for pre-training; an evaluation by fine-tuning needs one for it")
    label = evaluation.label or task.label
    column = label if has_classes(task) else None
    train, dev = evaluation.train.stratified(column), evaluation.dev.stratified(column)
    if evaluation.fraction < 1:
        if train.fraction < 1:
            raise UserError(
                f"fraction: {evaluation.fraction:g}, but train.fraction is {train.fraction:g}: set only one of them"
            )
        train = train.model_copy(update={"fraction": evaluation.fraction, "seed": seed})
    return chosen | {
        "objective.label": label,
        "train.seed": seed,
        "data.train": train.data,
        "data.train_rows": train.rows.model_dump(mode="json"),
        "data.valid": dev.data,
        "data.valid_rows": dev.rows.model_dump(mode="json"),
    }


def has_classes(task: SupervisedSettings) -> bool:
    """Whether the labels of a task are single classes."""
    return isinstance(task, ClassificationSettings) and task.problem_type == "single_label_classification"


def _finetune(
    evaluation: FinetuneEvaluation,
    model: Path | None,
    recipe: Recipe | None,
    seed: int,
    out: Path,
    settings: JsonMapping,
    extra_flops: float,
) -> Scores:
    overrides = finetune_overrides(evaluation, seed, settings)
    scratch = model is None
    if scratch and recipe is not None:
        model = out / "untrained"
        if not (model / "config.json").exists():
            untrained_model(recipe, seed, out)
    scratch = scratch and model is not None
    details: JsonDict = {}
    complete = resolve_recipe(evaluation.recipe, model, None, None, overrides, scratch)
    if extra_flops:
        cost = step_cost(complete).flops
        details = {"flops_per_step": cost, "extra_steps": round(extra_flops / cost)}
        overrides["train.steps"] = complete.train.steps + details["extra_steps"]
    run = out / "run"
    finetune(evaluation.recipe, model, overrides=overrides, out=run, resume=(run / "recipe.yaml").is_file(), scratch=scratch)
    task: Any = complete.objective
    column = task.label if has_classes(task) else None
    found = {}
    for name, data in {"dev": evaluation.dev, **{f"test {name}": data for name, data in evaluation.test.items()}}.items():
        selection: JsonDict = {"data.valid_rows": data.stratified(column).rows.model_dump(mode="json")}
        kind = getattr(complete.build_modality(), "kind", None)
        if (
            name != "dev"
            and kind is not None
            and list_splits(Request(data.data, kind, complete.data.column, follow_links=complete.data.follow_links))
        ):
            selection["data.valid_split"] = TEST
        found[name] = evaluate_model(run, data.data, selection, out / f"{name.replace('/', '-')}.json")
    dev = {task.metric: found["dev"].scores[task.metric], **found["dev"].scores}
    details |= {
        "steps": overrides.get("train.steps", complete.train.steps),
        "examples": {name: each.examples for name, each in found.items()},
    }
    return Scores(dev, {name: found[f"test {name}"].scores for name in evaluation.test}, details)
