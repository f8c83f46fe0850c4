"""data2vec 2.0: the same targets, learnt from several masked views of each sample at once, at a fraction of the cost.

Read this file after `data2vec.py`, beside the second paper (Baevski et al., 2022, arXiv 2212.07525):
student, teacher, targets and distance are the same. What differs is what the student sees, and how often.

B batch, M masks a sample, T positions, P kept of them, D width, E extra tokens, N masked positions of the whole batch.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.nn.conv_decoder import ConvDecoder, DecoderSettings
from data2vec.nn.encoder import Encoder
from data2vec.objective import diagnostics as health
from data2vec.objective.base import Objective, ObjectiveSettings, Output
from data2vec.objective.masking import EqualMaskSettings, FixedBlockMask


class Data2Vec2Settings(ObjectiveSettings):
    """The `objective:` section of version 2. Defaults: the Base model for speech."""

    name: Literal["data2vec2"] = "data2vec2"
    """The method: data2vec, version 2."""
    masks: Annotated[int, Field(gt=0)] = 8
    """M: masked views of each sample, which share its features and its targets (fairseq: clone_batch)."""
    mask: EqualMaskSettings = FixedBlockMask()
    """What is hidden; the same number of positions in every view, so that what is kept is a dense batch."""
    decoder: DecoderSettings = DecoderSettings()
    """Predicts the targets at hidden positions from the student's vectors at the others."""
    cls_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a second loss: the last extra token predicts the mean of the targets over all positions (images)."""
    cls_reduction: Literal["mean", "sum"] = "mean"
    """Whether that loss is a mean over the views; or a sum over those of a device's micro-batch, as in the released code."""


class Data2Vec2(Objective):
    """Student, teacher, decoder and loss."""

    def __init__(self, encoder: Encoder, settings: Data2Vec2Settings):
        super().__init__(encoder, settings)
        if settings.cls_loss and not encoder.transformer.settings.extra_tokens:
            raise UserError("objective.cls_loss: needs an extra token that predicts (encoder.extra_tokens: 1); or set it to 0")
        self.decoder = ConvDecoder(settings.decoder, encoder.transformer.settings.width)
        if (vector := getattr(encoder.local_encoder, "mask_vector", None)) is not None:
            vector.requires_grad_(False)  # nothing stands at hidden positions

    def forward(self, batch: MaskedBatch, measure: bool = False) -> Output:
        """One batch with M masks a sample, sample by sample; `measure` also takes the health statistics."""
        # The input is embedded once for all its masks, and the teacher reads it once.
        features, padding = self.student.local_encoder(batch)  # (B, T, D)
        with torch.no_grad():
            target = self.targets(batch, features, padding)  # (B, T, D)

        # The student encodes only what each mask leaves.
        hidden, masked = batch.mask, batch.masked_indices  # (B·M, T), (N,)
        kept = visible_positions(hidden, len(masked))  # (B·M, P)
        extra, context = self.student.encode_kept(features, padding, hidden, kept)  # (B·M, E, D), (B·M, P, D)

        # A light decoder fills in the rest; all views of a sample have the same targets.
        prediction = self.decoder(context, kept, masked, self.student.grid(batch)).float()  # (N, D)
        B, T, views = len(target), hidden.shape[1], len(hidden)
        sample = masked // (T * (views // B))
        targets = target.flatten(0, 1).index_select(0, sample * T + masked % T)  # (N, D)
        errors = self.distance(prediction, targets)  # (N,)
        loss = errors.sum()
        if self.settings.cls_loss:
            summary = target.mean(1).repeat_interleave(views // B, dim=0)  # (B·M, D)
            error = (extra[:, -1].float() - summary).square().sum() * self.scale
            per_view = len(masked) / (views if self.settings.cls_reduction == "mean" else 1)
            loss = loss + self.settings.cls_loss * per_view * error

        stats = health.measure(features, context, target, targets, prediction) if measure else {}
        return Output(loss, len(masked), errors.detach(), stats)


def visible_positions(hidden: Tensor, count: int) -> Tensor:
    """(R, P): the positions that each row of `hidden` (R, T) leaves visible, of which there are `count` less than R·T."""
    order = hidden.to(torch.uint8).argsort(dim=1, stable=True)  # no look at the values: the host need not wait for them
    return order[:, : hidden.shape[1] - count // len(hidden)]
