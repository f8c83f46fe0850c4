"""Trivial baselines: classifiers on hand-made features, and the most frequent class, on the data of an evaluation.

Audio: mean and standard deviation over time of a log-mel spectrogram. Text: tf-idf of words and of characters. Images:
histograms of colours and of gradient orientations; and k-means features of patches (Coates and Ng, 2012). Features are
computed of the inputs as an encoder gets them: 16 kHz waveforms, images of 32 × 32 pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.comparison.evaluations import (
    Evaluation,
    FinetuneEvaluation,
    ProbeEvaluation,
    Scores,
    TokenEvaluation,
    finetune_overrides,
    labelled_sets,
)
from data2vec.comparison.probing import PROBE_METRICS, LabelledSet, probe_scores
from data2vec.comparison.settings import ComparisonSettings, arm_recipe
from data2vec.data.dataset import ExampleDataset, Rows, column_value
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.base import Modality
from data2vec.modalities.log_mel import HOP, WINDOW, log_mel
from data2vec.modalities.text import Text
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.task_settings import ClassificationSettings
from data2vec.settings import JsonDict

BANDS = 40
"""Mel bands of the spectrogram."""
PATCH, CENTROIDS, PATCHES = 6, 200, 100_000
"""Side of a patch in pixels, k-means centroids, and the number of patches that they are fitted to."""


def trivial_baselines(
    evaluation: ProbeEvaluation | FinetuneEvaluation | TokenEvaluation, modality: Modality, seed: int
) -> dict[str, Scores]:
    """The scores of trivial baselines by name, under the metrics of the evaluation; regularisation and classifier are chosen on
    its dev set. None for recognition, multi-label classification and other tasks that they cannot do, nor for token read-outs,
    whose unit is the difference to one. `modality`: that of the arms; of other kinds than audio, images and text, there is only
    the most frequent class or the mean.

    Raises UserError for unusable data."""
    if isinstance(evaluation, TokenEvaluation):
        return {}
    probe = evaluation if isinstance(evaluation, ProbeEvaluation) else _as_probe(evaluation, seed)
    if probe is None:
        return {}
    sets = _load_sets(probe, _plain(modality.kind)) if modality.kind in _FEATURES else _labels(probe, modality)
    found = {"majority class" if probe.metric != "spearman" else "mean": _constant(probe, sets)}
    for name, compute in _FEATURES.get(modality.kind, {}).items():
        features = compute({key: each.inputs for key, each in sets.items()}, seed)
        labelled = {key: LabelledSet([[x] for x in features[key]], each.labels) for key, each in sets.items()}
        found[name] = Scores(*probe_scores(probe.metric, labelled, probe.knn_k, probe.regularisation, seed))
    if isinstance(evaluation, FinetuneEvaluation):
        metric = str(getattr(load_recipe(evaluation.recipe, evaluation.settings).objective, "metric", probe.metric))
        found = {name: _best_classifier(scores, metric) for name, scores in found.items()}
    return found


@dataclass(frozen=True)
class _RawSet:
    inputs: list[list[Any]]
    """The decoded inputs; of pairs of texts, of the first and of the second one."""
    labels: np.ndarray


def _as_probe(evaluation: FinetuneEvaluation, seed: int) -> ProbeEvaluation | None:
    """The probe with the data and the metric of fine-tuning, if there is one."""
    overrides = finetune_overrides(evaluation, seed)
    recipe = load_recipe(evaluation.recipe, overrides)
    task = recipe.objective
    metrics = {"accuracy": "accuracy", "matthews": "matthews", "pearson_spearman": "spearman"}
    if not isinstance(task, ClassificationSettings) or task.metric not in metrics:
        return None
    train: JsonDict = {**overrides["data.train_rows"], "data": overrides["data.train"]}
    return ProbeEvaluation.model_validate(
        {
            "train": train,
            "dev": evaluation.dev.model_dump(),
            "test": {name: data.model_dump() for name, data in evaluation.test.items()},
            "label": task.label,
            "second": getattr(recipe.data, "second", None),
            "metric": metrics[task.metric],
        }
    )


def _best_classifier(scores: Scores, metric: str) -> Scores:
    """The scores of the classifier that is best on the dev set, under the name of the metric alone."""
    best = max(scores.dev, key=lambda key: scores.dev[key])
    test = {name: {metric: values[best]} for name, values in scores.test.items()}
    return Scores({metric: scores.dev[best]}, test, {**scores.details, "classifier": best})


class _PlainTexts(ExampleDataset):
    """Texts as strings, which need no tokenizer."""

    def __init__(self, rows: Rows):
        self.rows, self.costs = rows, np.ones(len(rows))

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> str:
        return "".join(read_text(self.rows[int(index)]))

    def label(self, index: int, column: str) -> Any:
        return column_value(self.rows, int(index), column)


class PlainText(Text):
    """Reads texts as strings, without a tokenizer."""

    def labelled(self, rows: Rows) -> Any:
        return _PlainTexts(rows)


def evaluated_modality(settings: ComparisonSettings, evaluation: Evaluation, arms: Sequence[str] = ()) -> Modality:
    """The modality of the data of an evaluation, by its recipe or that of the first arm, or of `arms`, that has one."""
    if isinstance(evaluation, FinetuneEvaluation):
        recipe = load_recipe(evaluation.recipe, evaluation.settings)
    else:
        arm = next(name for name in (*arms, *settings.arms) if (settings.arms[name].recipe or settings.recipe) is not None)
        recipe = arm_recipe(settings, arm, {})
    modality = recipe.build_modality()
    if getattr(modality, "kind", None) in _FEATURES:
        return modality
    return load_recipe(recipe, modality.measure(evaluation.train.data)).build_modality()


def _plain(kind: str) -> Modality:
    """What reads the inputs of hand-made features of a kind in `_FEATURES`: waveforms, small images, or texts as strings."""
    if kind == "text":
        text = load_recipe("text/v2-tiny")
        return PlainText(text.modality, text.data)
    return load_recipe({"audio": "speech/v2-tiny", "image": "vision/v2-tiny"}[kind]).build_modality()


def _labels(probe: ProbeEvaluation, modality: Modality) -> dict[str, _RawSet]:
    """The labels of each set, without inputs."""
    return {name: _RawSet([], labels) for name, (_, labels) in labelled_sets(probe, modality).items()}


def _load_sets(probe: ProbeEvaluation, modality: Modality) -> dict[str, _RawSet]:
    """The inputs of each set, of the examples that can be decoded (in both texts of a pair)."""
    sets = {}
    for name, (views, labels) in labelled_sets(probe, modality).items():
        inputs: list[list[Any]] = [[] for _ in views]
        kept = []
        for index in range(len(labels)):
            try:
                items = [_as_array(view.load(index, None, None)) for view in views]
            except CorruptExample:
                continue
            kept.append(index)
            for column, item in zip(inputs, items, strict=True):
                column.append(item)
        if not kept:
            raise UserError(f"{name}: none of the {len(labels)} examples can be decoded")
        sets[name] = _RawSet(inputs, labels[kept])
    return sets


def _as_array(item: Any) -> Any:
    return item.numpy() if isinstance(item, Tensor) else item


def _constant(probe: ProbeEvaluation, sets: Mapping[str, _RawSet]) -> Scores:
    """Scores of always predicting the most frequent class, or the mean, of the training examples."""
    train = sets["train"].labels
    values, counts = np.unique(train, return_counts=True)
    constant = train.mean() if probe.metric == "spearman" else values[counts.argmax()]
    scores = {
        name: PROBE_METRICS[probe.metric](np.full(len(each.labels), constant), each.labels) for name, each in sets.items()
    }
    metric = f"{'ridge' if probe.metric == 'spearman' else 'linear'} {probe.metric}"
    return Scores({metric: scores["dev"]}, {name: {metric: scores[f"test {name}"]} for name in probe.test})


Inputs = Mapping[str, list[list[Any]]]
"""By set, the inputs of each text of a pair, or of the only input."""
FeatureSets = dict[str, list[Any]]
"""By set, the feature matrices (n, D) of the same, dense or sparse."""


def _each(inputs: Inputs, compute: Callable[[Any], np.ndarray]) -> FeatureSets:
    return {name: [np.stack([compute(each) for each in view]) for view in views] for name, views in inputs.items()}


def log_mel_statistics(waveform: np.ndarray) -> np.ndarray:
    """(80,) mean and standard deviation over time of the log energies of 40 mel bands of a 16 kHz waveform."""
    windows = 1 + max(0, len(waveform) - WINDOW) // HOP
    bands = log_mel(torch.from_numpy(waveform)[None], windows, WINDOW / 2, HOP, BANDS)[0]  # (windows, 40)
    return torch.cat([bands.mean(0), bands.std(0, correction=0)]).numpy()


def image_histograms(image: np.ndarray) -> np.ndarray:
    """(208,) of an image (3, H, W) of bytes: 64 joint colours, and 9 gradient orientations in 4 × 4 cells; square roots."""
    red, green, blue = (image // 64).astype(np.int64)
    colours = np.bincount((16 * red + 4 * green + blue).ravel(), minlength=64) / red.size
    dy, dx = np.gradient(image.mean(0))
    strength, orientation = np.hypot(dx, dy), np.minimum((np.arctan2(dy, dx) % np.pi) / np.pi * 9, 8).astype(np.int64)
    height, width = strength.shape
    cells = (np.arange(height) * 4 // height)[:, None] * 4 + (np.arange(width) * 4 // width)[None]
    gradients = np.bincount((cells * 9 + orientation).ravel(), strength.ravel(), minlength=144)
    return np.sqrt(np.concatenate([colours, gradients / max(gradients.sum(), 1e-9)]))


def kmeans_features(inputs: Inputs, seed: int) -> FeatureSets:
    """(n, 4 · CENTROIDS) by set: activations of whitened patches, averaged over quadrants: the mean distance minus the
    distance to each centroid, where that is positive. Whitening and centroids are fitted to the training images."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.decomposition import PCA

    train, rng = inputs["train"][0], np.random.default_rng(seed)
    per_image = max(1, PATCHES // len(train))
    sampled = [rng.permutation(patches)[:per_image] for patches in map(_patches, train)]
    flat = np.concatenate(sampled)
    whitening = PCA(min(*flat.shape, 80), whiten=True, random_state=seed).fit(flat)
    kmeans = MiniBatchKMeans(min(CENTROIDS, len(flat)), n_init=1, batch_size=1024, random_state=seed)
    kmeans.fit(whitening.transform(flat))

    def compute(image: np.ndarray) -> np.ndarray:
        distances = kmeans.transform(whitening.transform(_patches(image)))
        activations = np.maximum(0, distances.mean(1, keepdims=True) - distances)
        rows, columns = image.shape[1] - PATCH + 1, image.shape[2] - PATCH + 1
        grid = activations.reshape(rows, columns, -1)
        halves = (
            [slice(0, (rows + 1) // 2), slice((rows + 1) // 2, None)],
            [slice(0, (columns + 1) // 2), slice((columns + 1) // 2, None)],
        )
        return np.concatenate([grid[i, j].mean((0, 1)) for i in halves[0] for j in halves[1]])

    return _each(inputs, compute)


def _patches(image: np.ndarray) -> np.ndarray:
    """(positions, 3·PATCH²): the patches of an image (3, H, W), each normalised in brightness and contrast."""
    windows = np.lib.stride_tricks.sliding_window_view(image.astype(np.float32), (PATCH, PATCH), axis=(1, 2))
    flat = windows.transpose(1, 2, 0, 3, 4).reshape(-1, 3 * PATCH**2)
    return (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 10)


def tf_idf(inputs: Inputs, seed: int) -> FeatureSets:
    """Sparse (n, D) by set: tf-idf of words and pairs of words, and of 2 to 5 characters within words; fitted to the training
    texts."""
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True, max_features=50_000)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=50_000)
    vectorizer = make_union(words, characters)
    vectorizer.fit([text for view in inputs["train"] for text in view])
    return {name: [csr_array(vectorizer.transform(view)) for view in views] for name, views in inputs.items()}


_FEATURES: Mapping[str, Mapping[str, Callable[[Inputs, int], FeatureSets]]] = {
    "audio": {"log-mel statistics": lambda inputs, seed: _each(inputs, log_mel_statistics)},
    "image": {
        "colour and gradient histograms": lambda inputs, seed: _each(inputs, image_histograms),
        "k-means patches": kmeans_features,
    },
    "text": {"tf-idf": tf_idf},
}
