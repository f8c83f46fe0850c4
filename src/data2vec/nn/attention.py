"""Multi-head self-attention on PyTorch's fused kernel, or on a CPU in training on its own; and the one mask it takes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data2vec.nn.dropout import Dropout, by_hand, draw_keep

Bias = Tensor | list[Tensor] | None
"""What is added to the attention logits: the same in every block; or one for each; or nothing."""
TILE = 2**22
"""Attention weights worked on at a time on a CPU."""


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
        qkv, mask = self._given(x, mask)
        p = self.dropout.p if self.training else 0.0
        if by_hand(x) and (p or (torch.is_grad_enabled() and _unfused(qkv, mask))):
            return self.out(_Attend.apply(qkv, mask, p))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out(y.transpose(1, 2).reshape(B, T, D))

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights (B, H, T, T) of the same input, without dropout: what fused kernels never show."""
        return _weights(*self._given(x, mask))[0].unflatten(0, (-1, self.heads))

    def _given(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values (B, T, 3, H, D/H) of `x`, and the mask in their precision."""
        B, T, D = x.shape
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(B, T, 3, self.heads, D // self.heads)
        return qkv, mask.to(qkv.dtype) if mask is not None and mask.is_floating_point() else mask


def _unfused(qkv: Tensor, mask: Tensor | None) -> bool:
    """Whether the CPU's fused kernel lacks the gradient (of a bias), or is slow at it (short sequences in bf16)."""
    return qkv.requires_grad and (qkv.dtype == torch.bfloat16 or (mask is not None and mask.requires_grad))


class _Attend(torch.autograd.Function):
    """Attention on a CPU, with dropout and a gradient for the bias, which the fused kernel does not have there.

    For backward it keeps what it was given and a byte per weight, and makes the weights again, a few samples at a time:
    no weights (B, H, T, T) outlive forward. `qkv` (B, T, 3, H, D/H) to (B, T, D)."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor | None, p: float) -> Tensor:
        out, keeps = torch.empty_like(qkv[:, :, 0]), []
        for rows in _tiles(qkv):
            weights, _, _, v = _weights(qkv[rows], _rows(mask, rows))
            if p:
                keeps.append(draw_keep(weights.shape, p))
                weights.mul_(keeps[-1].to(weights.dtype))
            out[rows] = _positions_first(torch.bmm(weights, v), qkv)
        ctx.save_for_backward(qkv, mask, *keeps)
        ctx.p = p
        return (out.mul_(1 / (1 - p)) if p else out).flatten(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        qkv, mask, *keeps = ctx.saved_tensors
        d_qkv, d_mask = torch.empty_like(qkv), torch.zeros_like(mask) if ctx.needs_input_grad[1] else None
        gradient, scale = gradient.view(qkv[:, :, 0].shape), qkv.shape[-1] ** -0.5
        for i, rows in enumerate(_tiles(qkv)):
            weights, q, k, v = _weights(qkv[rows], _rows(mask, rows))
            d_out = _heads_first(gradient[rows])
            d_weights, kept = torch.bmm(d_out, v.transpose(1, 2)), weights
            if ctx.p:
                keep = keeps[i].to(qkv.dtype).mul_(1 / (1 - ctx.p))
                d_weights.mul_(keep)
                kept = keep.mul_(weights)
            d_v = torch.bmm(kept.transpose(1, 2), d_out)
            d_logits = torch._softmax_backward_data(d_weights, weights, -1, qkv.dtype)
            if d_mask is not None:
                d_rows = _rows(d_mask, rows)
                d_rows += d_logits.unflatten(0, (-1, qkv.shape[3])).sum_to_size(d_rows.shape)
            d_q, d_k = torch.bmm(d_logits, k).mul_(scale), torch.bmm(d_logits.transpose(1, 2), q).mul_(scale)
            for j, part in enumerate((d_q, d_k, d_v)):
                d_qkv[rows, :, j] = _positions_first(part, qkv)
        return d_qkv, d_mask, None


def _tiles(qkv: Tensor) -> Iterator[slice]:
    """The rows to work on at a time."""
    B, T, _, H, _ = qkv.shape
    step = max(1, TILE // (H * T * T))
    return (slice(start, start + step) for start in range(0, B, step))


def _rows(mask: Any, rows: slice) -> Any:
    """Those rows of a mask that may have one for all of them."""
    return mask[rows] if mask is not None and mask.ndim == 4 and len(mask) > 1 else mask


def _heads_first(x: Tensor) -> Tensor:
    """(B, T, H, D/H) to (B·H, T, D/H)."""
    return x.transpose(1, 2).flatten(0, 1)


def _positions_first(x: Tensor, qkv: Tensor) -> Tensor:
    """(B·H, T, D/H) to (B, T, H, D/H)."""
    return x.unflatten(0, (-1, qkv.shape[3])).transpose(1, 2)


def _weights(qkv: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention weights (B·H, T, T), and the queries, keys and values, (B·H, T, D/H), they are made of."""
    q, k, v = (_heads_first(part) for part in qkv.unbind(2))
    if mask is None:
        logits = torch.bmm(q, k.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
    else:
        if not mask.is_floating_point():
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
        mask = mask.expand(len(qkv), qkv.shape[3], *mask.shape[-2:]).flatten(0, 1)
        logits = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.softmax(logits, -1, out=logits), q, k, v


def attention_mask(bias: Tensor | None, padding: Tensor | None, extra: int) -> Tensor | None:
    """Join a bias (H, E+T, E+T), or one for each row, and a padding (B, T) into what `Attention` takes.

    Extra tokens are never padding."""
    if bias is not None and bias.ndim == 3:
        bias = bias.unsqueeze(0)  # the fused kernels know 2 and 4 axes only
    if padding is None:
        return bias
    absent = F.pad(padding, (extra, 0))[:, None, None, :]  # (B, 1, 1, E+T)
    return ~absent if bias is None else bias.masked_fill(absent, float("-inf"))
