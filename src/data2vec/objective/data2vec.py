"""data2vec: predict the teacher's contextual representations of the full input from a masked view of it.

Read this file beside section 3 of the paper (Baevski et al., 2022, arXiv 2202.03555). The same code learns from speech,
images and text; what differs between them is in the recipes and in `data2vec.modalities`.

`LatentObjective` (latent.py) builds student and teacher. After each optimizer step the training loop calls its `after_step`,
where the teacher follows the student (teacher.py).

B batch, T positions, D width, N masked positions of the whole batch, K predictions of a position: 1, or with
`target.heads: layer` one for each averaged layer.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from data2vec.batch import MaskedBatch
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.nn.transformer import init_weights
from data2vec.objective.latent import LatentObjective, LatentSettings, Prediction
from data2vec.objective.targets import average_top_k


class Data2VecSettings(LatentSettings):
    """The `objective:` section of version 1."""

    name: Literal["data2vec"] = "data2vec"
    """The method: data2vec, version 1."""
    masks_per_sample: Literal[1] = 1
    """A sample has one masked view."""
    head_layers: Annotated[int, Field(gt=0, le=1000)] = 1
    """Linear layers of the prediction head; with several, the first doubles the width, with GELU between them."""
    head_init: Literal["torch", "bert", "beit"] = "torch"
    """Initial weights of the head: PyTorch's default, or as in `encoder.init`."""


class Data2Vec(LatentObjective):
    """Student, teacher, prediction head and loss."""

    settings: Data2VecSettings

    def __init__(self, encoder: Encoder, settings: Data2VecSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        self.head = build_prediction_head(
            encoder.transformer.settings.width, settings.head_layers, settings.head_init, settings.target.predictions
        )
        self.build_input_target(encoder.transformer.settings.width)

    def predict(self, batch: MaskedBatch) -> Prediction:
        """The errors of one batch; `LatentObjective.forward` adds them up."""
        # 3.1 Model architecture: a modality-specific encoder embeds the input into a sequence of vectors.
        with self.train_student():
            features, padding = self.student.local_encoder(batch)  # (B, T, D), (B, T)

        # 3.2 Masking: some of the vectors are replaced by a learned mask vector; the student encodes the result.
        with self.train_student():
            masked_features = self.student.apply_mask(features, batch.mask, batch.student_input)
            extra, context = self.student.encode_with_extra(masked_features, padding)  # (B, E, D), (B, T, D)

        # 3.3 Training targets: the teacher encodes the unmasked input; its top K layers are normalised and averaged.
        with torch.no_grad():
            # A generator: one layer at a time.
            layers = self.teacher.block_outputs(self.student, batch, features, padding, self.settings.target.source)
            depth = self.student.transformer.settings.layers
            targets = average_top_k(layers, depth, self.settings.target, padding)  # (B, T, D)

        # 3.4 Objective: a smooth L1 loss between prediction and target at the masked positions. These are indices, which
        # are drawn with the mask, because `context[mask]` would make the host wait for the device to count them.
        masked = batch.predicted_indices  # (N,)
        vectors = context.flatten(0, 1).index_select(0, masked)  # (N, D)
        prediction = self.head(vectors).float()  # (N, K·D)
        masked_targets = batch.at_predicted(targets)  # (N, K·D)
        errors = self.error(prediction, masked_targets)  # (N,)
        cls_loss = None
        if self.settings.cls_loss:  # the class token predicts the mean of the targets
            cls_loss = self.class_token_loss(extra, targets, padding, len(masked))
        return self.prediction(errors, vectors, features, context, prediction, masked_targets, targets, padding, cls_loss)


def build_prediction_head(width: int, layers: int, init: str, predictions: int = 1) -> nn.Module:
    """From the student's vectors to `predictions` of that width: one linear layer, or several of twice the width inside."""
    widths = [width, *[2 * width] * (layers - 1), predictions * width]
    parts: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        parts += [nn.GELU()] * (i > 0) + [nn.Linear(inner, outer)]
    head = nn.Sequential(*parts)
    if init != "torch":
        init_weights(head, init)
    return head
