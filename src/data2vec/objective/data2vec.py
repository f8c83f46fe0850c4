"""data2vec: predict the teacher's contextual representations of the full input from a masked view of it.

Read this file beside section 3 of the paper (Baevski et al., 2022, arXiv 2202.03555). The same code learns from speech,
images and text; what differs between them is in the recipes, and in `data2vec.modalities`.

B batch, T positions, D width, K averaged layers, N masked positions of the whole batch.
"""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from data2vec.batch import MaskedBatch
from data2vec.nn.encoder import Encoder, contextualise
from data2vec.nn.transformer import initialise
from data2vec.objective import diagnostics as health
from data2vec.objective.base import Objective, ObjectiveSettings, Output


class Data2VecSettings(ObjectiveSettings):
    """The `objective:` section of version 1."""

    name: Literal["data2vec"] = "data2vec"
    """The method: data2vec, version 1."""
    masks: ClassVar[int] = 1
    """A sample has one masked view."""
    head_layers: Annotated[int, Field(gt=0)] = 1
    """Linear layers of the prediction head; the first of several doubles the width, with GELU between them."""
    head_init: Literal["torch", "bert", "beit"] = "torch"
    """Initial weights of the head: PyTorch's own, or as in `encoder.init`."""


class Data2Vec(Objective):
    """Student, teacher, head and loss."""

    def __init__(self, encoder: Encoder, settings: Data2VecSettings):
        super().__init__(encoder, settings)
        self.head = prediction_head(encoder.transformer.settings.width, settings.head_layers, settings.head_init)

    def forward(self, batch: MaskedBatch, measure: bool = False) -> Output:
        """One batch (`data2vec.modalities.base.Batch`) with its masks; `measure` also takes the health statistics."""
        # 3.1 Model architecture: the input is embedded into a sequence of vectors, by a modality-specific encoder.
        features, padding = self.student.local_encoder(batch)  # (B, T, D)

        # 3.2 Masking: part of them is replaced by a learned mask vector; the student encodes what is left.
        visible = self.student.apply_mask(features, batch.mask, batch.student_input)
        context = contextualise(self.student.position_encoder, self.student.transformer, visible, padding)

        # 3.3 Training targets: what the teacher makes of the unmasked input, averaged over its top K layers.
        with torch.no_grad():
            target = self.targets(batch, features, padding)  # (B, T, D)

        # 3.4 Objective: predict the targets at the masked positions.
        masked = batch.masked_indices  # (N,)
        prediction = self.head(context.flatten(0, 1).index_select(0, masked)).float()
        targets = target.flatten(0, 1).index_select(0, masked)
        errors = self.distance(prediction, targets)  # (N,)

        stats = health.measure(features, context, target, targets, prediction) if measure else {}
        return Output(errors.sum(), len(masked), errors.detach(), stats)


def prediction_head(width: int, layers: int, init: str) -> nn.Module:
    """From the student's vectors to predictions of the targets: linear; or with hidden layers of twice the width."""
    widths = [width, *[2 * width] * (layers - 1), width]
    parts: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        parts += [nn.GELU()] * (i > 0) + [nn.Linear(inner, outer)]
    head = nn.Sequential(*parts)
    if init != "torch":
        initialise(head, init)
    return head
