"""data2vec 2.0: the same targets, learnt from several masked views of each sample at once, at a fraction of the cost.

Read this file after `data2vec.py`, beside the second paper (Baevski et al., 2022, arXiv 2212.07525):
student, teacher, targets and loss are the same. What differs is what the student sees, and how often.

B batch, M masked views of a sample, T positions, P visible positions of a view, D width, E extra tokens, N masked positions of
the whole batch, K predictions of a position (1, except with a head for each layer).
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from data2vec.batch import MaskedBatch
from data2vec.modalities.base import Modality
from data2vec.nn.conv_decoder import ConvDecoder, ConvDecoderSettings
from data2vec.nn.encoder import Encoder
from data2vec.nn.transformer_decoder import TransformerDecoder, TransformerDecoderSettings
from data2vec.objective.latent import LatentObjective, LatentSettings, Prediction
from data2vec.objective.masking import EqualMaskSettings, FixedBlockMask
from data2vec.objective.targets import average_top_k


def _conv_by_default(raw: Any) -> Any:
    return {"kind": "conv", **raw} if isinstance(raw, dict) else raw


AnyDecoderSettings = Annotated[
    ConvDecoderSettings | TransformerDecoderSettings, Field(discriminator="kind"), BeforeValidator(_conv_by_default)
]
"""The decoders by `kind`; conv where it is left out."""


class Data2Vec2Settings(LatentSettings):
    """The `objective:` section of version 2. Defaults: the Base model for speech."""

    name: Literal["data2vec2"] = "data2vec2"
    """The method: data2vec, version 2."""
    masks_per_sample: Annotated[int, Field(gt=0, le=10_000)] = 8
    """M: masked views of each sample, which share its local features and its targets (fairseq: clone_batch)."""
    mask: EqualMaskSettings = FixedBlockMask()
    """What is masked: the same number of positions in every view, so that the visible ones are a dense batch."""
    decoder: AnyDecoderSettings = ConvDecoderSettings()
    """Predicts the targets at masked positions from the student's vectors at visible ones. `kind`: conv or transformer; the
    other keys depend on it, so that another one starts the section anew."""


class Data2Vec2(LatentObjective):
    """Student, teacher, decoder and loss."""

    settings: Data2Vec2Settings

    def __init__(self, encoder: Encoder, settings: Data2Vec2Settings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        self.decoder = build_decoder(settings.decoder, encoder.transformer.settings.width, settings.target.predictions)
        self.build_input_target(settings.decoder.width)
        if (vector := getattr(encoder.local_encoder, "mask_vector", None)) is not None:
            vector.requires_grad_(False)  # masked positions are left out, not replaced by a mask vector

    def predict(self, batch: MaskedBatch) -> Prediction:
        """The errors of one batch with M masks per sample, sample by sample; `LatentObjective.forward` adds them up."""
        # The input is embedded once for all its masks, and the teacher encodes it once.
        with self.train_student():
            features, padding = self.student.local_encoder(batch)  # (B, T, D), (B, T)
        with torch.no_grad():
            # A generator: one layer at a time.
            layers = self.teacher.block_outputs(self.student, batch, features, padding, self.settings.target.source)
            depth = self.student.transformer.settings.layers
            targets = average_top_k(layers, depth, self.settings.target, padding)  # (B, T, D)

        # The student encodes only the visible positions of each view.
        mask, masked = batch.mask, batch.predicted_indices  # (B·M, T), (N,)
        visible = visible_positions(mask, len(masked))  # (B·M, P)
        with self.train_student():
            extra, context = self.student.encode_visible(features, padding, mask, visible)  # (B·M, E, D), (B·M, P, D)

        # A light decoder predicts the masked ones. All views of a sample have the same targets.
        vectors = self.decoder.decode(context, visible, masked, self.student.grid(batch))  # (N, W)
        prediction = self.decoder.head(vectors).float()  # (N, K·D)
        masked_targets = batch.at_predicted(targets)  # (N, K·D)
        errors = self.error(prediction, masked_targets)  # (N,)

        # The class token predicts the mean of the targets.
        cls_loss = None
        if self.settings.cls_loss:
            cls_loss = self.class_token_loss(extra, targets, padding, len(masked))
        return self.prediction(errors, vectors, features, context, prediction, masked_targets, targets, padding, cls_loss)


def build_decoder(settings: AnyDecoderSettings, width: int, predictions: int) -> ConvDecoder | TransformerDecoder:
    """The decoder of these settings, for `predictions` vectors of `width` at each position. Raises UserError."""
    if isinstance(settings, TransformerDecoderSettings):
        return TransformerDecoder(settings, width, predictions)
    return ConvDecoder(settings, width, predictions)


def visible_positions(mask: Tensor, num_masked: int) -> Tensor:
    """(R, P): the positions of each row of `mask` (R, T) that are not masked, in order; `num_masked` are True in all rows.

    Every row must have the same number. Sorting gives a static shape; `nonzero` would make the host wait for the device."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - num_masked // len(mask)]
