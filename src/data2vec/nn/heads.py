"""What stands on an encoder after fine-tuning: its contextual vectors to logits.

Shapes: B batch, T positions, D width, V labels.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import Batch
from data2vec.nn.encoder import Encoder
from data2vec.settings import Settings

Labels = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class HeadSettings(Settings):
    """What every head has."""

    blocks: Annotated[int, Field(gt=0)] | None = None
    """A learned weighted sum of the outputs of so many blocks, all of them, in place of what the encoder puts out (SUPERB)."""


class CTCSettings(HeadSettings):
    """A label at every position, or a blank: connectionist temporal classification."""

    name: Literal["ctc"] = "ctc"
    labels: Labels
    """What each logit stands for; the first is the blank (fairseq and transformers: index 0)."""


class ClassifierSettings(HeadSettings):
    """One vector an input, to one logit a label."""

    name: Literal["classifier"] = "classifier"
    labels: Labels
    """What each logit stands for; for a regression, the name of the number."""
    problem: Literal["single_label_classification", "multi_label_classification", "regression"] = "single_label_classification"
    """As transformers calls them."""
    pool: Literal["mean", "first", "attention", "linear-softmax"] = "mean"
    """The vector of an input: the mean over its positions, extra tokens not among them; the first position's; or a mean with
    weights by a learned query. With linear-softmax every position has logits of its own, and confident ones count for more."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of a layer norm on that vector; without one, there is none (BEiT: fc_norm)."""
    inner: Literal["linear", "tanh"] | None = None
    """A matrix before the one to the labels, plain or followed by tanh (RoBERTa)."""
    inner_width: Annotated[int, Field(gt=0)] | None = None
    """Its output width; without one, the encoder's."""


AnyHeadSettings = Annotated[CTCSettings | ClassifierSettings, Field(discriminator="name")]


class Mix(nn.Module):
    """What the heads have in common: the sum over blocks, where there is one."""

    def __init__(self, settings: HeadSettings):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(settings.blocks)) if settings.blocks else None

    def mixed(self, blocks: Sequence[Tensor]) -> Tensor:
        """The weighted sum (B, T, D) of all blocks' outputs, each normalised, as in SUPERB."""
        assert self.mix is not None
        weights = self.mix.softmax(0)
        return torch.stack([w * F.layer_norm(x, x.shape[-1:]) for w, x in zip(weights, blocks, strict=True)]).sum(0)


class CTC(Mix):
    """Logits (B, T, V) of contextual vectors (B, T, D)."""

    def __init__(self, settings: CTCSettings, width: int):
        super().__init__(settings)
        self.settings = settings
        self.out = nn.Linear(width, len(settings.labels))
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.out(x)


class Classifier(Mix):
    """Logits (B, V) of contextual vectors (B, T, D), of which those at `padding` (B, T) do not count."""

    def __init__(self, settings: ClassifierSettings, width: int):
        super().__init__(settings)
        self.settings = settings
        self.query = nn.Linear(width, 1) if settings.pool == "attention" else None
        self.norm = nn.LayerNorm(width, settings.norm_eps) if settings.norm_eps else nn.Identity()
        inner = (settings.inner_width or width) if settings.inner else width
        self.inner = nn.Linear(width, inner) if settings.inner else nn.Identity()
        self.out = nn.Linear(inner, len(settings.labels))
        for linear in (part for part in (self.inner, self.out) if isinstance(part, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        pool = self.settings.pool
        y = self.inner(self.norm(x if pool == "linear-softmax" else self._pooled(x, padding)))
        logits = self.out(y.tanh() if self.settings.inner == "tanh" else y)
        return linear_softmax(logits, padding) if pool == "linear-softmax" else logits

    def _pooled(self, x: Tensor, padding: Tensor | None) -> Tensor:
        if self.query is None:
            return x[:, 0] if self.settings.pool == "first" else mean(x, padding)
        strength = self.query(x)[..., 0]
        strength = strength if padding is None else strength.masked_fill(padding, float("-inf"))
        return (strength.softmax(-1)[..., None] * x).sum(-2)


Head = CTC | Classifier


def build(settings: CTCSettings | ClassifierSettings, width: int) -> Head:
    """The head of these settings on an encoder of this width, with fresh weights."""
    return CTC(settings, width) if isinstance(settings, CTCSettings) else Classifier(settings, width)


def logits(encoder: Encoder, head: Head, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """What a head says of a batch, (B, T, V) or (B, V); and the padding (B, T) or None."""
    if head.mix is None:
        x, padding = encoder(batch)
        return head(x, padding), padding
    blocks: list[Tensor] = []
    _, padding = encoder(batch, lambda index, ffn, block: blocks.append(block))
    return head(head.mixed(blocks), padding), padding


def mean(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """The mean (…, B, D) of `x` (…, B, T, D) over the positions that are there; `padding` (B, T) says which are not."""
    if padding is None:
        return x.mean(-2)
    there = ~padding[..., None]
    return torch.where(there, x, 0).sum(-2) / there.sum(-2).clamp(min=1)


def linear_softmax(logits: Tensor, padding: Tensor | None = None) -> Tensor:
    """Logits (B, V) of logits at positions (B, T, V): of the probability Σp² / Σp over the positions that are there."""
    p = F.logsigmoid(logits.float())
    if padding is not None:
        p = p.masked_fill(padding[..., None], float("-inf"))
    pooled = (2 * p).logsumexp(-2) - p.logsumexp(-2)  # log of a probability
    return pooled - torch.log1p(-pooled.exp().clamp(max=1 - 1e-6))
