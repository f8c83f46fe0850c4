"""Multi-head self-attention, and the mask it takes: a bias on the logits, padding, or both."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn import cpu_kernels
from data2vec.nn.dropout import Dropout

Bias = Tensor | list[Tensor] | None
"""What is added to the attention logits: one tensor for all blocks, a list with one per block, or nothing."""


class Attention(nn.Module):
    """Self-attention: q, k and v in one matrix, (3D, D) in this order, each split into heads."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, key_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        self.q_bias = self.v_bias = None
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` (B, T, D) to (B, T, D). `mask` broadcasts to (B, H, T, T): bool, True = attend; or float, added to the logits."""
        B, T, D = x.shape
        qkv, mask = self._project(x, mask)
        p = self.dropout.p if self.training else 0.0
        if cpu_kernels.prefers_cpu_attention(qkv, mask, p):
            y = cpu_kernels.attention(qkv, mask, p)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p).transpose(1, 2).reshape(B, T, D)
        output: Tensor = self.out(y)
        return output

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, T) of the same input, without dropout."""
        return cpu_kernels.attention_weights(*self._project(x, mask))

    def _project(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values (B, T, 3, H, D/H) of `x`, and the mask in their precision."""
        B, T, D = x.shape
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(B, T, 3, self.heads, D // self.heads)
        return qkv, mask.to(qkv.dtype) if mask is not None and mask.is_floating_point() else mask


def attention_mask(bias: Tensor | None, padding: Tensor | None, extra: int) -> Tensor | None:
    """Combine a bias (H, E+T, E+T) or (B, H, E+T, E+T) with padding (B, T) into the mask of `Attention`.

    `extra`: E, the number of extra tokens, which are never padding."""
    if bias is not None and bias.ndim == 3:
        bias = bias.unsqueeze(0)  # fused kernels support 2 and 4 axes only
    if padding is None:
        return bias
    absent = F.pad(padding, (extra, 0))[:, None, None, :]  # (B, 1, 1, E+T)
    return ~absent if bias is None else bias.masked_fill(absent, float("-inf"))
