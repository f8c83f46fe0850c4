"""Exponential moving average of weights: the teacher's of the student, and the averaged weights of fine-tuning.

`torch.optim.swa_utils.AveragedModel` copies a complete model at one constant decay and in the model's own precision. Here
single modules are averaged, the decay follows a schedule, the average stays in float32 beside a student in half precision, and
sharded parameters (DTensor) are updated in place.
"""

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, source: nn.Module, decay: float) -> None:
    """θ_average ← decay·θ_average + (1 - decay)·θ_source, as one fused operation over all parameters; buffers are copied.

    `source` needs at least the parameters of `average`, by the same names; `average` keeps its precision. `decay` 0 copies."""
    averages, values = dict(average.named_parameters()), dict(source.named_parameters())
    if averages:  # some modules have none, such as sinusoidal position encoders
        aligned = [values[name].to(average_parameter.dtype) for name, average_parameter in averages.items()]
        if decay == 0:
            torch._foreach_copy_(list(averages.values()), aligned)
        else:
            torch._foreach_lerp_(list(averages.values()), aligned, 1 - decay)
    copies, buffers = dict(average.named_buffers()), dict(source.named_buffers())
    if copies:
        torch._foreach_copy_(list(copies.values()), [buffers[name] for name in copies])
