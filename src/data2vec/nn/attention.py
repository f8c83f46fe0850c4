"""Multi-head self-attention on PyTorch's fused kernel, and the one mask it takes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn.dropout import Dropout


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
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        p = self.dropout.p if self.training else 0.0
        if x.device.type == "cpu" and (p or (mask is not None and mask.requires_grad)):
            y = self._explicit(q, k, v, mask)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out(y.transpose(1, 2).reshape(B, T, D))

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The same in four operations: on a CPU the fused kernel has no dropout and no gradient for a bias."""
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, float("-inf"))
        return self.dropout(logits.softmax(-1)) @ v


def attention_mask(bias: Tensor | None, padding: Tensor | None, extra: int) -> Tensor | None:
    """Join a bias (H, E+T, E+T), or one for each row, and a padding (B, T) into what `Attention` takes.

    Extra tokens are never padding."""
    if bias is not None and bias.ndim == 3:
        bias = bias.unsqueeze(0)  # the fused kernels know 2 and 4 axes only
    if padding is None:
        return bias
    absent = F.pad(padding, (extra, 0))[:, None, None, :]  # (B, 1, 1, E+T)
    return ~absent if bias is None else bias.masked_fill(absent, float("-inf"))
