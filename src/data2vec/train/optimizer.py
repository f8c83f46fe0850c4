"""AdamW, its parameter groups, layer-wise learning rate decay and the learning rate schedule."""

import math
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from data2vec.recipe.train_settings import Cosine, LayerDecay, TrainSettings, TriStage
from data2vec.settings import JsonDict
from data2vec.train.parallel import gathered

BLOCK = re.compile(r"(?:^|\.)transformer\.blocks\.(\d+)\.")
BEFORE_BLOCKS = re.compile(
    r"(?:^|\.)(?:local_encoder\.|transformer\.(?:extra_tokens$|input_norm\.)|position_encoder\.(?!table$))"
)
"""Parameters before the first block. A table of relative positions is not one: it is an attention bias in every block."""


def learning_rate(settings: TrainSettings, step: int, scale: float = 1.0) -> float:
    """The learning rate of optimizer step `step` (1 to `settings.steps`) for a peak of `scale` times `settings.lr`.

    `final_lr` is not scaled, but at most the peak (as in fairseq)."""
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
) -> list[JsonDict]:
    """The trainable parameters of `module`, grouped by weight decay (yes or no) and by learning rate scale.

    `scale`: the scale by the parameter's name. With `weight_decay_on: matrices` only the weights of linear, convolutional
    and token-embedding layers decay; biases, norms, scales, mask vectors, extra tokens, bias tables and positions do not."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for owner_name, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            position = isinstance(owner, nn.Embedding) and "position_encoder" in owner_name.split(".")
            matrix = name.endswith("weight") and parameter.ndim >= 2 and not position
            key = scale(f"{owner_name}.{name}".removeprefix(".")), matrix or settings.weight_decay_on == "all"
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": settings.weight_decay if key[1] else 0.0, "lr_scale": key[0]}
        for key in sorted(groups, key=lambda key: not key[1])
    ]


def build_adamw(
    module: nn.Module, settings: TrainSettings, scale: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`, with its state allocated, so that a checkpoint can be loaded into it."""
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


def learning_rate_scale(settings: TrainSettings, layers: int) -> Callable[[str], float]:
    """The learning rate scale by a parameter's name, of a module with a `student` of `layers` blocks and maybe a `head`."""
    head = 1.0 if settings.head_lr is None else settings.head_lr / settings.lr

    def scale(name: str) -> float:
        if name.startswith("head."):
            return head
        return 1.0 if settings.layer_decay is None else layer_scale(name, layers, settings.layer_decay)

    return scale


def layer_scale(name: str, layers: int, decay: LayerDecay) -> float:
    """The learning rate scale of the parameter `name`, in a module that holds an encoder of `layers` blocks."""
    if block := BLOCK.search(name):
        return decay.rate ** (layers - int(block[1]))
    if decay.below == "decayed" and BEFORE_BLOCKS.search(name):
        return decay.rate ** (layers + 1)
    return 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int, scale: float = 1.0) -> None:
    """Set the learning rate of step `step` in every group; its peak is `settings.lr` times `scale` and its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(settings, step, scale * group["lr_scale"])


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients in place to a global norm of at most `max_norm` (0: no clipping). Returns the norm before, 0-d."""
    parameters = list(parameters)
    total = total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total, foreach=True)
    return total


def clip_in_step(optimizer: torch.optim.AdamW, max_norm: float) -> Tensor:
    """Let the next step of a fused AdamW scale the gradients to a global norm of at most `max_norm` (0: no clipping) as it
    reads them, instead of reading and writing them before. Returns the norm, 0-d."""
    total = total_norm([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
    # A fused step divides by this, which is meant for loss scales.
    optimizer.grad_scale = ((total + 1e-6) / max_norm).clamp(min=1.0) if max_norm > 0 else None  # type: ignore[attr-defined]
    return total


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The global L2 norm of all `tensors`, sharded or not, 0-d. Every process has to call this."""
    return gathered(nn.utils.get_total_norm(tensors, foreach=True))
