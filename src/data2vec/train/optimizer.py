"""AdamW, what it decays, and how the learning rate moves."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data2vec.train.engine import gathered
from data2vec.train.settings import Cosine, TrainSettings, TriStage


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of optimizer step `step`, counted from 1 to `settings.steps`."""
    schedule, peak, steps = settings.schedule, settings.lr, settings.steps
    if isinstance(schedule, TriStage):
        warmup, hold = schedule.warmup * steps, schedule.hold * steps
        if step < warmup:
            return peak * (schedule.initial_scale + (1 - schedule.initial_scale) * step / warmup)
        if step <= warmup + hold:
            return peak
        decayed = min(1.0, (step - warmup - hold) / (steps - warmup - hold))
        return peak * schedule.final_scale**decayed
    if step < schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    done = min(1.0, (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps))
    if isinstance(schedule, Cosine):
        return schedule.final_lr + 0.5 * (peak - schedule.final_lr) * (1 + math.cos(math.pi * done))
    return peak * (1 - done) ** schedule.power


def parameter_groups(module: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """The trainable parameters of `module`, with weight decay and without.

    With `decay: matrices` only the weights of linear, convolutional and token-embedding layers decay; biases, norms,
    scales, mask vectors, extra tokens, bias tables and learned positions do not."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for owner_name, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            position = isinstance(owner, nn.Embedding) and "positions" in owner_name.split(".")
            matrix = name.endswith("weight") and parameter.ndim >= 2 and not position
            (decayed if matrix or settings.decay == "all" else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build(module: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `module`, as one fused operation, with its moments in place."""
    optimizer = torch.optim.AdamW(
        parameter_groups(module, settings), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set `lr` on every group, times the group's own `lr_scale` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place to a global norm of at most `max_norm` (0: leave them). Returns the norm before, 0-d."""
    parameters = list(parameters)
    total = norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total, foreach=True)
    return total


def norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all `tensors`, sharded or not, as one vector, 0-d. Every process has to call this."""
    return gathered(nn.utils.get_total_norm(tensors, foreach=True))
