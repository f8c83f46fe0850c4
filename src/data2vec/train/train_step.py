"""One optimizer step, over any number of micro-batches and processes."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.distributed import Process
from data2vec.nn.transformer import Transformer
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.train_settings import TrainSettings
from data2vec.train.optimizer import (
    build_adamw,
    clip_grad_norm,
    clip_in_step,
    learning_rate_scale,
    set_learning_rate,
    total_norm,
)
from data2vec.train.parallel import is_sharded, parallelize
from data2vec.train.prefetch import on_device


@dataclass(frozen=True)
class StepOutput:
    """What a step returns, on the device; reading any of it waits for the device."""

    loss: Tensor
    """Sum over the predicted positions of this process."""
    counts: Tensor
    """Predicted positions and samples of the global batch, (2,)."""
    grad_norm: Tensor | None
    """Global norm of the gradients before clipping, if requested or needed."""
    stats: dict[str, Tensor]
    """The objective's statistics of this process's first micro-batch, if requested."""


class TrainStep:
    """Makes optimizer steps on an objective."""

    def __init__(self, objective: AnyTrainingObjective, settings: TrainSettings, process: Process, backend: str = "inductor"):
        """`backend`: that of `torch.compile`, for tests without a compiler."""
        self.objective, self.settings, self.process = objective, settings, process
        self.model = parallelize(objective, settings, process, backend)
        self.sharded = is_sharded(objective)
        layers = objective.student.transformer.settings.layers
        self.optimizer = build_adamw(objective, settings, learning_rate_scale(settings, layers))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.updating = False
        """Whether a step has begun to change the weights and has not ended: there is nothing to save then."""
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=settings.precision == "fp16")
        """Keeps small float16 gradients from underflow; does nothing in other precisions."""

    def __call__(self, step: int, micro_batches: list[Batch], measure: bool, norm: bool) -> StepOutput:
        """Optimizer step number `step` (counted from 1).

        `measure`: also compute the objective's statistics; `norm`: also compute the norm of the gradients."""
        torch.manual_seed(step_seed(self.settings.seed, step, self.process.rank))
        for part in self.objective.modules():
            if isinstance(part, Transformer):
                part.layerdrop_generator.manual_seed(step_seed(self.settings.seed, step))
        self.objective.before_step(step)
        set_learning_rate(self.optimizer, self.settings, step, self.objective.lr_scale)
        counts = torch.tensor([[self.objective.num_targets(batch), len(batch)] for batch in micro_batches]).sum(0)
        counts = self.process.sum(counts)
        # Data-parallel gradients are averaged over the processes; the loss is a mean over the positions of all of them.
        scale = self.objective.loss_weight * self.process.world_size / counts[0]
        losses, stats = [], dict[str, Tensor]()
        with nullcontext() if self.sharded else self.model.autocast():
            for i, batch in enumerate(on_device(micro_batches, self.process.device)):
                transformer = self.objective.student.transformer
                if transformer.kept_blocks is not None:
                    transformer.draw_kept_blocks()
                with self.model.accumulate(last=i == len(micro_batches) - 1):
                    output = self.model(batch, measure=measure and i == 0)
                    with self.model.autocast(enabled=False):
                        self.scaler.scale(output.loss * scale).backward()
                losses.append(output.loss.detach())
                stats = stats or output.stats
        grad_norm = None
        if norm or self.settings.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            # A loss scale takes the place in the optimizer's step in which a GPU clips; a CPU gains nothing there.
            if self.process.device.type == "cpu" or self.scaler.is_enabled() or self.sharded:
                grad_norm = clip_grad_norm(self.parameters, self.settings.clip_norm)
            else:
                grad_norm = clip_in_step(self.optimizer, self.settings.clip_norm)
        changed = [p for p in self.parameters if p.grad is not None] if measure else []
        before = [p.detach().clone() for p in changed]
        self.updating = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if measure:
            updates = torch._foreach_sub([p.detach() for p in changed], before)
            stats = stats | {
                "local_encoder_fraction_with_grad": fraction_with_grad(
                    self.objective.student.get_submodule("local_encoder"), self.process.device
                ),
                "update_ratio": total_norm(list(updates)) / total_norm(before),
            }
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(step)
        self.updating = False
        return StepOutput(torch.stack(losses).sum(), counts, grad_norm, stats)


def fraction_with_grad(module: nn.Module, device: torch.device) -> Tensor:
    """The fraction of a module's weights, 0-d, in tensors with a non-zero gradient; 1 if it has no weights."""
    alive = total = torch.zeros((), device=device)
    for p in module.parameters():
        total = total + p.numel()
        if p.grad is not None:
            alive = alive + p.numel() * (total_norm([p.grad]) != 0)
    return torch.where(total > 0, alive / total, 1.0)


def step_seed(*entropy: int) -> int:
    """The random seed of a step, from the run's seed, the step and the rank, so that resuming needs no random state."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
