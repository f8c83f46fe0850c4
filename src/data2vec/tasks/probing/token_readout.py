"""Token read-out: what a text model's frozen features reveal of tokens that it does not see, in nats below unigrams.

15 % of the tokens of each block of text are masked, never two adjacent ones. A linear softmax classifier predicts each of them
from the features of a layer. Its cross-entropy on held-out text is compared with that of the tokens' frequencies, which is
what features without any information achieve: 0 nats gained.

Shapes: N blocks, B of them in a batch, T tokens of a block, n masked tokens, L layers, D width, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data2vec.atomic_io import write_json
from data2vec.batch import Batch
from data2vec.console.progress import progress
from data2vec.data.dataset import ExampleDataset
from data2vec.distributed import resolve_device
from data2vec.errors import UserError
from data2vec.feature_extraction import max_positions
from data2vec.inputs import require_tokenizer
from data2vec.interop.load import load
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import CustomClass
from data2vec.model import Model
from data2vec.nn.encoder import Encoder
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import result_file
from data2vec.settings import JsonMapping
from data2vec.tasks.probing.probe import untrained_encoder

MASKED_FRACTION = 0.15
"""The fraction of a block's tokens that is masked."""
MAX_TOKENS = 20_000
"""Masked tokens that the classifier is fitted to; a quarter as many are held out for each of dev and test."""
BATCH, LR, MAX_STEPS, DEV_EVERY = 1024, 3e-3, 1000, 20
"""Adam: masked tokens per step, learning rate, most steps, and steps between evaluations on the dev set."""
EPSILON = 1e-3
"""Added to the eigenvalues of the correlation matrix for whitening."""

View = Literal["neighbours", "mask_token"]
"""What the encoder sees and which features predict a masked token. neighbours: it sees the other tokens only, without any mask
token, and the features of the tokens to the left and to the right predict; the same for models with and without mask tokens in
training. mask_token: it sees <mask> in place of masked tokens, and the features at that position predict; models trained on
visible positions only, such as data2vec 2, have never seen <mask>."""


@dataclass(frozen=True)
class LayerGains:
    """Nats gained over unigrams by one layer's features, per masked token of the dev and of the test set."""

    layer: int
    """From 1, the output of the first block."""
    dev: float
    test: float
    untrained_dev: float
    untrained_test: float


@dataclass(frozen=True)
class TokenReadout:
    """The result of a token read-out; `str()` of it is a table."""

    rows: list[LayerGains]
    view: View
    unigrams: float
    """Cross-entropy of unigrams on the test set, in nats: the most that can be gained."""
    classes: int
    """C: the tokens that occur at least twice among those that the classifier is fitted to; and one class for all others."""
    tokens: dict[str, int]
    """The number of masked tokens in the set for fitting ("train"), dev and test."""

    @property
    def best(self) -> LayerGains:
        """The layer with the highest gain on the dev set."""
        return max(self.rows, key=lambda row: row.dev)

    @property
    def untrained_best(self) -> LayerGains:
        """The same of the untrained encoder."""
        return max(self.rows, key=lambda row: row.untrained_dev)

    def __str__(self) -> str:
        head = f"{'':>8}{'trained':^20}{'untrained':^20}\n{'layer':>8}{'dev':>10}{'test':>10}{'dev':>10}{'test':>10}"
        cells = [f"{r.layer:8d}{r.dev:10.3f}{r.test:10.3f}{r.untrained_dev:10.3f}{r.untrained_test:10.3f}" for r in self.rows]
        best, untrained = self.best, self.untrained_best
        chosen = (best.dev, best.test, untrained.untrained_dev, untrained.untrained_test)
        counts = ", ".join(f"{count} {name}" for name, count in self.tokens.items())
        return "\n".join(
            [
                head,
                *cells,
                f"{'best dev':>8}" + "".join(f"{value:10.3f}" for value in chosen),
                f"{'at layer':>8}{best.layer:10d}{best.layer:10d}{untrained.layer:10d}{untrained.layer:10d}",
                f"Nats below the {self.unigrams:.3f} of unigrams on test; view {self.view}; {self.classes} classes; "
                f"masked tokens: {counts}.",
            ]
        )


def token_readout(
    model: Model | str | Path,
    data: str | Path,
    valid: str | Path | None = None,
    view: View = "neighbours",
    max_tokens: int = MAX_TOKENS,
    overrides: Iterable[str] | JsonMapping = (),
    out: str | Path | None = None,
    modality: CustomClass | None = None,
) -> TokenReadout:
    """Read tokens out of every layer of a trained text encoder, and of the same encoder untrained (same recipe and seed).

    `model`: a Model, or the folder of a run or model. `data`: text that the classifier is fitted to, in any form that
    `data.train` accepts. `valid`: held-out text, of which the first half is the dev set and the second half the test set; None:
    `data` is split 60:20:20, in each case with the documents in random order. `view`: see `View`. `max_tokens`: masked tokens
    to fit to; a quarter as many are in each of the dev and the test set. `overrides`: of the recipe, such as {"train.seed": 1}.
    The result is also written to `out`, by default token_readout.json in the model's folder if the model was given as a folder.
    `modality`: see `data2vec.load`.

    Raises UserError for a model that is not of text or has no tokenizer, and for too little text."""
    if not isinstance(model, Model):
        out = result_file(model, "token_readout") if out is None else out
        model = load(model, modality)
    recipe = load_recipe(load_recipe(model.recipe, {"train.device": "auto"}), overrides)
    recipe = load_recipe(recipe, {"data.streaming": False})
    built, seed = recipe.build_modality(), recipe.train.seed
    require_text(built)
    train = _shuffled_blocks(built, data, "data", seed)
    if valid is None:
        parts = _consecutive(train, (0.6, 0.8), str(data))
        blocks = dict(zip(("train", "dev", "test"), ((train, part) for part in parts), strict=True))
    else:
        held_out = _shuffled_blocks(built, valid, "valid", seed)
        dev, test = ((held_out, part) for part in _consecutive(held_out, (0.5,), str(valid)))
        blocks = {"train": (train, np.arange(len(train))), "dev": dev, "test": test}
    sets = {
        name: mask_tokens(examples, indices, max_tokens if name == "train" else ceil(max_tokens / 4), seed)
        for name, (examples, indices) in blocks.items()
    }
    unigrams, device = Unigrams(sets["train"]), resolve_device(recipe.train.device, setting="train.device")
    trained, untrained = (
        readout_gains(encoder.to(device).eval(), sets, unigrams, view, seed)
        for encoder in (model.encoder, untrained_encoder(recipe))
    )
    result = TokenReadout(
        [
            LayerGains(layer, one["dev"], one["test"], other["dev"], other["test"])
            for layer, (one, other) in enumerate(zip(trained, untrained, strict=True), 1)
        ],
        view,
        unigrams.cross_entropy(sets["test"]),
        len(unigrams.log_probs),
        {name: len(each.tokens) for name, each in sets.items()},
    )
    if out is not None:
        write_json(Path(out), asdict(result))
    return result


def require_text(modality: Modality) -> None:
    """Raises UserError for a model that is not of text, or has no tokenizer."""
    if getattr(modality, "kind", None) != "text":
        raise UserError(f"this is a model of {modality.settings.name}; only text models have tokens to read out")
    require_tokenizer(modality)


def _shuffled_blocks(modality: Modality, where: str | Path, name: str, seed: int) -> ExampleDataset:
    try:
        rows = modality.rows(str(where))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return modality.examples(rows.select(np.random.default_rng(seed).permutation(len(rows))))


def _consecutive(examples: ExampleDataset, ends: tuple[float, ...], where: str) -> list[np.ndarray]:
    """Indices of consecutive parts, which share a document only where one ends and the next begins."""
    parts = np.split(np.arange(len(examples)), [round(end * len(examples)) for end in ends])
    if not all(len(part) for part in parts):
        raise UserError(f"{where}: {len(examples)} blocks of text are too few to be split into {len(parts)}; use more text")
    return parts


@dataclass(frozen=True, eq=False)
class MaskedTokens:
    """Blocks of text with some tokens masked, equally many in each block."""

    blocks: Tensor
    """(N, T) token ids."""
    mask: Tensor
    """Bool (N, T), True = masked."""

    @property
    def tokens(self) -> Tensor:
        """(n,) the masked tokens."""
        return self.blocks[self.mask]


def mask_tokens(examples: ExampleDataset, indices: np.ndarray, max_tokens: int, seed: int) -> MaskedTokens:
    """Mask 15 % of the tokens in blocks drawn from `indices` of `examples`, about `max_tokens` in all (whole blocks).

    The first and the last token of a block and both neighbours of a masked token stay visible."""
    if max_tokens < 1:
        raise UserError(f"max_tokens: {max_tokens} masked tokens; at least 1 is needed")
    rng = np.random.default_rng(seed)
    length = len(examples.load(int(indices[0]), None, None))
    if length < 3:
        raise UserError(f"modality.max_length: {length} tokens; at least 3 are needed for a token with two neighbours")
    count = max(1, round(MASKED_FRACTION * (length - 2)))
    indices = np.sort(rng.permutation(indices)[: ceil(max_tokens / count)])
    blocks = torch.stack([examples.load(int(index), None, None) for index in indices])
    mask = torch.zeros(blocks.shape, dtype=torch.bool)
    for row in mask:
        # count distinct numbers, pushed apart by one each, are a uniformly drawn set without neighbours
        drawn = np.sort(rng.choice(length - 1 - count, count, replace=False)) + np.arange(count) + 1
        row[torch.from_numpy(drawn)] = True
    return MaskedTokens(blocks, mask)


class Unigrams:
    """The classes that tokens are predicted as, and their frequencies in the blocks that the classifier is fitted to.

    Tokens that are masked there at least twice are classes; all others are one class, the last one."""

    def __init__(self, train: MaskedTokens):
        ids, counts = train.tokens.unique(return_counts=True)
        self.ids = ids[counts > 1]
        counts = self.classes(train.blocks[:, 1:]).flatten().bincount(minlength=len(self.ids) + 1)
        self.log_probs = (counts.clamp(min=1) / counts.clamp(min=1).sum()).log()
        """(C,) float32 log-probabilities, from all tokens of the blocks."""

    def classes(self, tokens: Tensor) -> Tensor:
        """The classes of token ids, of any shape."""
        found = torch.searchsorted(self.ids, tokens.contiguous()).clamp(max=max(len(self.ids) - 1, 0))
        known = self.ids[found] == tokens if len(self.ids) else torch.zeros_like(tokens, dtype=torch.bool)
        return torch.where(known, found, len(self.ids))

    def cross_entropy(self, masked: MaskedTokens) -> float:
        """In nats, of the masked tokens."""
        return -float(self.log_probs[self.classes(masked.tokens)].mean())


def readout_gains(
    encoder: Encoder, sets: Mapping[str, MaskedTokens], unigrams: Unigrams, view: View, seed: int
) -> list[dict[str, float]]:
    """Nats below unigrams of each layer's read-out, by set, without `train`, which it is fitted to; `dev` stops its training.

    The encoder must be in evaluation mode and is not changed.

    Raises UserError if features are NaN or inf."""
    device = next(encoder.parameters()).device
    features = {name: readout_features(encoder, masked, view) for name, masked in sets.items()}
    classes = {name: unigrams.classes(masked.tokens).to(device) for name, masked in sets.items()}
    if not all(x.isfinite().all() for x in features.values()):
        raise UserError("this encoder's features are NaN or inf: its training diverged, see metrics.jsonl")
    baseline = {name: unigrams.cross_entropy(masked) for name, masked in sets.items()}
    gains = []
    for layer in progress(range(len(features["train"])), "read-outs", unit="layer"):
        x = whiten({name: each[layer] for name, each in features.items()})
        losses = fit_readout(x, classes, unigrams.log_probs.to(device), seed)
        gains.append({name: baseline[name] - loss for name, loss in losses.items()})
    return gains


@torch.no_grad()
def readout_features(encoder: Encoder, masked: MaskedTokens, view: View) -> Tensor:
    """The features of all masked tokens in the output of every block: (L, n, D) with `mask_token`, (L, n, 2·D) with
    `neighbours`, those of the left one first."""
    device = next(encoder.parameters()).device
    rows = max(1, max_positions(device) // masked.blocks.shape[1])
    compute = _neighbour_features if view == "neighbours" else _mask_token_features
    batches = zip(masked.blocks.split(rows), masked.mask.split(rows), strict=True)
    parts = [torch.stack([*compute(encoder, blocks.to(device), mask.to(device))]) for blocks, mask in batches]
    return torch.cat(parts, 1).float()


def _neighbour_features(encoder: Encoder, blocks: Tensor, mask: Tensor) -> Iterator[Tensor]:
    x, _ = encoder.local_encoder(Batch(blocks))
    visible = (~mask).nonzero()[:, 1].view(len(mask), -1)
    inputs = encoder.position_encoder.encode_visible_positions(x, None, mask, visible)
    left = (~mask).cumsum(1)[mask].view(len(mask), -1) - 1  # as an index into `visible`
    row = torch.arange(len(mask), device=mask.device)[:, None]
    for output in encoder.transformer.block_outputs(inputs, None, encoder.position_encoder.bias(mask.shape[1], visible)):
        yield torch.cat([output.block[row, left], output.block[row, left + 1]], -1).flatten(0, 1)


def _mask_token_features(encoder: Encoder, blocks: Tensor, mask: Tensor) -> Iterator[Tensor]:
    x, _ = encoder.local_encoder(Batch(blocks))
    for output in encoder.block_outputs(encoder.apply_mask(x, mask, blocks), None):
        yield output.block[mask]


def whiten(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Features (n, D) by set, with mean 0 and covariance I (but for `EPSILON`) in `train`; constant features are 0.

    Without it, training would stop before it has found information that lies in directions of small variance."""
    train = features["train"]
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = torch.where(std > 1e-6 * (1 + mean.abs()), 1 / std, 0)
    x = (train - mean) * scale
    variances, directions = torch.linalg.eigh((x.T @ x).double() / len(x))
    matrix = scale[:, None] * (directions / (variances.clamp(min=0) + EPSILON).sqrt()).float()
    return {name: (x - mean) @ matrix for name, x in features.items()}


def fit_readout(
    features: Mapping[str, Tensor], classes: Mapping[str, Tensor], log_unigrams: Tensor, seed: int
) -> dict[str, float]:
    """The cross-entropy in nats of a linear softmax classifier, fitted to features (n, D) and classes (n,) of `train`, on the
    other sets. It starts at the unigrams (C,), and stops when the cross-entropy of `dev` no longer decreases. If it never does,
    as with weak signals, it starts again at a tenth and a hundredth of the learning rate."""
    x, y = features["train"], classes["train"]
    weight = torch.zeros(len(log_unigrams), x.shape[1], device=x.device, requires_grad=True)
    bias = log_unigrams.clone().requires_grad_()

    @torch.no_grad()
    def cross_entropy(name: str) -> float:
        batches = zip(features[name].split(BATCH), classes[name].split(BATCH), strict=True)
        return float(sum(F.cross_entropy(F.linear(x, weight, bias), y, reduction="sum") for x, y in batches)) / len(
            classes[name]
        )

    start = best = cross_entropy("dev")
    best_weights = weight.detach().clone(), bias.detach().clone()
    for lr in (LR, LR / 10, LR / 100):
        if best < start:
            break
        with torch.no_grad():
            weight.zero_()
            bias.copy_(log_unigrams)
        optimizer = torch.optim.Adam([weight, bias], lr)
        batches = _shuffled_batches(len(x), torch.Generator().manual_seed(seed))
        for step, rows in zip(range(1, MAX_STEPS + 1), batches, strict=False):
            rows = rows.to(x.device)
            optimizer.zero_grad()
            F.cross_entropy(F.linear(x[rows], weight, bias), y[rows]).backward()
            optimizer.step()
            if step % DEV_EVERY == 0:
                if (loss := cross_entropy("dev")) >= best:
                    break
                best, best_weights = loss, (weight.detach().clone(), bias.detach().clone())
    weight, bias = best_weights
    return {name: cross_entropy(name) for name in features if name != "train"}


def _shuffled_batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of batches, epoch by epoch without end."""
    while True:
        yield from torch.randperm(count, generator=generator).split(BATCH)
