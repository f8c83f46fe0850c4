"""Layer norm that takes and gives the precision of autocast, with statistics in float32.

Autocast's own rule for CUDA is to compute and return layer norms in float32, which makes everything between matrix products
read and write twice the bytes, and adds a cast before each product. Kernels for half precision add up in float32 anyway.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last axis, by `layer_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """The layer norm of `x` (…, D), in autocast's precision where that is on, otherwise in that of `x`."""
    kind = x.device.type
    if not autocast_is_on(x):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    dtype = torch.get_autocast_dtype(kind)
    if kind == "cpu":  # whose kernel adds up the gradients of weight and bias in the precision of its input
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(dtype)
    x, weight, bias = x.to(dtype), *(None if part is None else part.to(dtype) for part in (weight, bias))
    with without_autocast(x):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def autocast_is_on(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`. PyTorch has none for meta tensors, unless a counter of kernels sets it."""
    try:
        return torch.is_autocast_enabled(x.device.type)
    except RuntimeError:
        return False


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block without autocast on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False) if autocast_is_on(x) else nullcontext()
