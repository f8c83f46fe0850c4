"""Input regression: predict the masked input itself, instead of a teacher's representation of it.

With `view: visible`, `features: raw` and `normalize` the objective of MAE (He et al., 2021, arXiv 2111.06377); with
`view: mask_token`, `features: raw` and `loss: l1` that of SimMIM (Xie et al., 2021, arXiv 2111.09886); with `features: hog`
that of MaskFeat (Wei et al., 2021, arXiv 2112.09133).

B batch, T positions, D width, F features of a position, N masked positions of the whole batch.
"""

from typing import Literal

from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective.base import ObjectiveOutput
from data2vec.objective.baselines.masked_prediction import (
    InputNorm,
    MaskedPrediction,
    MaskedPredictionSettings,
    compute_input,
    input_features,
    linear_head,
)
from data2vec.objective.diagnostics import representation_stats


class InputRegressionSettings(MaskedPredictionSettings):
    """The `objective:` section of input regression."""

    name: Literal["input_regression"] = "input_regression"
    """The objective: regression of the masked input."""
    features: Literal["raw", "log_mel", "hog"] = "raw"
    """What is predicted: the pixels of a patch or the samples of a frame; log-mel powers (speech); or histograms of oriented
    gradients (vision)."""
    normalize: InputNorm = "none"
    """Normalization of the features: of each position (MAE: norm_pix_loss), or of each feature over the micro-batch."""
    loss: Literal["l2", "l1"] = "l2"
    """Squared or absolute error, as a mean over the features of a position."""


class InputRegression(MaskedPrediction):
    """Student, head and loss."""

    settings: InputRegressionSettings

    def __init__(self, encoder: Encoder, settings: InputRegressionSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        self.features = input_features(modality, settings.features)
        self.head = linear_head(self.width, self.features.width)

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of one batch; `measure` also computes statistics."""
        features, padding = self.student.local_encoder(batch)  # (B, T, D), (B, T)
        context, predicted = self.encode_masked(batch, features, padding)  # (B·M, …, D), (N, D)

        target = batch.at_predicted(compute_input(self.features, batch, self.settings.normalize))  # (N, F)
        prediction = self.head(predicted).float()  # (N, F)
        loss = F.mse_loss if self.settings.loss == "l2" else F.l1_loss
        errors = loss(prediction, target, reduction="none").mean(-1)  # (N,)

        stats = {}
        if measure:
            explained = 1 - (prediction - target).square().mean() / target.var(0, correction=0).mean().clamp(min=1e-12)
            stats = representation_stats(batch, features, context) | {"explained_variance": explained.detach()}
        return ObjectiveOutput(errors.sum(), errors.detach(), stats)
