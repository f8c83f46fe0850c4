"""The cost of an optimizer step: floating-point operations, counted while real steps are made, and seconds.

Counted are all matrix products and convolutions that are executed: forward and backward of the student, the forward pass of
a teacher, decoders, and any other model that the objective runs. A multiply-add is two operations. Element-wise operations, the
optimizer and data loading are not counted. Attention is counted as its fused kernels work: backward recomputes the weights.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from data2vec.distributed import process_group
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.train.finetune import FinetuneTask
from data2vec.train.pretrain import PretrainTask
from data2vec.train.train_step import TrainStep

Shape = tuple[int, ...]
STEPS = 4
"""Steps that are counted; their batches differ in length, and the objective may differ along a run."""


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step of a recipe costs, on average."""

    flops: float
    """Floating-point operations."""
    seconds: float
    """Duration on this machine, without data loading."""


def step_cost(recipe: Recipe, steps: int = STEPS) -> StepCost:
    """The cost of an optimizer step of a complete recipe, of pre-training or of fine-tuning, on its own data.

    Steps are made with the first batches of the data, numbered evenly over the run, such that frozen phases count by their
    share. Recomputation and compilation, which change the count but not the result, are off. Raises UserError as training
    does."""
    recipe = load_recipe(
        recipe, {"train.recompute": False, "train.compile": False, "data.workers": 0, "probe.data": None, "data.valid": None}
    )
    task_class: Any = FinetuneTask if isinstance(recipe.objective, SupervisedSettings) else PretrainTask
    with process_group(recipe.train.device) as process, torch.random.fork_rng():
        task = task_class(recipe, process)
        make_step = TrainStep(task.objective, recipe.train, process)
        batches = task.loader.steps()
        counted, durations = [], []
        for i in range(steps):
            number, micro_batches = 1 + int(recipe.train.steps * (i + 0.5) / steps), next(batches)
            counter = flop_counter()
            with counter:
                make_step(number, micro_batches, measure=False, norm=False)
            counted.append(counter.get_total_flops())
            begin = time.perf_counter()
            float(make_step(number, micro_batches, measure=False, norm=False).loss)
            durations.append(time.perf_counter() - begin)
        batches.close()
    return StepCost(sum(counted) / steps, sum(durations) / steps)


def flop_counter() -> FlopCounterMode:
    """A context manager that counts operations; read `get_total_flops()` afterwards."""
    return FlopCounterMode(display=False, custom_mapping=dict(_MISSING))


# PyTorch's counter has no products in place and no attention on a CPU, and takes every input channel of a grouped convolution
# for each group in the gradient of its weights.


def _matmul_in_place(_: Shape, a: Shape, b: Shape, *rest: Any, **options: Any) -> int:
    return 2 * math.prod(a) * b[-1]


def _attention(q: Shape, k: Shape, v: Shape, *rest: Any, **options: Any) -> int:
    flops: int = sdpa_flop_count(q, k, v)
    return flops


def _attention_backward(d_out: Shape, q: Shape, k: Shape, v: Shape, *rest: Any, **options: Any) -> int:
    flops: int = sdpa_backward_flop_count(d_out, q, k, v)
    return flops


def _convolution_backward(
    d_out: Shape,
    x: Shape,
    weight: Shape,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: list[bool],
    **options: Any,
) -> int:
    positions = x if transposed else d_out
    forward = 2 * x[0] * math.prod(positions[2:]) * math.prod(weight)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


_aten: Any = torch.ops.aten
_MISSING: dict[Any, Callable[..., int]] = {
    _aten.addmm_: _matmul_in_place,
    _aten.baddbmm_: _matmul_in_place,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten.convolution_backward: _convolution_backward,
}
