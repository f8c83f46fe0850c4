"""The utterance-level head of SUPERB (keyword spotting, intents, emotions, speakers) on frozen features.

A softmax-weighted sum of all hidden states, Linear(D, 256), the mean over time, Linear(256, C): there is no non-linearity, and
a mean of sums is the sum of means, so the states of an example can be averaged over time first and stored: one vector for each
layer. That is the same head, up to rounding, at a fraction of the cost. Adam without schedule, batches of 32, gradients
clipped to a norm of 1; the learning rate is searched by decades on a dev part (s3prl's settings; its runs are longer).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.settings import JsonMapping
from data2vec.tasks.probing.classifiers import format_scores
from data2vec.tasks.probing.head_search import class_indices, describe_search, load_head_sets, require_steps, search_head
from data2vec.tasks.probing.probe import open_probe

LEARNING_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The grid of the search."""
WIDTH = 256
"""Of the projection."""


class UtteranceHead(nn.Module):
    """Logits (B, C) of time-averaged states (L, B, D)."""

    def __init__(self, layers: int, width: int, classes: int):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(layers))
        self.project = nn.Linear(width, WIDTH)
        self.classify = nn.Linear(WIDTH, classes)

    def forward(self, states: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.project(torch.tensordot(self.mix.softmax(0), states, 1)))
        return logits


@dataclass(frozen=True)
class SuperbHead:
    """What the best learning rate gives with one encoder."""

    lr: float
    dev_accuracy: float
    scores: dict[str, float]
    """On the held-out examples: accuracy, balanced_accuracy, kappa, auroc."""
    layer_weights: list[float]
    """Of the input of the first block and of every block; their sum is 1."""


@dataclass(frozen=True)
class SuperbProbe:
    """The result of SUPERB's utterance-level head; `str()` of it is a table."""

    trained: SuperbHead
    untrained: SuperbHead
    classes: list[str]
    train: int
    dev: int
    valid: int
    """Numbers of training, dev and held-out examples."""
    steps: int

    def __str__(self) -> str:
        lines = [f"{'':>12}{'accuracy':>10}{'dev':>10}{'lr':>8}"]
        heads = {"trained": self.trained, "untrained": self.untrained}
        for name, head in heads.items():
            lines.append(f"{name:>12}{head.scores['accuracy']:10.1%}{head.dev_accuracy:10.1%}{head.lr:8.0e}")
        lines += [f"{name}: {format_scores(head.scores)}" for name, head in heads.items()]
        weights = " ".join(f"{weight:.2f}" for weight in self.trained.layer_weights)
        lines.append(f"layer weights, from the input of the first block: {weights}")
        return "\n".join([*lines, describe_search(self.classes, self.train, self.dev, self.valid, self.steps)])


def superb_probe(
    model: Model | str | Path,
    data: Any = None,
    valid: Any = None,
    steps: int = 2000,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    modality: CustomClass | None = None,
    shard: str | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> SuperbProbe:
    """Train SUPERB's utterance-level head on a trained encoder, and on the same encoder untrained.

    A fifth of the training data is dev, on which one of `LEARNING_RATES` and the best of `steps` are chosen; scores are on
    `valid`. The other arguments are as of `data2vec.probe`; the result is written to probe_superb.json. Raises UserError as
    `probe`."""
    require_steps(steps)
    frozen = open_probe(model, data, valid, overrides, out, modality, "probe_superb", shard, precision, compile)
    with frozen.features(*load_head_sets(frozen), layers="states") as found:
        features, sets = [torch.from_numpy(x) for x, _ in found], [kept for _, kept in found]
        names, labels = class_indices(sets)
        heads = [
            fit_superb([x[i] for x in features], labels, names, steps, frozen.recipe.train.seed, desc)
            for i, desc in enumerate(("trained", "untrained"))
        ]
        train, dev, held_out = (len(each.classes) for each in sets)
        return frozen.write(SuperbProbe(heads[0], heads[1], names.tolist(), train, dev, held_out, steps))


def fit_superb(
    features: list[Tensor], labels: list[Tensor], names: np.ndarray, steps: int, seed: int, desc: str = "SUPERB head"
) -> SuperbHead:
    """The head with the best learning rate, of pooled states (L, n, D) and classes (n,) of the training, the dev and the
    held-out set. `names`: of the classes. `desc`: label of the progress bar."""
    layers, _, width = features[0].shape
    fit = search_head(
        lambda: UtteranceHead(layers, width, len(names)),
        lambda head, number, rows: head(features[number][:, rows]),
        labels,
        names,
        LEARNING_RATES,
        steps,
        seed,
        desc,
    )
    return SuperbHead(fit.lr, fit.dev_accuracy, fit.scores, fit.head.mix.detach().softmax(0).tolist())
