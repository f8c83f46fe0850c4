"""What both versions of the method share: settings, student, teacher and the smooth L1 loss."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.nn.encoder import Encoder
from data2vec.objective.masking import MaskSettings, SpanMask
from data2vec.objective.targets import TargetSettings
from data2vec.objective.teacher import Teacher, TeacherSettings
from data2vec.objective.training_objective import TrainingObjective
from data2vec.settings import Settings


class ObjectiveSettings(Settings):
    """The `objective:` settings that all versions share. Defaults: speech (paper, section 4.2)."""

    mask: MaskSettings = SpanMask()
    """What is masked in the student's input (section 3.2)."""
    teacher: TeacherSettings = TeacherSettings()
    """How the teacher follows the student (section 3.3)."""
    target: TargetSettings = TargetSettings()
    """What is predicted (section 3.3)."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """β of the smooth L1 loss; 0 is the squared error, without the factor ½ (section 3.4; fairseq: loss_beta)."""
    loss_scale: float | Literal["1/sqrt(width)", "1/width"] = "1/sqrt(width)"
    """The error of a position is summed over D and multiplied by this (fairseq: loss_scale)."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns to the training loop."""

    loss: Tensor
    """Sum over the predicted positions; to be divided by their number in the global batch."""
    predicted: int
    """N, the number of predicted positions."""
    errors: Tensor
    """(N,) the error of each of them, in the order of the batch's `masked_indices`; without gradients."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Scalars on the health of the representations, if they were asked for."""


class Objective(TrainingObjective[MaskedBatch]):
    """Student and teacher; the versions differ in `forward`."""

    settings: ObjectiveSettings

    def __init__(self, encoder: Encoder, settings: ObjectiveSettings):
        super().__init__()
        shape = encoder.transformer.settings
        if settings.target.top_k > shape.layers - shape.prenet_layers:
            besides = f" less encoder.prenet_layers, {shape.prenet_layers}" if shape.prenet_layers else ""
            raise UserError(
                f"objective.target.top_k: {settings.target.top_k} is more than encoder.layers, {shape.layers}{besides}"
            )
        self.settings = settings
        named = {"1/sqrt(width)": 1 / math.sqrt(shape.width), "1/width": 1 / shape.width}
        self.loss_scale = named[settings.loss_scale] if isinstance(settings.loss_scale, str) else settings.loss_scale
        self.student = encoder
        self.teacher = Teacher(encoder, settings.teacher)

    def num_targets(self, batch: MaskedBatch) -> int:
        """N, the number of predicted positions, by which the loss is divided over the global batch."""
        return len(batch.masked_indices)

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
