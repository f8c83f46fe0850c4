"""Joint pre-training: several objectives, each of its own modality, whose students share one Transformer.

A step is made by one part on a batch of its own data, so all that a part does is as if it were alone: masks, targets, decoder
and loss. Student and teacher each have one Transformer, which every part's steps move; local encoder, position encoder and
decoder of a part change in its own steps only. No step compares two modalities, and the data is not paired: the features of
a picture and of its caption have no reason to be alike.
"""

from collections.abc import Mapping

from torch import nn

from data2vec.batch import MaskedBatch
from data2vec.nn.encoder import Encoder
from data2vec.objective.base import ObjectiveOutput
from data2vec.objective.latent import LatentObjective
from data2vec.objective.part_schedule import PartSchedule
from data2vec.objective.training_objective import TrainingObjective


class JointObjective(TrainingObjective[MaskedBatch]):
    """The objectives of all parts, of which one is active in a step."""

    def __init__(
        self,
        parts: Mapping[str, LatentObjective],
        schedule: PartSchedule,
        lr_scales: Mapping[str, float],
        loss_weights: Mapping[str, float],
    ):
        """`parts`: with encoders of one shape, which all get the Transformer of the first. `lr_scales` and `loss_weights`: of
        the steps of each part."""
        super().__init__()
        first = next(iter(parts.values()))
        for part in parts.values():
            part.student.transformer = first.student.transformer
            part.teacher.ema["transformer"] = first.teacher.ema["transformer"]
        self.parts = nn.ModuleDict(parts)
        self.schedule, self.lr_scales, self.loss_weights = schedule, lr_scales, loss_weights
        self.part = schedule.part(1)
        """The active part."""

    @property
    def active(self) -> LatentObjective:
        """The objective of the active part."""
        found = self.parts[self.part]
        assert isinstance(found, LatentObjective)
        return found

    @property
    def student(self) -> Encoder:  # type: ignore[override]
        """The encoder of the active part."""
        return self.active.student

    @property
    def may_skip_parameters(self) -> bool:
        """The other parts have no gradients."""
        return True

    @property
    def lr_scale(self) -> float:
        """Of the active part."""
        return self.lr_scales[self.part]

    @property
    def loss_weight(self) -> float:
        """Of the active part."""
        return self.loss_weights[self.part]

    def forward(self, batch: MaskedBatch, measure: bool = False) -> ObjectiveOutput:
        """The loss of a batch of the active part; `measure` also computes statistics of the representations."""
        output: ObjectiveOutput = self.active(batch, measure)
        return output

    def num_targets(self, batch: MaskedBatch) -> int:
        """The number of predicted positions."""
        return self.active.num_targets(batch)

    def before_step(self, step: int) -> None:
        """To be called before optimizer step number `step` (counted from 1): activates its part."""
        self.part = self.schedule.part(step)
        self.active.before_step(step)

    def after_step(self, step: int) -> None:
        """To be called after optimizer step number `step` (counted from 1): all of the teacher follows, its Transformer with
        the decay of the active part. What other parts have for themselves has not changed, but its average may still
        follow."""
        for name, part in self.parts.items():
            assert isinstance(part, LatentObjective)
            part.teacher.update(part.student, step, without=() if name == self.part else ("transformer",))

    def ema_decay(self, step: int) -> float | None:
        """τ of the active part after `step` optimizer steps."""
        return self.active.ema_decay(step)
