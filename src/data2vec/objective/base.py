"""What every pre-training objective is to the training loop: a student, masks, and the summed loss of a batch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import Tensor

from data2vec.batch import MaskedBatch
from data2vec.distributed import Process
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective.masking import MaskSettings, SpanMask
from data2vec.objective.training_objective import TrainingObjective
from data2vec.settings import Settings


class ObjectiveSettings(Settings):
    """The `objective:` settings that all pre-training objectives share."""

    name: str
    """The objective: a shipped one, or "module:Class" for a custom one."""
    masks_per_sample: Annotated[int, Field(gt=0, le=10_000)] = 1
    """M: masked views of each sample."""
    mask: MaskSettings = SpanMask()
    """What is masked in the student's input (paper, section 3.2)."""


@dataclass(frozen=True)
class ObjectiveOutput:
    """What an objective returns to the training loop."""

    loss: Tensor
    """Sum over the predicted positions; to be divided by their number in the global batch."""
    errors: Tensor
    """(N,) the error of each predicted position, in the order of the batch's `predicted_indices`; without gradients."""
    stats: dict[str, Tensor] = field(default_factory=dict)
    """Scalars on the health of the representations, if they were asked for."""

    @property
    def mean_loss(self) -> Tensor:
        """The mean over the predicted positions of this batch."""
        return self.loss / len(self.errors)


class Objective(TrainingObjective[MaskedBatch]):
    """A student that learns from masked views of unlabelled input; subclasses say what it predicts."""

    settings: ObjectiveSettings

    def __init__(self, encoder: Encoder, settings: ObjectiveSettings, modality: Modality, steps: int):
        """`encoder`: the student. `modality`: for targets made of the input. `steps`: optimizer steps of the run, for schedules
        relative to its length."""
        super().__init__()
        self.settings, self.modality, self.steps = settings, modality, steps
        self.student = encoder

    def fit_targets(self, batches: Iterable[MaskedBatch], process: Process) -> str | None:
        """Prepare targets that are made of the training data, before the first step of a new run; a line for the log, or None.

        `batches`: endless batches on the CPU, the same for any number of processes, for the main one to read. What is found
        belongs into buffers of all processes, and so into checkpoints."""
        return None

    def trained_encoders(self) -> Mapping[str, Encoder]:
        """The encoders that start from trained models, by model: loaded before `fit_targets` in a new run."""
        return {}

    def num_targets(self, batch: MaskedBatch) -> int:
        """N, the number of predicted positions, by which the loss is divided over the global batch."""
        return len(batch.predicted_indices)
