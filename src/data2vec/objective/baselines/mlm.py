"""Masked language modelling: predict the masked tokens themselves (BERT, Devlin et al., 2018; RoBERTa, Liu et al., 2019).

B batch, T positions, D width, V tokens of the vocabulary, N predicted positions of the whole batch.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective.base import ObjectiveOutput
from data2vec.objective.baselines.masked_prediction import (
    MaskedPrediction,
    MaskedPredictionSettings,
    linear_head,
)
from data2vec.objective.diagnostics import representation_stats
from data2vec.objective.masking import MaskSettings, TokenMask

COUNTED_TOKENS = 200_000
"""Training tokens whose frequencies are counted before the first step."""


class MLMSettings(MaskedPredictionSettings):
    """The `objective:` section of masked language modelling."""

    name: Literal["mlm"] = "mlm"
    """The objective: masked language modelling."""
    mask: MaskSettings = TokenMask(predict="selected")
    """What is masked: by default 15 % of the tokens, of which a tenth stays and a tenth becomes random; all are predicted."""


class MLM(MaskedPrediction):
    """Student, head and loss."""

    settings: MLMSettings
    token_log_frequency: Tensor

    def __init__(self, encoder: Encoder, settings: MLMSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        vocabulary: Any = getattr(encoder.local_encoder, "tokens", None)
        if not isinstance(vocabulary, nn.Embedding):
            raise UserError("objective.name: mlm predicts tokens, which this modality has not; use input_regression or codes")
        self.head = nn.Sequential(
            linear_head(self.width, self.width), nn.GELU(), nn.LayerNorm(self.width, encoder.transformer.settings.norm_eps)
        )
        self.bias = nn.Parameter(torch.zeros(vocabulary.num_embeddings))
        self.register_buffer("token_log_frequency", torch.full((vocabulary.num_embeddings,), torch.nan))

    def fit_targets(self, batches: Iterable[MaskedBatch], process: Process) -> str | None:
        """Count tokens of the training data: what a loss is compared with."""
        if not self.token_log_frequency.isnan().any():
            return None

        def count_tokens() -> Tensor:
            counts, size = torch.ones(len(self.bias)), 0  # one more each, so that no token has probability 0
            for batch in batches:
                counts += torch.bincount(batch.input.flatten(), minlength=len(counts))
                size += batch.input.numel()
                if size >= COUNTED_TOKENS:
                    break
            return (counts / counts.sum()).log()

        log_frequency = process.on_main_process(count_tokens)
        self.token_log_frequency.copy_(log_frequency)
        entropy = -(log_frequency.exp() * log_frequency).sum()
        return f"mlm: the token frequencies have an entropy of {entropy:.2f} nats; a lower loss has learnt from the context"

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of one batch, in nats; `measure` also computes statistics."""
        features, padding = self.student.local_encoder(batch)  # (B, T, D), (B, T)
        context, predicted = self.encode_masked(batch, features, padding)  # (B·M, …, D), (N, D)

        target = batch.at_predicted(batch.input)  # (N,)
        embeddings = self.student.get_parameter("local_encoder.tokens.weight")  # (V, D), which the decoder shares
        logits = F.linear(self.head(predicted), embeddings, self.bias).float()  # (N, V)
        errors = F.cross_entropy(logits, target, reduction="none")  # (N,)

        stats = {}
        if measure:
            unigram = -self.token_log_frequency.index_select(0, target).mean()
            stats = representation_stats(batch, features, context) | {
                "accuracy": (logits.argmax(-1) == target).float().mean(),
                "nats_below_unigram": unigram - errors.detach().mean(),
            }
        return ObjectiveOutput(errors.sum(), errors.detach(), stats)
