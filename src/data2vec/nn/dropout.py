"""Dropout of single elements, and of residual branches (stochastic depth)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn import cpu_kernels
from data2vec.nn.cpu_kernels import use_cpu_kernels


class Dropout(nn.Module):
    """Zero elements with probability `p` in training, and scale the rest by 1 / (1 - p)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return cpu_kernels.dropout(x, self.p) if use_cpu_kernels(x) else F.dropout(x, self.p)


class DropPath(nn.Module):
    """Zero a residual branch with probability `p` for each sample, and scale it by 1 / (1 - p) for the others."""

    keep_prob: Tensor

    def __init__(self, p: float):
        super().__init__()
        self.enabled = p > 0
        # A buffer: a Python number would be compiled into the code, and every block compiled separately.
        self.register_buffer("keep_prob", torch.tensor(1 - p), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.draw_factor(x)
        return x if factor is None else x * factor

    def draw_factor(self, x: Tensor) -> Tensor | None:
        """The factor for each sample of `x`, (B, 1, …): 0 or 1 / (1 - p). None stands for 1 everywhere."""
        if not self.training or not self.enabled:
            return None
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < self.keep_prob
        return (keep / self.keep_prob).to(x.dtype)
