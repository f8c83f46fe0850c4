"""The base class of objectives: the interface of the training loop to pre-training and fine-tuning."""

from typing import Any, Generic, TypeVar

from torch import nn

from data2vec.batch import Batch
from data2vec.nn.encoder import Encoder

B = TypeVar("B", bound=Batch)


class TrainingObjective(nn.Module, Generic[B]):
    """A module whose `forward(batch, measure)` returns the summed loss of a batch, with hooks around optimizer steps."""

    student: Encoder
    """The encoder that is trained."""

    @property
    def lr_scale(self) -> float:
        """What the learning rate of this step is multiplied by."""
        return 1.0

    @property
    def loss_weight(self) -> float:
        """What the gradients of this step are multiplied by."""
        return 1.0

    @property
    def may_skip_parameters(self) -> bool:
        """Whether a step may leave trainable parameters without gradients."""
        transformer = self.student.transformer
        return transformer.settings.layerdrop > 0 and transformer.kept_blocks is None

    def num_targets(self, batch: B) -> int:
        """The number of terms in the summed loss, by which it is divided over the global batch."""
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Called before optimizer step number `step` (counted from 1)."""

    def after_step(self, step: int) -> None:
        """Called after optimizer step number `step` (counted from 1)."""

    def ema_decay(self, step: int) -> float | None:
        """τ of the teacher after `step` optimizer steps; None without a teacher."""
        return None


AnyTrainingObjective = TrainingObjective[Any]
