"""Codes: predict the k-means cluster of the masked input, or of a trained model's representation of it.

With `features: mfcc`, then `features: layer`, the two iterations of HuBERT (Hsu et al., 2021, arXiv 2106.07447); of patches, it
resembles BEiT (Bao et al., 2021, arXiv 2106.08254), whose codes come from a trained image tokenizer.

B batch, T positions, D width, F features of a position, K clusters, N predicted positions of the whole batch.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import Batch, MaskedBatch
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.modalities.base import InputFeatures, Modality
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

Count = Annotated[int, Field(gt=0)]


class CodesSettings(MaskedPredictionSettings):
    """The `objective:` section of the prediction of codes."""

    name: Literal["codes"] = "codes"
    """The objective: prediction of k-means codes."""
    features: Literal["mfcc", "log_mel", "raw", "hog", "layer"] = "mfcc"
    """What is clustered: features of the input, or the output of a block of a trained model."""
    normalize: InputNorm = "none"
    """Normalization of the features: of each position (MAE: norm_pix_loss), or of each feature over the micro-batch."""
    clusters: Count = 100
    """K: codes, each a cluster (HuBERT: 100 of MFCCs, then 500 of a layer)."""
    fit_positions: Count = 100_000
    """Positions of training data that the clusters are fitted to, before the first step."""
    model: str | None = None
    """features: layer: a run or model folder, whose encoder has the shape of the recipe's."""
    layer: Count = 6
    """features: layer: the block, counted from 1 (HuBERT: 6 of 12)."""
    head: Literal["cosine", "linear"] = "cosine"
    """Logits are cosines between a projection of the student's vector and an embedding of each code, over `temperature`
    (HuBERT); or a linear layer (BEiT)."""
    head_width: Count = 256
    """head: cosine: width of projection and embeddings (fairseq: final_dim)."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """head: cosine: divides the cosines (fairseq: logit_temp)."""

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        if (self.features == "layer") != (self.model is not None):
            raise ValueError(
                f"model: {self.model} with features: {self.features}; set a model for features: layer, and only then"
            )
        return self


class CosineHead(nn.Module):
    """Cosines with learned embeddings of codes, over a temperature: vectors (N, D) to logits (N, K)."""

    def __init__(self, width: int, inner: int, codes: int, temperature: float):
        super().__init__()
        self.project = nn.Linear(width, inner)
        self.codes = nn.Parameter(torch.empty(codes, inner).uniform_())
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.project(x).float(), dim=-1) @ F.normalize(self.codes.float(), dim=-1).T / self.temperature


class Codes(MaskedPrediction):
    """Student, codebook, head and loss."""

    settings: CodesSettings
    codebook: Tensor

    def __init__(self, encoder: Encoder, settings: CodesSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        s = settings
        self.target_encoder: Encoder | None = None
        if s.features == "layer":
            if s.layer > encoder.transformer.settings.layers:
                raise UserError(
                    f"objective.layer: {s.layer} is more than encoder.layers, {encoder.transformer.settings.layers}"
                )
            self.target_encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
            self.features = InputFeatures(self.width, self._block_output)
        else:
            self.features = input_features(modality, s.features)
        self.register_buffer("codebook", torch.full((s.clusters, self.features.width), torch.nan))
        self.head: nn.Module = linear_head(self.width, s.clusters)
        if s.head == "cosine":
            self.head = CosineHead(self.width, s.head_width, s.clusters, s.temperature)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.target_encoder is not None:
            self.target_encoder.eval()
        return self

    def trained_encoders(self) -> Mapping[str, Encoder]:
        """The encoder whose layer is clustered."""
        return {} if self.target_encoder is None else {str(self.settings.model): self.target_encoder}

    def fit_targets(self, batches: Iterable[MaskedBatch], process: Process) -> str | None:
        """Fit the codebook to the training data. One that was loaded with `init` is kept. Raises UserError for too few data."""
        if not self.codebook.isnan().any():
            return "codes: the codebook of the model in init is kept"

        def fit_codebook() -> Tensor:
            sample, size = [], 0
            for batch in batches:
                sample.append(compute_input(self.features, batch, self.settings.normalize).flatten(0, 1))
                size += len(sample[-1])
                if size >= self.settings.fit_positions:
                    break
            return fit_k_means(torch.cat(sample)[: self.settings.fit_positions].numpy(), self.settings.clusters)

        self.codebook.copy_(process.on_main_process(fit_codebook))
        return f"codes: {self.settings.clusters} clusters of {self.settings.features} features"

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of one batch; `measure` also computes statistics."""
        features, padding = self.student.local_encoder(batch)  # (B, T, D), (B, T)
        context, predicted = self.encode_masked(batch, features, padding)  # (B·M, …, D), (N, D)

        target = nearest_code(batch.at_predicted(compute_input(self.features, batch, self.settings.normalize)), self.codebook)
        logits = self.head(predicted).float()  # (N, K)
        errors = F.cross_entropy(logits, target, reduction="none")  # (N,)

        stats = {}
        if measure:
            stats = representation_stats(batch, features, context) | {
                "accuracy": (logits.argmax(-1) == target).float().mean(),
                "code_perplexity": perplexity(F.one_hot(target, self.settings.clusters).float().mean(0)),
                "prediction_perplexity": perplexity(logits.detach().softmax(-1).mean(0)),
            }
        return ObjectiveOutput(errors.sum(), errors.detach(), stats)

    def _block_output(self, batch: Batch) -> Tensor:
        """The output (B, T, D) of the block whose output is clustered, for the unmasked input."""
        assert self.target_encoder is not None
        features, padding = self.target_encoder.local_encoder(batch)
        outputs = self.target_encoder.block_outputs(features, padding)
        return next(output.block for output in outputs if output.layer == self.settings.layer - 1)


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """(N,): the index of the row of `codebook` (K, F) with the smallest distance to each of `x` (N, F), in float32."""
    with torch.autocast(x.device.type, enabled=False):
        return (codebook.square().sum(-1) - 2 * x @ codebook.T).argmin(-1)


def fit_k_means(sample: np.ndarray, clusters: int) -> Tensor:
    """(clusters, F): cluster centres of `sample` (n, F), with HuBERT's settings. Raises UserError for too few of them."""
    from sklearn.cluster import MiniBatchKMeans

    too_few = f"objective.clusters: {clusters} is more than the distinct positions in a sample of {len(sample)}; set fewer"
    if len(sample) < clusters:
        raise UserError(too_few)
    k_means = MiniBatchKMeans(
        clusters, batch_size=10_000, max_no_improvement=100, n_init=20, reassignment_ratio=0.0, random_state=0
    )
    centres = k_means.fit(sample).cluster_centers_
    if len(np.unique(centres, axis=0)) < clusters:
        raise UserError(too_few)
    return torch.from_numpy(centres).float()


def perplexity(p: Tensor) -> Tensor:
    """exp of the entropy of the probabilities `p` (K,): the number of codes that are used."""
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum())
