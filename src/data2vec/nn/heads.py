"""Heads of fine-tuned models: contextual vectors to logits.

Shapes: B batch, T positions, D width, V labels.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.nn.encoder import Encoder
from data2vec.settings import Settings

Labels = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class HeadSettings(Settings):
    """Settings that all heads share."""

    weighted_layers: Annotated[int, Field(gt=0, le=2**10)] | None = None
    """Number of blocks, if the head reads a learned weighted sum of all block outputs (SUPERB); None: the encoder's output."""


class CTCSettings(HeadSettings):
    """A label at every position, or a blank: connectionist temporal classification."""

    name: Literal["ctc"] = "ctc"
    labels: Labels
    """What each logit stands for; the first is the blank (fairseq and transformers: index 0)."""


class ClassifierSettings(HeadSettings):
    """One pooled vector per input, to one logit per label."""

    name: Literal["classifier"] = "classifier"
    labels: Labels
    """What each logit stands for; for a regression, the name of the number."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """The kind of labels, by the name that transformers uses."""
    pooling: Literal["mean", "first", "class-token", "attention", "linear-softmax"] = "mean"
    """How positions are pooled: their mean, without extra tokens; the first position; the last extra token instead of them; or
    a mean with attention weights from a learned query. linear-softmax pools the probabilities of each position instead:
    confident positions weigh more."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of a layer norm on the pooled vector (BEiT: fc_norm); None: no norm."""
    hidden_layer: Literal["linear", "tanh"] | None = None
    """A linear layer before the output layer, plain or followed by tanh (RoBERTa); None: no such layer."""
    hidden_width: Annotated[int, Field(gt=0, le=2**18)] | None = None
    """Output width of that layer; None: the encoder's width."""

    @model_validator(mode="after")
    def _one_class_token(self) -> Self:
        if self.pooling == "class-token" and self.weighted_layers:
            raise ValueError("pooling: class-token has no weighted sum of blocks; use mean, or no weighted_layers")
        return self


AnyHeadSettings = Annotated[CTCSettings | ClassifierSettings, Field(discriminator="name")]


class BlockMixingHead(nn.Module):
    """What the heads share: the optional weighted sum over blocks."""

    def __init__(self, settings: HeadSettings):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(settings.weighted_layers)) if settings.weighted_layers else None

    def combine(self, states: Sequence[Tensor]) -> Tensor:
        """One sequence (B, T, D) of the `encoder_states`: with a mix, their weighted sum, each layer-normalised (SUPERB)."""
        if self.mix is None:
            (output,) = states
            return output
        weights = self.mix.softmax(0)
        return torch.stack([w * F.layer_norm(x, x.shape[-1:]) for w, x in zip(weights, states, strict=True)]).sum(0)


class CTC(BlockMixingHead):
    """Logits (B, T, V) of contextual vectors (B, T, D)."""

    def __init__(self, settings: CTCSettings, width: int):
        super().__init__(settings)
        self.settings = settings
        self.out = nn.Linear(width, len(settings.labels))
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        logits: Tensor = self.out(x)
        return logits


class Classifier(BlockMixingHead):
    """Logits (B, V) of contextual vectors (B, T, D), of which padded ones are left out of the pooling; or, with pooling
    class-token, of these tokens (B, 1, D)."""

    def __init__(self, settings: ClassifierSettings, width: int):
        super().__init__(settings)
        self.settings = settings
        self.query = nn.Linear(width, 1) if settings.pooling == "attention" else None
        self.norm = nn.LayerNorm(width, settings.norm_eps) if settings.norm_eps else nn.Identity()
        hidden = (settings.hidden_width or width) if settings.hidden_layer else width
        self.hidden = nn.Linear(width, hidden) if settings.hidden_layer else nn.Identity()
        self.out = nn.Linear(hidden, len(settings.labels))
        for linear in (part for part in (self.hidden, self.out) if isinstance(part, nn.Linear)):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        pooling = self.settings.pooling
        y = self.hidden(self.norm(x if pooling == "linear-softmax" else self._pool(x, padding)))
        logits: Tensor = self.out(y.tanh() if self.settings.hidden_layer == "tanh" else y)
        return linear_softmax(logits, padding) if pooling == "linear-softmax" else logits

    def _pool(self, x: Tensor, padding: Tensor | None) -> Tensor:
        if self.query is None:
            return mean_pool(x, padding) if self.settings.pooling == "mean" else x[:, 0]
        scores: Tensor = self.query(x)[..., 0]
        scores = scores if padding is None else scores.masked_fill(padding, float("-inf"))
        return (scores.softmax(-1)[..., None] * x).sum(-2)


Head = CTC | Classifier


@torch.no_grad()
def scale_logits(head: Classifier, factor: float) -> None:
    """Multiply, in place, all logits of a head whose last layer is linear, which is every one but linear-softmax."""
    head.out.weight.mul_(factor)
    head.out.bias.mul_(factor)


def build_head(settings: CTCSettings | ClassifierSettings, width: int) -> Head:
    """The head of these settings on an encoder of this width, with fresh weights."""
    return CTC(settings, width) if isinstance(settings, CTCSettings) else Classifier(settings, width)


def reads_class_token(head: Head) -> bool:
    """Whether the head reads the last extra token instead of the positions."""
    return isinstance(head, Classifier) and head.settings.pooling == "class-token"


def encoder_states(encoder: Encoder, head: Head, x: Tensor, padding: Tensor | None) -> list[Tensor]:
    """What `head` reads of local features `x` (B, T, D): the encoder's output, its class token (B, 1, D), or all block outputs
    if it mixes them. Raises UserError for an encoder without the class token that the head reads."""
    if reads_class_token(head):
        if not encoder.transformer.settings.extra_tokens:
            raise UserError("objective.pooling: class-token needs an encoder with an extra token; use mean")
        return [encoder.encode_with_extra(x, padding)[0][:, -1:]]
    if head.mix is None:
        return [encoder.encode(x, padding)]
    return [output.block for output in encoder.block_outputs(x, padding)]


def head_input(encoder: Encoder, head: Head, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """What `head` is applied to, (B, T, D) or class tokens (B, 1, D), for a batch, and the padding (B, T) or None."""
    x, padding = encoder.local_encoder(batch)
    states = encoder_states(encoder, head, x, padding)
    return head.combine(states), None if reads_class_token(head) else padding


def mean_pool(x: Tensor, padding: Tensor | None = None) -> Tensor:
    """The mean (…, B, D) of `x` (…, B, T, D) over the positions that are not `padding` (B, T)."""
    if padding is None:
        return x.mean(-2)
    valid = ~padding[..., None]
    return torch.where(valid, x, 0).sum(-2) / valid.sum(-2).clamp(min=1)


def linear_softmax(logits: Tensor, padding: Tensor | None = None) -> Tensor:
    """Pool logits (B, T, V) to (B, V): the logit of the probability Σp² / Σp over the positions that are not padding."""
    p = F.logsigmoid(logits.float())
    if padding is not None:
        p = p.masked_fill(padding[..., None], float("-inf"))
    pooled = (2 * p).logsumexp(-2) - p.logsumexp(-2)  # log of a probability
    return pooled - torch.log1p(-pooled.exp().clamp(max=1 - 1e-6))
