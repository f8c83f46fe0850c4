"""data2vec: predict the teacher's contextual representations of the full input from a masked view of it.

Read this file beside section 3 of the paper (Baevski et al., 2022, arXiv 2202.03555). The same code learns from speech,
images and text; what differs between them is in the recipes, and in `data2vec.modalities`.

B batch, T positions, D width, K averaged layers, N masked positions of the whole batch.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.errors import UserError
from data2vec.nn.encoder import Encoder, contextualise
from data2vec.nn.transformer import initialise
from data2vec.objective import health
from data2vec.objective.health import HealthSettings
from data2vec.objective.masking import MaskSettings, SpanMask
from data2vec.objective.targets import TargetSettings, TopLayers
from data2vec.objective.teacher import Teacher, TeacherSettings
from data2vec.settings import Settings


class Data2VecSettings(Settings):
    """The `objective:` section. Defaults: speech (paper, section 4.2)."""

    name: Literal["data2vec"] = "data2vec"
    """The method: data2vec, version 1."""
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
    head_layers: Annotated[int, Field(gt=0)] = 1
    """Linear layers of the prediction head; the first of several doubles the width, with GELU between them."""
    head_init: Literal["torch", "bert", "beit"] = "torch"
    """Initial weights of the head: PyTorch's own, or as in `encoder.init`."""
    health: HealthSettings = HealthSettings()
    """When a run is called collapsed, and stopped."""


@dataclass(frozen=True)
class Output:
    """What a step gives to the training loop."""

    loss: Tensor
    """Sum over the predicted positions; divide by their number in the whole global batch."""
    predicted: int
    """N, the number of predicted positions."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Scalars on the health of the representations, when they were asked for."""


class Data2Vec(nn.Module):
    """Student, teacher, head and loss."""

    def __init__(self, encoder: Encoder, settings: Data2VecSettings):
        super().__init__()
        width, layers = encoder.transformer.settings.width, encoder.transformer.settings.layers
        if settings.target.top_k > layers:
            raise UserError(f"objective.target.top_k: {settings.target.top_k} is more than encoder.layers, {layers}")
        self.settings = settings
        named = {"1/sqrt(width)": 1 / math.sqrt(width), "1/width": 1 / width}
        self.scale = named[settings.scale] if isinstance(settings.scale, str) else settings.scale
        self.student = encoder
        self.head = prediction_head(width, settings.head_layers, settings.head_init)
        self.teacher = Teacher(encoder, settings.teacher)

    def forward(self, batch: dict[str, Tensor], measure: bool = False) -> Output:
        """One batch (`data2vec.modalities.base.Batch`) with its masks; `measure` also takes the health statistics."""
        # 3.1 Model architecture: the input is embedded into a sequence of vectors, by a modality-specific encoder.
        features, padding = self.student.features(batch)  # (B, T, D)

        # 3.2 Masking: part of them is replaced by a learned mask vector; the student encodes what is left.
        visible = self.student.hide(features, batch)
        context = contextualise(self.student.positions, self.student.transformer, visible, padding)

        # 3.3 Training targets: what the teacher makes of the unmasked input, averaged over its top K layers.
        with torch.no_grad():
            target = self.targets(batch, features, padding)

        # 3.4 Objective: predict the targets at the masked positions.
        masked = batch["masked"]  # (N,)
        prediction = self.head(context.flatten(0, 1).index_select(0, masked)).float()
        target = target.flatten(0, 1).index_select(0, masked)
        loss = self.distance(prediction, target).sum()

        stats = health.measure(features, context, target, prediction) if measure else {}
        return Output(loss, len(masked), stats)

    def targets(self, batch: dict[str, Tensor], features: Tensor, padding: Tensor | None) -> Tensor:
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

    def after_step(self, step: int) -> None:
        """To be called when optimizer step number `step` (counted from 1) is done: the teacher follows."""
        self.teacher.update(self.student, step)

    def ema_decay(self, step: int) -> float:
        """τ after so many optimizer steps."""
        return self.teacher.decay(step)


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
