"""The attentive probe: the states of all positions of an example, pooled by a cross-attention with one learned query.

It is how masked image models are usually compared: what they know of an image is spread over its patches, and a mean loses
part of it. The query attends to the frozen states of one layer (multi-head, as many heads as the encoder has); a layer norm
and a linear layer follow. Only they are trained, on cross-entropy; the learning rate and the step are chosen on a dev part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from data2vec.console.progress import progress
from data2vec.errors import UserError
from data2vec.feature_extraction import batch_features, encode_chunks, joined, layer_weights
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.nn.encoder import Encoder, padding_invariant
from data2vec.settings import JsonMapping
from data2vec.tasks.eval_batches import EvalPass
from data2vec.tasks.metrics import Scores
from data2vec.tasks.probing.classifiers import format_scores
from data2vec.tasks.probing.dataset import ProbeSet
from data2vec.tasks.probing.head_search import class_indices, describe_search, load_head_sets, require_steps, search_head
from data2vec.tasks.probing.probe import FrozenEncoders, open_probe

LEARNING_RATES = (1e-2, 1e-3, 1e-4)
"""The grid of the search."""
MAX_BYTES = 2**32
"""The states that a pass over the data may keep in memory, unless those of one layer are more."""


class AttentiveHead(nn.Module):
    """Logits (B, C) of states (B, T, D): cross-attention with one learned query, layer norm, linear."""

    def __init__(self, width: int, heads: int, classes: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(heads, width // heads) * 0.02)
        self.key = nn.Linear(width, width, bias=False)  # a bias would be the same for all positions
        self.value = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """`padding` (B, T): True at positions that are not attended to.

        q·(Kx) is (Kᵀq)·x, and the values of a weighted mean are the weighted mean of values: no position is projected."""
        key, value = (weight.unflatten(0, (self.heads, -1)) for weight in (self.key.weight, self.value.weight))
        scores = x @ torch.einsum("hd,hdw->wh", self.query, key) * key.shape[1] ** -0.5  # (B, T, H)
        if padding is not None:
            scores = scores.masked_fill(padding[..., None], float("-inf"))
        means = scores.softmax(1).transpose(1, 2) @ x  # (B, H, D)
        pooled = torch.einsum("bhw,hdw->bhd", means, value).flatten(1) + self.value.bias
        logits: Tensor = self.out(self.norm(pooled))
        return logits


@dataclass(frozen=True)
class AttentiveFit:
    """What the best learning rate gives with one layer of one encoder."""

    lr: float
    dev_accuracy: float
    scores: Scores
    """On the held-out examples: accuracy, balanced_accuracy, kappa, weighted_f1, auroc."""


@dataclass(frozen=True)
class LayerAttentive:
    """The attentive probes of one layer."""

    layer: int
    """From 1, the output of the first block."""
    trained: AttentiveFit
    untrained: AttentiveFit


@dataclass(frozen=True)
class AttentiveProbe:
    """The result of an attentive probe; `str()` of it is a table."""

    rows: list[LayerAttentive]
    classes: list[str]
    train: int
    dev: int
    valid: int
    """Numbers of training, dev and held-out examples."""
    steps: int

    def best(self, encoder: str = "trained") -> LayerAttentive:
        """The layer with the highest accuracy on dev, of the "trained" or the "untrained" encoder."""
        return max(self.rows, key=lambda row: float(getattr(row, encoder).dev_accuracy))

    def __str__(self) -> str:
        lines = [f"{'':>8}{'trained':^28}{'untrained':^28}", f"{'layer':>8}" + f"{'accuracy':>10}{'dev':>10}{'lr':>8}" * 2]
        for row in self.rows:
            fits = (row.trained, row.untrained)
            cells = [f"{each.scores['accuracy']:10.1%}{each.dev_accuracy:10.1%}{each.lr:8.0e}" for each in fits]
            lines.append(f"{row.layer:8d}{''.join(cells)}")
        for name in ("trained", "untrained"):
            best = self.best(name)
            scores = getattr(best, name).scores
            lines.append(f"best on dev, {name}: layer {best.layer}, accuracy {scores['accuracy']:.1%}, {format_scores(scores)}")
        return "\n".join([*lines, describe_search(self.classes, self.train, self.dev, self.valid, self.steps)])


def attentive_probe(
    model: Model | str | Path,
    data: Any = None,
    valid: Any = None,
    steps: int = 1000,
    layer: int | None = None,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    modality: CustomClass | None = None,
) -> AttentiveProbe:
    """Train an attentive probe on every layer of a trained encoder, and of the same encoder untrained; or on one `layer`,
    counted from 1, or from the end if it is negative.

    A fifth of the training data is dev, on which one of `LEARNING_RATES` and the best of `steps` are chosen; scores are on
    `valid`. The other arguments are as of `data2vec.probe`; the result is written to probe_attentive.json. Raises UserError as
    `probe`."""
    require_steps(steps)
    frozen = open_probe(model, data, valid, overrides, out, modality, "probe_attentive")
    depth = frozen.recipe.encoder.layers
    layers = list(range(1, depth + 1))
    if layer is not None:
        layer_weights(layer, depth)
        layers = [layers[layer - 1 if layer > 0 else layer]]
    trained, sets = _fit_layers(frozen, 0, load_head_sets(frozen), layers, steps)
    untrained, sets = _fit_layers(frozen, 1, sets, layers, steps)
    rows = [LayerAttentive(*each) for each in zip(layers, trained, untrained, strict=True)]
    train, dev, held_out = (len(each.classes) for each in sets)
    return frozen.write(AttentiveProbe(rows, sorted(set(sets[0].classes.tolist())), train, dev, held_out, steps))


def _fit_layers(
    frozen: FrozenEncoders, which: int, sets: list[ProbeSet], layers: list[int], steps: int
) -> tuple[list[AttentiveFit], list[ProbeSet]]:
    """The fit of each layer of one encoder, and the sets without what cannot be decoded. A pass over the data keeps as many
    layers as `MAX_BYTES` allows; the first pass keeps one, and shows how large they are."""
    fits, at_once, desc = list[AttentiveFit](), 1, ("trained", "untrained")[which]
    heads, seed, device = frozen.recipe.encoder.heads, frozen.recipe.train.seed, frozen.process.device
    while len(fits) < len(layers):
        now = layers[len(fits) : len(fits) + at_once]
        found = [extract_states(frozen, frozen.encoders[which], each, now) for each in sets]
        states, sets = [each for each, _ in found], [kept for _, kept in found]
        at_once = max(1, MAX_BYTES // sum(x[:1].nbytes for each in states for x in each))
        names, labels = class_indices(sets)
        for index, layer in enumerate(now):
            of_layer = StandardisedStates([[x[index] for x in each] for each in states], device)
            width = of_layer.mean.shape[-1]
            fit = search_head(
                partial(_build_head, width, heads, len(names), device),
                of_layer.logits,
                labels,
                names,
                LEARNING_RATES,
                steps,
                seed,
                f"{desc}, layer {layer}",
            )
            fits.append(AttentiveFit(fit.lr, fit.dev_accuracy, fit.scores))
    return fits, sets


def _build_head(width: int, heads: int, classes: int, device: torch.device) -> AttentiveHead:
    return AttentiveHead(width, heads, classes).to(device)


class StandardisedStates:
    """The states (T, D) of a layer, of each example of the training, the dev and the held-out set: standardised feature by
    feature, by the positions of the training set."""

    def __init__(self, states: Sequence[Sequence[Tensor]], device: torch.device):
        self.states, self.device = states, device
        count = sum(len(x) for x in states[0])
        self.mean = torch.stack([x.double().sum(0) for x in states[0]]).sum(0) / count
        variance = torch.stack([(x.double() - self.mean).square().sum(0) for x in states[0]]).sum(0) / count
        self.mean = self.mean.float().to(device)
        self.scale = torch.where(variance > 1e-10, variance.rsqrt(), 0).float().to(device)  # what is constant says nothing

    def logits(self, head: AttentiveHead, number: int, rows: Tensor) -> Tensor:
        """(B, C) of the examples `rows` of set `number`."""
        parts = [self.states[number][row] for row in rows.tolist()]
        lengths = torch.tensor([len(part) for part in parts], device=self.device)
        x = pad_sequence(parts, batch_first=True).to(self.device).float()
        padding = torch.arange(x.shape[1], device=self.device) >= lengths[:, None]
        return head((x - self.mean) * self.scale, padding if bool((lengths != x.shape[1]).any()) else None)


@torch.no_grad()
def extract_states(
    frozen: FrozenEncoders, encoder: Encoder, probe_set: ProbeSet, layers: Sequence[int]
) -> tuple[list[Tensor], ProbeSet]:
    """The states of all positions in these layers, counted from 1: layer-normalised, float16 (L, T, D) on the CPU for each
    example that can be decoded; and these examples. Every process computes all of them, which are too large to exchange.

    Raises UserError if none can be decoded, or if states are NaN or inf."""
    encoder = padding_invariant(encoder)
    one_hot = torch.eye(frozen.recipe.encoder.layers + 1)[list(layers)].tolist()
    parts: dict[int, Tensor] = {}
    reading = EvalPass(frozen.modality, probe_set.examples, probe_set.indices, frozen.process.device)
    groups = progress(reading.batches(all_groups := reading.groups()), "states", len(all_groups), "batch")
    for rows, batch in chain.from_iterable(groups):
        chunks = frozen.modality.chunks(batch)
        x, padding = joined(encode_chunks(encoder, partial(batch_features, encoder, layers=one_hot), batch, chunks))
        if not x.isfinite().all():
            raise UserError("this encoder's features are NaN or inf: its training diverged, see metrics.jsonl")
        x = F.layer_norm(x.float(), x.shape[-1:]).half().cpu()
        lengths = [x.shape[-2]] * len(rows) if padding is None else (~padding).sum(1).tolist()
        parts |= {row: x[:, i, :length].clone() for i, (row, length) in enumerate(zip(rows.tolist(), lengths, strict=True))}
    if not parts:
        raise UserError(f"{probe_set.name}: none of the {len(probe_set.indices)} examples can be decoded")
    kept = sorted(parts)
    return [parts[row] for row in kept], probe_set.subset(np.array(kept))
