"""An objective defined outside the package: is each number of the masked input positive?"""

from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective import ObjectiveOutput
from data2vec.objective.baselines.masked_prediction import (
    MaskedPrediction,
    MaskedPredictionSettings,
    input_features,
    linear_head,
)


class SignSettings(MaskedPredictionSettings):
    """The `objective:` section."""

    name: str = "sign_objective:Sign"
    weight: float = 1.0
    """Weight of the loss."""


class Sign(MaskedPrediction):
    """A linear layer, and a binary cross-entropy."""

    Settings = SignSettings
    settings: SignSettings

    def __init__(self, encoder: Encoder, settings: SignSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        self.features = input_features(modality, "raw")
        self.head = linear_head(self.width, self.features.width)

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        local, padding = self.student.local_encoder(batch)  # (B, T, D), (B, T)
        _, predicted = self.encode_masked(batch, local, padding)  # (N, D)
        target = batch.at_predicted(self.features.compute(batch) > 0).float()  # (N, F)
        logits = self.head(predicted).float()
        errors = self.settings.weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)
        return ObjectiveOutput(errors.sum(), errors.detach())
