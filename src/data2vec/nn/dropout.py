"""Dropout that is cheap on a CPU as well."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zero elements with probability `p` in training, and scale the rest up.

    On a CPU PyTorch draws a random number for every element, which costs more than the softmax before it. Here four
    elements share one 64-bit draw; `p` is rounded to a multiple of 2^-16."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return _Drop.apply(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (draws[: x.numel()] >= round(p * 2**16) - 2**15).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return _scaled(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _scaled(gradient, keep, ctx.scale), None


def _scaled(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    factor = keep.view(torch.uint8).to(x.dtype).mul_(scale)  # as bytes: a product with booleans takes three times as long
    return factor.mul_(x)
