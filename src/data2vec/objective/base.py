"""What every version of the method shares: a student, the teacher that follows it, targets, and a distance to them."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.nn.encoder import Encoder
from data2vec.objective.diagnostics import HealthSettings
from data2vec.objective.masking import MaskSettings, SpanMask
from data2vec.objective.targets import TargetSettings, TopLayers
from data2vec.objective.teacher import Teacher, TeacherSettings
from data2vec.settings import Settings


class ObjectiveSettings(Settings):
    """What the `objective:` sections of all versions share. Defaults: speech (paper, section 4.2)."""

    mask: MaskSettings = SpanMask()
    """What is hidden from the student (section 3.2)."""
    teacher: TeacherSettings = TeacherSettings()
    """How the teacher follows the student (section 3.3)."""
    target: TargetSettings = TargetSettings()
    """What is predicted (section 3.3)."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """β of the smooth L1 loss; 0 is the squared error, without a factor ½ (section 3.4; fairseq: loss_beta)."""
    scale: float | Literal["1/sqrt(width)", "1/width"] = "1/sqrt(width)"
    """The errors of a position are added up over D and multiplied by this (fairseq: loss_scale)."""
    health: HealthSettings = HealthSettings()
    """When a run is called collapsed, and stopped."""


@dataclass(frozen=True)
class Output:
    """What a step gives to the training loop."""

    loss: Tensor
    """Sum over the predicted positions; divide by their number in the whole global batch."""
    predicted: int
    """N, the number of predicted positions."""
    errors: Tensor
    """(N,) the error of each of them, in the order of the batch's `masked`; without gradients."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Scalars on the health of the representations, when they were asked for."""


class Objective(nn.Module):
    """Student and teacher; the versions differ in `forward`."""

    def __init__(self, encoder: Encoder, settings: Any):
        super().__init__()
        shape = encoder.transformer.settings
        if settings.target.top_k > shape.layers - shape.prenet_layers:
            besides = f" less encoder.prenet_layers, {shape.prenet_layers}" if shape.prenet_layers else ""
            raise UserError(
                f"objective.target.top_k: {settings.target.top_k} is more than encoder.layers, {shape.layers}{besides}"
            )
        self.settings = settings
        named = {"1/sqrt(width)": 1 / math.sqrt(shape.width), "1/width": 1 / shape.width}
        self.scale = named[settings.scale] if isinstance(settings.scale, str) else settings.scale
        self.student = encoder
        self.teacher = Teacher(encoder, settings.teacher)

    def targets(self, batch: MaskedBatch, features: Tensor, padding: Tensor | None) -> Tensor:
        """The training targets at every position, (B, T, D) in float32 (section 3.3)."""
        top = TopLayers(self.settings.target, self.student.transformer.settings.layers)
        self.teacher(self.student, batch, features, padding, top.visit)
        return top.mean()

    def distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The error of each position (N,), from (N, D) (section 3.4)."""
        if self.settings.beta == 0:
            error = F.mse_loss(prediction, target, reduction="none")
        else:
            error = F.smooth_l1_loss(prediction, target, reduction="none", beta=self.settings.beta)
        return error.sum(-1) * self.scale

    def num_targets(self, batch: MaskedBatch) -> int:
        """N, the number of predicted positions, by which the loss is divided over the global batch."""
        return len(batch.masked_indices)

    def before_step(self, step: int) -> None:
        """To be called before optimizer step number `step` (counted from 1); nothing is to be done here."""

    def after_step(self, step: int) -> None:
        """To be called when optimizer step number `step` (counted from 1) is done: the teacher follows."""
        self.teacher.update(self.student, step)

    def ema_decay(self, step: int) -> float:
        """τ after so many optimizer steps."""
        return self.teacher.decay(step)
