"""AdamW, what it decays, and how the learning rate moves."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data2vec.recipe.train_settings import Cosine, TrainSettings, TriStage
from data2vec.train.parallel import gathered


def learning_rate(settings: TrainSettings, step: int, scale: float = 1.0) -> float:
    """The learning rate of optimizer step `step`, counted from 1 to `settings.steps`, where the peak is `scale` times that of
    the settings. `final_lr` is not scaled, but never above the peak (as in fairseq)."""
    schedule, peak, steps = settings.schedule, settings.lr * scale, settings.steps
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
        final = min(schedule.final_lr, peak)
        return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * done))
    return peak * (1 - done) ** schedule.power


def parameter_groups(
    module: nn.Module, settings: TrainSettings, scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """The trainable parameters of `module`, with weight decay and without, for each `scale` of the learning rate, which is
    given the parameter's name.

    With `decay: matrices` only the weights of linear, convolutional and token-embedding layers decay; biases, norms,
    scales, mask vectors, extra tokens, bias tables and learned positions do not."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for owner_name, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            position = isinstance(owner, nn.Embedding) and "position_encoder" in owner_name.split(".")
            matrix = name.endswith("weight") and parameter.ndim >= 2 and not position
            key = scale(f"{owner_name}.{name}".removeprefix(".")), matrix or settings.decay == "all"
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": settings.weight_decay if key[1] else 0.0, "lr_scale": key[0]}
        for key in sorted(groups, key=lambda key: not key[1])
    ]


def build(module: nn.Module, settings: TrainSettings, scale: Callable[[str], float] = lambda name: 1.0) -> torch.optim.AdamW:
    """AdamW over the groups of `parameter_groups`, as one fused operation, with its moments in place."""
    optimizer = torch.optim.AdamW(
        parameter_groups(module, settings, scale), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int) -> None:
    """Set the learning rate of step `step` on every group, by the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step, group["lr_scale"])


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
