"""What both versions of data2vec share: the teacher, the targets and the loss of a prediction of them."""

import math
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.nn.heads import mean_pool
from data2vec.objective.base import Objective, ObjectiveOutput, ObjectiveSettings
from data2vec.objective.diagnostics import LossTerm, representation_stats, sum_terms, term_stats
from data2vec.objective.input_target import InputTarget, InputTargetSettings
from data2vec.objective.targets import TargetSettings
from data2vec.objective.teacher import Teacher, TeacherSettings


class LatentSettings(ObjectiveSettings):
    """The `objective:` settings that both versions share. Defaults: speech (paper, section 4.2)."""

    teacher: TeacherSettings = TeacherSettings()
    """How the teacher follows the student (section 3.3)."""
    target: TargetSettings = TargetSettings()
    """What is predicted (section 3.3)."""
    input_target: InputTargetSettings | None = None
    """The input is predicted too, with a weight that fades (a warm start) or stays; null: off, as in the paper."""
    loss: Literal["smooth_l1", "l2", "l1"] = "smooth_l1"
    """The error of an element: smooth L1 with `beta`; its square, as with `beta` 0; or its absolute value."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """β of the smooth L1 loss; 0 is the squared error, without the factor ½ (section 3.4; fairseq: loss_beta)."""
    loss_scale: float | Literal["1/sqrt(width)", "1/width"] = "1/sqrt(width)"
    """The error of a position is summed over D and multiplied by this (fairseq: loss_scale)."""
    cls_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the class-token loss: the last extra token predicts the mean of the targets over all positions (images,
    sound)."""
    cls_reduction: Literal["mean", "sum"] = "mean"
    """Whether the class-token loss is a mean over the views; or a sum over the views of a device's micro-batch, as in the
    released code."""
    freeze_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which only the prediction head or decoder is trained: of a trained encoder (`init`) that gets a new one, whose
    first gradients are random."""

    @model_validator(mode="after")
    def _beta_is_of_smooth_l1(self) -> Self:
        if self.loss != "smooth_l1" and self.beta:
            raise ValueError(f"loss {self.loss} has no beta, which is {self.beta:g}; set beta to 0, or loss to smooth_l1")
        return self


class Prediction(NamedTuple):
    """What the student predicts of a batch, and what it was to predict. Only `errors`, `cls_loss` and, with an input target,
    `vectors` have gradients."""

    errors: Tensor
    """(N,) the loss of each masked position."""
    vectors: Tensor
    """(N, W) from which the head predicts."""
    features: Tensor
    """(B, T, D) local features."""
    context: Tensor
    """(…, D) the student's output."""
    prediction: Tensor
    """(N, K·D)"""
    masked_targets: Tensor
    """(N, K·D) the targets of `prediction`."""
    targets: Tensor
    """(B, T, K·D) the targets at all positions."""
    padding: Tensor | None
    """(B, T)"""
    cls_loss: Tensor | None = None
    """The weighted class-token loss, 0-d."""


class LatentObjective(Objective):
    """Student and teacher; the versions differ in `predict`."""

    settings: LatentSettings

    def __init__(self, encoder: Encoder, settings: LatentSettings, modality: Modality, steps: int):
        super().__init__(encoder, settings, modality, steps)
        shape = encoder.transformer.settings
        if settings.target.top_k > shape.layers - shape.prenet_layers:
            besides = f" less encoder.prenet_layers, {shape.prenet_layers}" if shape.prenet_layers else ""
            raise UserError(
                f"objective.target.top_k: {settings.target.top_k} is more than encoder.layers, {shape.layers}{besides}"
            )
        if settings.target.source == "residual" and shape.norm == "pre":
            raise UserError(
                "objective.target.source: residual equals block in pre-norm blocks: set it to block, or encoder.norm to post"
            )
        named = {"1/sqrt(width)": 1 / math.sqrt(shape.width), "1/width": 1 / shape.width}
        if settings.cls_loss and not shape.extra_tokens:
            raise UserError(
                f"objective.cls_loss: {settings.cls_loss} needs an extra token; set encoder.extra_tokens to 1, or this to 0"
            )
        self.loss_scale = named[settings.loss_scale] if isinstance(settings.loss_scale, str) else settings.loss_scale
        self.teacher = Teacher(encoder, settings.teacher, steps)
        self.input_target: InputTarget | None = None
        self.input_weight = 0.0
        """The weight of predicting the input in the current step."""
        self.frozen = False
        """Whether the student is frozen in the current step."""

    def predict(self, batch: MaskedBatch) -> Prediction:
        """The method itself: student, teacher, targets and error of one batch. A function of the batch and the weights, without
        Python numbers that change from step to step, which `torch.compile` takes as one graph."""
        raise NotImplementedError

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of one batch; `measure` also computes statistics of the representations."""
        p = self.predict(batch)
        terms = self.loss_terms(p, batch)
        stats = {}
        if measure:
            trained = self.input_weight < 1  # else the loss does not depend on the predictions, which then show nothing
            prediction = p.prediction if trained else None
            stages = p.features, p.context, prediction, p.masked_targets, p.targets, p.padding
            stats = representation_stats(batch, *stages) | term_stats(terms)
        return ObjectiveOutput(sum_terms(terms), p.errors.detach(), stats)

    @property
    def may_skip_parameters(self) -> bool:
        """Whether a step may leave trainable parameters without gradients."""
        return super().may_skip_parameters or self.input_target is not None or self.settings.freeze_steps > 0

    def train_student(self) -> AbstractContextManager[Any]:
        """A context for the forward pass of the student, without gradients while it is frozen."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen)

    def build_input_target(self, width: int) -> None:
        """Add the head that predicts the input, if there is one, for vectors of this width."""
        if self.settings.input_target is not None:
            self.input_target = InputTarget(self.settings.input_target, width, self.student, self.modality, self.steps)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each position (N,), of predictions and targets (N, K·D): summed over D, scaled, and averaged over K."""
        s = self.settings
        elements = (prediction - target).abs() if s.loss == "l1" else smooth_l1(prediction, target, s.beta)
        return elements.sum(-1) * (self.loss_scale / s.target.predictions)

    def prediction(
        self,
        errors: Tensor,
        vectors: Tensor,
        features: Tensor,
        context: Tensor,
        prediction: Tensor,
        masked_targets: Tensor,
        targets: Tensor,
        padding: Tensor | None,
        cls_loss: Tensor | None = None,
    ) -> Prediction:
        """The `Prediction`, without gradients where none are used: for those of a graph's outputs a compiler adds up zeros."""
        vectors = vectors if self.input_target is not None else vectors.detach()
        parts = features.detach(), context.detach(), prediction.detach(), masked_targets, targets
        return Prediction(errors, vectors, *parts, padding, cls_loss)

    def loss_terms(self, p: Prediction, batch: MaskedBatch) -> dict[str, LossTerm]:
        """The terms of the loss: the sum of the errors over the masked positions; with an input target mixed with the loss of
        predicting the input from the vectors before the prediction head; and the class-token loss."""
        terms = {"regression": LossTerm(p.errors.mean(), p.errors.sum())}
        if self.input_weight and self.input_target is not None:
            w, errors = self.input_weight, self.input_target(p.vectors, batch)
            terms = {
                "regression": LossTerm(p.errors.mean(), (1 - w) * p.errors.sum()),
                "input": LossTerm(errors.mean(), w * errors.sum()),
            }
        if p.cls_loss is not None:
            views = 1 if self.settings.cls_reduction == "mean" else len(batch.mask)
            terms["class_token"] = LossTerm(p.cls_loss / (self.settings.cls_loss * len(p.errors) * views), p.cls_loss)
        return terms

    def class_token_loss(self, extra: Tensor, targets: Tensor, padding: Tensor | None, num_masked: int) -> Tensor:
        """The loss of the last extra token of each view, `extra` (B·M, E, D), against the mean of the targets (B, T, K·D) over
        the positions that are not `padding` (B, T); to be added to the loss over N = `num_masked` positions."""
        mean = mean_pool(targets, padding).unflatten(-1, (-1, extra.shape[-1])).mean(1)  # (B, D), also of layers
        views = len(extra)
        mean = mean.repeat_interleave(views // len(targets), dim=0)  # (B·M, D)
        error = (extra[:, -1].float() - mean).square().sum() * self.loss_scale
        # The loop divides the loss by N. To come out as a mean over the views, this sum over them is multiplied by
        # N / (B·M) here; as released, it is multiplied by N, and comes out as the sum.
        per_view = num_masked / (views if self.settings.cls_reduction == "mean" else 1)
        loss: Tensor = self.settings.cls_loss * per_view * error
        return loss

    def before_step(self, step: int) -> None:
        """To be called before optimizer step number `step` (counted from 1): sets the weight of the input target, and
        freezes or unfreezes the student."""
        self.frozen = step <= self.settings.freeze_steps
        self.input_weight = self.input_target.weight(step) if self.input_target is not None else 0.0

    def after_step(self, step: int) -> None:
        """To be called after optimizer step number `step` (counted from 1): updates the teacher."""
        self.teacher.update(self.student, step)

    def ema_decay(self, step: int) -> float:
        """τ after `step` optimizer steps."""
        return self.teacher.decay(step)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """The loss of each element (section 3.4): ½(y-ŷ)²/β up to β and |y-ŷ| - ½β beyond; for β = 0 the squared error."""
    if beta == 0:
        return F.mse_loss(prediction, target, reduction="none")
    return F.smooth_l1_loss(prediction, target, reduction="none", beta=beta)
