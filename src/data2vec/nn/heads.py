"""What stands on an encoder after fine-tuning: its contextual vectors to logits.

Shapes: B batch, T positions, D width, V labels.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.settings import Settings

Labels = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class CTCSettings(Settings):
    """A label at every position, or a blank: connectionist temporal classification."""

    name: Literal["ctc"] = "ctc"
    labels: Labels
    """What each logit stands for; the first is the blank (fairseq and transformers: index 0)."""


class ClassifierSettings(Settings):
    """One vector an input, to one logit a label."""

    name: Literal["classifier"] = "classifier"
    labels: Labels
    """What each logit stands for; for a regression, the name of the number."""
    problem: Literal["single_label_classification", "multi_label_classification", "regression"] = "single_label_classification"
    """As transformers calls them."""
    pool: Literal["mean", "first", "linear-softmax"] = "mean"
    """The vector of an input: the mean over its positions, extra tokens not among them; or the first position's. With
    linear-softmax every position has logits of its own, and confident ones count for more (AudioSet)."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of a layer norm on that vector; without one, there is none (BEiT: fc_norm)."""
    inner: Literal["linear", "tanh"] | None = None
    """A matrix before the one to the labels, plain or followed by tanh (RoBERTa)."""
    inner_width: Annotated[int, Field(gt=0)] | None = None
    """Its output width; without one, the encoder's."""


AnyHeadSettings = Annotated[CTCSettings | ClassifierSettings, Field(discriminator="name")]


class CTC(nn.Module):
    """Logits (B, T, V) of contextual vectors (B, T, D)."""

    def __init__(self, settings: CTCSettings, width: int):
        super().__init__()
        self.settings = settings
        self.out = nn.Linear(width, len(settings.labels))
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.out(x)


class Classifier(nn.Module):
    """Logits (B, V) of contextual vectors (B, T, D), of which those at `padding` (B, T) do not count."""

    def __init__(self, settings: ClassifierSettings, width: int):
        super().__init__()
        self.settings = settings
        self.norm = nn.LayerNorm(width, settings.norm_eps) if settings.norm_eps else nn.Identity()
        inner = (settings.inner_width or width) if settings.inner else width
        self.inner = nn.Linear(width, inner) if settings.inner else nn.Identity()
        self.out = nn.Linear(inner, len(settings.labels))
        for linear in (part for part in (self.inner, self.out) if isinstance(part, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        pool = self.settings.pool
        y = self.inner(self.norm(x if pool == "linear-softmax" else x[:, 0] if pool == "first" else mean(x, padding)))
        logits = self.out(y.tanh() if self.settings.inner == "tanh" else y)
        return linear_softmax(logits, padding) if pool == "linear-softmax" else logits


Head = CTC | Classifier


def build(settings: CTCSettings | ClassifierSettings, width: int) -> Head:
    """The head of these settings on an encoder of this width, with fresh weights."""
    return CTC(settings, width) if isinstance(settings, CTCSettings) else Classifier(settings, width)


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
