"""One optimizer step, over however many micro-batches and processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.distributed import Process
from data2vec.nn.transformer import Transformer
from data2vec.recipe.layer_decay import layer_scale
from data2vec.recipe.train_settings import TrainSettings
from data2vec.train import optimizer
from data2vec.train.parallel import prepare


@dataclass(frozen=True)
class Measured:
    """What a step leaves on the device; reading any of it makes the host wait."""

    loss: Tensor
    """Sum over the predicted positions of this process."""
    counts: Tensor
    """Predicted positions and samples of the whole global batch, (2,)."""
    grad_norm: Tensor | None
    """Global norm of the gradients before clipping, when it was asked for or needed."""
    stats: dict[str, Tensor]
    """The objective's statistics on this process's first micro-batch, when they were asked for."""


class Step:
    """Does optimizer steps on an objective."""

    def __init__(self, objective: Any, settings: TrainSettings, process: Process):
        self.objective, self.settings, self.process = objective, settings, process
        self.forward = prepare(objective, settings, process)
        self.optimizer = optimizer.build(objective, settings, _scale(objective, settings))
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=settings.precision == "fp16")
        """Keeps small float16 gradients from vanishing; does nothing in other precisions."""

    def __call__(self, step: int, micro_batches: list[Batch], measure: bool, norm: bool) -> Measured:
        """Optimizer step number `step` (counted from 1).

        `measure`: also take the objective's statistics; `norm`: also the norm of the gradients."""
        torch.manual_seed(draw(self.settings.seed, step, self.process.rank))
        for part in self.objective.modules():
            if isinstance(part, Transformer):
                part.layerdrop_rng.manual_seed(draw(self.settings.seed, step))
        self.objective.before_step(step)
        optimizer.set_learning_rate(self.optimizer, self.settings, step)
        counts = torch.tensor([[self.objective.num_targets(batch), len(batch)] for batch in micro_batches]).sum(0)
        counts = self.process.sum(counts)
        # Data-parallel gradients are averaged over the processes; the loss is a mean over the positions of all of them.
        scale = self.process.world_size / counts[0]
        losses, stats = [], dict[str, Tensor]()
        for i, batch in enumerate(micro_batches):
            batch = batch.to(self.process.device, non_blocking=True)
            with self.forward.accumulate(last=i == len(micro_batches) - 1):
                output = self.forward(batch, measure=measure and i == 0)
                self.scaler.scale(output.loss * scale).backward()
            losses.append(output.loss.detach())
            stats = stats or output.stats
        grad_norm = None
        if norm or self.settings.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            grad_norm = optimizer.clip(self.parameters, self.settings.clip_norm)
        before = [p.detach().clone() for p in self.parameters] if measure else []
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if measure:
            moved = torch._foreach_sub([p.detach() for p in self.parameters], before)
            stats = stats | {
                "features_learning": learning(self.objective.student.local_encoder, self.process.device),
                "update_ratio": optimizer.norm(list(moved)) / optimizer.norm(before),
            }
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step(step)
        return Measured(torch.stack(losses).sum(), counts, grad_norm, stats)


def _scale(objective: Any, settings: TrainSettings) -> Callable[[str], float]:
    """What the learning rate of each parameter is multiplied with."""
    layers, decay = objective.student.transformer.settings.layers, settings.layer_decay
    head = 1.0 if settings.head_lr is None else settings.head_lr / settings.lr

    def scale(name: str) -> float:
        if name.startswith("head."):
            return head
        return 1.0 if decay is None else layer_scale(name, layers, decay)

    return scale


def learning(features: nn.Module, device: torch.device) -> Tensor:
    """The share of the weights of the local encoder that receive gradients, 0-d; 1 where there are no weights."""
    alive = total = torch.zeros((), device=device)
    for p in features.parameters():
        total = total + p.numel()
        if p.grad is not None:
            alive = alive + p.numel() * (optimizer.norm([p.grad]) != 0)
    return torch.where(total > 0, alive / total, 1.0)


def draw(*entropy: int) -> int:
    """The random state that a step starts with, from seed, step and rank: a run that goes on needs no memory of it."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
