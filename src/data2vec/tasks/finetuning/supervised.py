"""The supervised objective of fine-tuning: an encoder, a head, and a loss on labels.

It has the interface of the pre-training objectives, without a teacher. B batch, T positions, D width,
L labels of a transcript, V classes.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.batch import LabelledBatch
from data2vec.errors import UserError
from data2vec.nn.cpu_kernels import Dropout
from data2vec.nn.ema import update_ema
from data2vec.nn.encoder import Encoder
from data2vec.nn.heads import Classifier, Head, encoder_states
from data2vec.objective.base import ObjectiveOutput
from data2vec.objective.training_objective import TrainingObjective
from data2vec.recipe.task_settings import ClassificationSettings, TaskSettings

NOISE = 0.01
"""Standard deviation of the noise that `mask_fill: noise` puts at masked positions."""


class SupervisedObjective(TrainingObjective[LabelledBatch]):
    """An encoder and a head trained on labels."""

    def __init__(self, encoder: Encoder, head: Head, settings: TaskSettings):
        super().__init__()
        if settings.mask and settings.mask_fill == "vector" and getattr(encoder.local_encoder, "mask_vector", None) is None:
            raise UserError("objective.mask_fill: this model has no mask vector; set it to noise or zero")
        self.settings = settings
        self.student = encoder
        self.head = head
        self.dropout = Dropout(settings.dropout)
        self.frozen = settings.freeze_encoder
        if settings.freeze_encoder:
            encoder.requires_grad_(False)
        self.average: nn.ModuleDict | None = None
        if settings.ema_decay:
            self.average = nn.ModuleDict({"student": copy.deepcopy(encoder), "head": copy.deepcopy(head)})
            self.average.requires_grad_(False).eval()

    def forward(self, batch: LabelledBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of a batch, summed over its inputs. `measure` is ignored: there are no statistics."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x, padding = self.student.local_encoder(batch)
            states = encoder_states(self.student, self.head, self._apply_masks(x, batch), padding)
        logits = self.head(self.dropout(self.head.combine(states)), padding).float()
        losses = self._losses(logits, padding, batch)  # (B,)
        return ObjectiveOutput(losses.sum(), losses.detach())

    def _apply_masks(self, x: Tensor, batch: LabelledBatch) -> Tensor:
        """`x` (B, T, D) with the batch's position mask (B, T) and channel mask (B, D) applied."""
        if (mask := batch.mask) is not None:
            if self.settings.mask_fill == "vector":
                x = self.student.apply_mask(x, mask, batch.input)
            else:
                noise = NOISE if self.settings.mask_fill == "noise" else 0.0
                x = torch.where(mask[..., None], noise * torch.randn_like(x), x)
        return x if batch.channel_mask is None else x.masked_fill(batch.channel_mask[:, None], 0.0)

    def _losses(self, logits: Tensor, padding: Tensor | None, batch: LabelledBatch) -> Tensor:
        if isinstance(self.head, Classifier):
            assert isinstance(self.settings, ClassificationSettings)
            return classification_loss(logits, batch.labels, self.settings)
        return recognition_loss(logits, padding, batch.labels)

    def start_average(self) -> None:
        """Reset the moving average, if there is one, to the current weights."""
        self._update_average(0.0)

    @property
    def may_skip_parameters(self) -> bool:
        """Also while the encoder is frozen."""
        return super().may_skip_parameters or self.settings.freeze_steps > 0

    def num_targets(self, batch: LabelledBatch) -> int:
        """One target per input."""
        return len(batch)

    def before_step(self, step: int) -> None:
        """Before optimizer step `step` (counted from 1): freeze or unfreeze the encoder."""
        self.frozen = self.settings.freeze_encoder or step <= self.settings.freeze_steps

    def after_step(self, step: int) -> None:
        """Update the moving average, if there is one; with a smaller decay in the first steps, so that it forgets the start."""
        self._update_average(min(self.settings.ema_decay, (1 + step) / (10 + step)))

    def _update_average(self, decay: float) -> None:
        for name, average in () if self.average is None else self.average.items():
            update_ema(average, getattr(self, name), decay)

    @property
    def best_weights_prefix(self) -> str:
        """The prefix, in the state dict, of the weights to validate and save: before `student.…` and `head.…`."""
        return "" if self.average is None else "average."

    def train(self, mode: bool = True) -> "SupervisedObjective":
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self


def recognition_loss(logits: Tensor, padding: Tensor | None, labels: Tensor) -> Tensor:
    """The CTC loss of each row, (B,): `logits` (B, T, V) with blank 0; `labels` (B, L), padded with -1.

    A transcript that is too long for its input has loss 0."""
    B, T, _ = logits.shape
    lengths = torch.full((B,), T, device=logits.device) if padding is None else (~padding).sum(1)
    label_lengths = (labels >= 0).sum(1)
    log_probs = F.log_softmax(logits, -1).transpose(0, 1)  # (T, B, V)
    targets = labels.clamp(min=0)
    return F.ctc_loss(log_probs, targets, lengths, label_lengths, blank=0, reduction="none", zero_infinity=True)


def classification_loss(logits: Tensor, labels: Tensor, settings: ClassificationSettings) -> Tensor:
    """The loss of each row, (B,): `logits` (B, V); `labels` are classes (B,), class probabilities (B, V), or numbers (B,)."""
    if settings.problem_type == "regression":
        return F.mse_loss(logits[:, 0], labels.float() / settings.label_scale, reduction="none")
    if settings.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").sum(1)
    return F.cross_entropy(logits, labels, reduction="none")
