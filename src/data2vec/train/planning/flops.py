"""Floating-point operations, counted while they are made.

Counted are all matrix products and convolutions that are executed: forward and backward of the student, the forward pass of
a teacher, decoders, and any other model that the objective runs. A multiply-add is two operations. Element-wise operations, the
optimizer and data loading are not counted. Attention is counted as its fused kernels work: backward recomputes the weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = tuple[int, ...]


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
