"""Predicting the masked input as well; with a weight that fades as the teacher matures, a warm start of the targets.

The first targets are those of an untrained teacher: mostly noise. In a short run, learning to predict the input first gives
the student, and with it the teacher, useful representations to begin from. With a weight that stays, the input is a second
target to the end, as in the tiny text recipes. Not in the paper, and off in its recipes.

B batch, T positions, F features of a position, W width of the vectors before the prediction head, N masked positions.
"""

import math
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.nn.layer_norm import without_autocast
from data2vec.objective.targets import NORMS, Norms
from data2vec.settings import Fraction, Settings


class InputTargetSettings(Settings):
    """The loss is (1 - w) times that of data2vec and w times that of predicting the input."""

    features: Literal["raw", "log_mel", "mfcc", "hog", "tokens"] = "raw"
    """What is predicted: the pixels of a patch or the samples of a frame; log-mel powers or cepstra (speech); histograms of
    oriented gradients (vision); or the token (text)."""
    norms: Norms = ("batch",)
    """Normalisations of the features, as of the targets; unused for tokens."""
    weight: Fraction = 1.0
    """w at the start."""
    fade_from: Fraction = 0.2
    """The share of the run's steps after which w decreases linearly."""
    fade_to: Fraction = 0.4
    """The share of the run's steps from which w is 0; 1 with `fade_from` 1: w is constant. Equal to `fade_from`: the teacher
    begins from a student that has only learned to predict the input."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.fade_to < self.fade_from:
            raise ValueError(f"fade_to: {self.fade_to:g} is less than fade_from: {self.fade_from:g}")
        return self

    @property
    def fades(self) -> bool:
        """Whether it is a warm start, and not a part of the loss to the end."""
        return self.fade_from < 1


class InputTarget(nn.Module):
    """A linear head on the vectors from which data2vec predicts its targets, and the loss of its prediction of the input."""

    def __init__(self, settings: InputTargetSettings, width: int, encoder: Encoder, modality: Modality, steps: int):
        """Raises UserError for features that the modality does not have."""
        super().__init__()
        self.settings, self.steps = settings, steps
        tokens: Any = getattr(encoder.local_encoder, "tokens", None)
        has_tokens = isinstance(tokens, nn.Embedding)
        features = {} if has_tokens else modality.input_features()
        names = [*features, *(["tokens"] if has_tokens else [])]
        if settings.features not in names:
            allowed = f"use {', '.join(names)}, or null" if names else "set objective.input_target to null"
            raise UserError(
                f"objective.input_target.features: {settings.features} is not defined by modality {modality.settings.name}; "
                f"{allowed}"
            )
        self.features = features.get(settings.features)
        self.head = nn.Linear(width, self.features.width if self.features else tokens.num_embeddings)

    def weight(self, step: int) -> float:
        """w at optimizer step number `step` (counted from 1)."""
        s, share = self.settings, step / self.steps
        if share <= s.fade_from:
            return s.weight
        return s.weight * max(0.0, (s.fade_to - share) / (s.fade_to - s.fade_from)) if s.fade_to > s.fade_from else 0.0

    def forward(self, vectors: Tensor, batch: MaskedBatch) -> Tensor:
        """The loss of each masked position (N,), from its vector (N, W): the squared error summed over F and divided by
        sqrt(F), the scale of data2vec's loss; or the cross-entropy of the token, in nats."""
        prediction = self.head(vectors).float()
        if self.features is None:
            return F.cross_entropy(prediction, batch.at_predicted(batch.input), reduction="none")
        with torch.no_grad(), without_autocast(batch.input):
            features = self.features.compute(batch).float()  # (B, T, F)
            for norm in self.settings.norms:
                features = NORMS[norm](features)
        target = batch.at_predicted(features)  # (N, F)
        errors: Tensor = (prediction - target).square().sum(-1) / math.sqrt(target.shape[-1])
        return errors
