"""What the objectives here have in common with data2vec: masked views, and a vector for every position to predict.

Each objective is then a head, a target and a loss of its own, on the same encoder, masks and loop.

B batch, M masked views of a sample, T positions, D width, N predicted positions of the whole batch.
"""

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import InputFeatures, Modality
from data2vec.nn.conv_decoder import ConvDecoder, ConvDecoderSettings
from data2vec.nn.encoder import Encoder
from data2vec.nn.layer_norm import without_autocast
from data2vec.objective.base import Objective, ObjectiveSettings
from data2vec.objective.data2vec2 import visible_positions
from data2vec.objective.masking import FixedBlockMask, RandomMask
from data2vec.objective.targets import NORMS


class MaskedPredictionSettings(ObjectiveSettings):
    """The `objective:` settings that these objectives share."""

    view: Literal["visible", "mask_token"] = "mask_token"
    """What the encoder sees: all positions, with the mask vector at masked ones, as in data2vec 1 (BERT, SimMIM, HuBERT); or
    only visible ones, with the decoder of data2vec 2.0 for the others (MAE)."""
    decoder: ConvDecoderSettings = ConvDecoderSettings()
    """The decoder of view: visible."""

    @model_validator(mode="after")
    def _view_fits_the_masks(self) -> "MaskedPredictionSettings":
        if self.view == "visible" and not isinstance(self.mask, FixedBlockMask | RandomMask):
            raise ValueError(f"view: visible needs masks of equal size: mask.kind=fixed-block or random, not {self.mask.kind}")
        if self.view == "mask_token" and self.masks_per_sample > 1:
            raise ValueError(f"masks_per_sample: {self.masks_per_sample} needs view: visible; set it to 1")
        return self


class MaskedPrediction(Objective):
    """A student whose vectors at predicted positions a subclass compares with its targets."""

    settings: MaskedPredictionSettings

    def __init__(self, encoder: Encoder, settings: MaskedPredictionSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        self.width = encoder.transformer.settings.width
        self.decoder = ConvDecoder(settings.decoder, self.width) if settings.view == "visible" else None
        if self.decoder is not None and (vector := getattr(encoder.local_encoder, "mask_vector", None)) is not None:
            vector.requires_grad_(False)  # masked positions are left out, not replaced by a mask vector

    def encode_masked(self, batch: MaskedBatch, features: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """The student's vectors for local features (B, T, D) of the masked views: at all positions it saw, (B·M, …, D), and at
        the predicted ones, in their order, (N, D)."""
        if self.decoder is None:
            context = self.student.encode(self.student.apply_mask(features, batch.mask, batch.student_input), padding)
            return context, context.flatten(0, 1).index_select(0, batch.predicted_indices)
        visible = visible_positions(batch.mask, len(batch.predicted_indices))
        _, context = self.student.encode_visible(features, padding, batch.mask, visible)
        return context, self.decoder(context, visible, batch.predicted_indices, self.student.grid(batch))


def input_features(modality: Modality, name: str) -> InputFeatures:
    """The named features of a modality's raw input. Raises UserError for a modality without them."""
    features = modality.input_features()
    if name not in features:
        allowed = f"use {', '.join(features)}" if features else "give the class an input_width, or input_features"
        raise UserError(f"objective.features: {name} is not defined by modality {modality.settings.name}; {allowed}")
    return features[name]


InputNorm = Literal["none", "position", "batch"]
"""Normalization of input features: of each position by its mean and standard deviation over F (MAE: norm_pix_loss, which adds
1e-6 to the variance); or of each feature by those over a micro-batch."""


@torch.no_grad()
def compute_input(features: InputFeatures, batch: MaskedBatch, normalize: InputNorm) -> Tensor:
    """Input features (B, T, F) in float32, normalized."""
    with without_autocast(batch.input):
        x = features.compute(batch).float()
        if normalize == "none":
            return x
        if normalize == "batch":
            return NORMS["batch"](x)
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()


def linear_head(width: int, outputs: int) -> nn.Linear:
    """A linear layer from vectors to predictions: weights N(0, 0.02), biases 0 (BERT, MAE)."""
    head = nn.Linear(width, outputs)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
