"""Dropout that is cheap on a CPU as well."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Zero elements with probability `p` in training, and scale the rest up.

    On a CPU PyTorch draws a random number for every element, which costs more than the softmax before it. Here four
    elements share one 64-bit draw; `p` is rounded to a multiple of 2^-16. The draws are NumPy's, seeded by PyTorch: its
    SFC64 takes half as long as PyTorch's generator."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return _Drop.apply(x, self.p) if by_hand(x) else F.dropout(x, self.p)


def by_hand(x: Tensor) -> bool:
    """Whether what PyTorch does slowly on a CPU is to be done by the functions here; a compiler has its own ways."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        keep = draw_keep(x.shape, p)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - p)
        return _scaled(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _scaled(gradient, keep, ctx.scale), None


def draw_keep(shape: tuple[int, ...], p: float) -> Tensor:
    """What stays when elements go with probability `p`: a byte, 0 or 1, for each element of `shape`, on the CPU."""
    count = math.prod(shape)
    seed = int(torch.randint(2**63 - 1, ()))
    draws = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))
    return (draws[:count] >= round(p * 2**16) - 2**15).view(torch.uint8).view(shape)


def _scaled(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    factor = keep.to(x.dtype).mul_(scale)  # as bytes: a product with booleans takes three times as long
    return factor.mul_(x)
