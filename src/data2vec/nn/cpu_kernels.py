"""Faster or smaller replacements for PyTorch operations, written for training on a CPU.

Figures are for two cores and come from `benchmarks/README.md`; `python benchmarks/step.py` times the steps they speed up.

- `attention`: has dropout and a gradient for the bias, which PyTorch's fused CPU kernel lacks; the fused kernel's backward also
  takes twice as long in bf16. A byte per weight is kept; recomputing the weights costs 9 % of attention's time.
- `dropout`: four elements share one random draw. The mask of one text block's attention takes 9 ms instead of 36 ms; 0.5 s of a
  text step of 4.2 s.
- `feed_forward`: recomputes the GELU in backward instead of keeping its output, and
- `norm_gelu`: recomputes a norm and the GELU after it. With `attention`, these two save 15 to 25 % of peak memory at no
  measurable cost in time. No figure is recorded for one alone.
- `conv1d`: a strided convolution as matrix products. The second layer of the speech feature extractor takes 0.4 s backward
  instead of 1.8 to 2.7 s; a step went from 6.0 s to under 5 s.

`use_cpu_kernels` says where they replace the PyTorch operations.

Shapes: B batch, T positions, D width, H heads.
"""

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from data2vec.nn.layer_norm import autocast_is_on, layer_norm

MAX_WEIGHTS = 2**22
"""The most attention weights that `attention` holds in memory at a time, except for a single row, which may have more."""


def use_cpu_kernels(x: Tensor) -> bool:
    """Whether `x` is on a CPU, and neither being compiled, since a compiler generates its own kernels, nor transformed."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_transformed()


def is_transformed() -> bool:
    """Whether code runs under a transform of `torch.func`, such as grad, jvp or vmap, for which our kernels have no rules."""
    return torch._C._are_functorch_transforms_active()


class _Context(Protocol):
    """The part of `torch.autograd.function.FunctionCtx` that is used here, with types."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _DropoutContext(_Context, Protocol):
    p: float


class _ConvContext(_Context, Protocol):
    stride: int


# --- attention


def prefers_cpu_attention(qkv: Tensor, mask: Tensor | None, p: float) -> bool:
    """Whether `attention` beats the fused CPU kernel, or computes a gradient that the fused kernel does not."""
    if not use_cpu_kernels(qkv):
        return False
    if p:
        return True
    bias_gradient = mask is not None and mask.requires_grad
    return torch.is_grad_enabled() and qkv.requires_grad and (qkv.dtype == torch.bfloat16 or bias_gradient)


def attention(qkv: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Attention with dropout `p` on its weights, of `qkv` (B, T, 3, H, D/H) to (B, T, D).

    `mask` broadcasts to (B, H, T, T): bool, True = attend; or float, added to the logits."""
    y: Tensor = _Attention.apply(qkv, mask, p)  # type: ignore[no-untyped-call]
    return y


def attention_weights(qkv: Tensor, mask: Tensor | None) -> Tensor:
    """The attention weights (B, H, T, T) of `qkv` (B, T, 3, H, D/H), without dropout; fused kernels do not return them."""
    return _weights(qkv, mask)[0].view(len(qkv), qkv.shape[3], qkv.shape[1], qkv.shape[1])


class _Attention(torch.autograd.Function):
    """Works on a few rows of the batch at a time. Keeps the input and a byte per weight, and recomputes the weights in
    backward, so that no weights (B, H, T, T) outlive forward."""

    @staticmethod
    def forward(ctx: _DropoutContext, qkv: Tensor, mask: Tensor | None, p: float) -> Tensor:
        out, keep_masks = torch.empty_like(qkv[:, :, 0]), []
        for rows in _row_slices(qkv):
            weights, _, _, v = _weights(qkv[rows], _mask_rows(mask, rows))
            if p:
                keep_masks.append(draw_keep_mask(weights.shape, p))
                weights.mul_(keep_masks[-1].to(weights.dtype))
            out[rows] = _positions_first(torch.bmm(weights, v), qkv)
        ctx.save_for_backward(qkv, mask, *keep_masks)
        ctx.p = p
        return (out.mul_(1 / (1 - p)) if p else out).flatten(2)

    @staticmethod
    def backward(ctx: _DropoutContext, d_y: Tensor) -> tuple[Tensor, Tensor | None, None]:
        qkv, mask, *keep_masks = ctx.saved_tensors
        d_qkv, d_mask = torch.empty_like(qkv), torch.zeros_like(mask) if ctx.needs_input_grad[1] else None
        d_y, scale = d_y.view(qkv[:, :, 0].shape), qkv.shape[-1] ** -0.5
        for i, rows in enumerate(_row_slices(qkv)):
            weights, q, k, v = _weights(qkv[rows], _mask_rows(mask, rows))
            d_out = _heads_first(d_y[rows])
            d_weights, dropped = torch.bmm(d_out, v.transpose(1, 2)), weights
            if ctx.p:
                factor = keep_masks[i].to(qkv.dtype).mul_(1 / (1 - ctx.p))
                d_weights.mul_(factor)
                dropped = factor.mul_(weights)
            d_v = torch.bmm(dropped.transpose(1, 2), d_out)
            d_logits = torch._softmax_backward_data(d_weights, weights, -1, qkv.dtype)
            if (d_mask_rows := _mask_rows(d_mask, rows)) is not None:
                d_mask_rows += d_logits.unflatten(0, (-1, qkv.shape[3])).sum_to_size(d_mask_rows.shape)
            d_q, d_k = torch.bmm(d_logits, k).mul_(scale), torch.bmm(d_logits.transpose(1, 2), q).mul_(scale)
            for j, part in enumerate((d_q, d_k, d_v)):
                d_qkv[rows, :, j] = _positions_first(part, qkv)
        return d_qkv, d_mask, None


def _row_slices(qkv: Tensor) -> Iterator[slice]:
    """Slices of the batch with at most `MAX_WEIGHTS` attention weights each."""
    B, T, _, H, _ = qkv.shape
    step = max(1, MAX_WEIGHTS // (H * T * T))
    return (slice(start, start + step) for start in range(0, B, step))


def _mask_rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The part of a mask for these rows of the batch; all of it if the rows share one mask."""
    return mask[rows] if mask is not None and mask.ndim == 4 and len(mask) > 1 else mask


def _heads_first(x: Tensor) -> Tensor:
    """(B, T, H, D/H) to (B·H, T, D/H)."""
    return x.transpose(1, 2).flatten(0, 1)


def _positions_first(x: Tensor, qkv: Tensor) -> Tensor:
    """(B·H, T, D/H) to (B, T, H, D/H)."""
    y: Tensor = x.unflatten(0, (-1, qkv.shape[3])).transpose(1, 2)
    return y


def _weights(qkv: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention weights (B·H, T, T), and the queries, keys and values, (B·H, T, D/H)."""
    q, k, v = (_heads_first(part) for part in qkv.unbind(2))
    if mask is None:
        logits = torch.bmm(q, k.transpose(1, 2)).mul_(q.shape[-1] ** -0.5)
    else:
        if not mask.is_floating_point():
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
        mask = mask.expand(len(qkv), qkv.shape[3], *mask.shape[-2:]).flatten(0, 1)
        logits = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.softmax(logits, -1, out=logits), q, k, v


# --- dropout


class Dropout(nn.Module):
    """Zero elements with probability `p` in training, and scale the rest by 1 / (1 - p)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return dropout(x, self.p) if use_cpu_kernels(x) else F.dropout(x, self.p)


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero elements of `x` with probability `p`, rounded to a multiple of 2^-16, and scale the rest by 1 / (1 - p)."""
    y: Tensor = _Dropout.apply(x, p)  # type: ignore[no-untyped-call]
    return y


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _DropoutContext, x: Tensor, p: float) -> Tensor:
        keep_mask = draw_keep_mask(x.shape, p)
        ctx.save_for_backward(keep_mask)
        ctx.p = p
        return _apply_keep_mask(x, keep_mask, p)

    @staticmethod
    def backward(ctx: _DropoutContext, d_y: Tensor) -> tuple[Tensor, None]:
        (keep_mask,) = ctx.saved_tensors
        return _apply_keep_mask(d_y, keep_mask, ctx.p), None


def draw_keep_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """A byte for each element of `shape`, on the CPU: 0 with probability `p`, else 1.

    PyTorch draws a random number per element. Here four elements share 64 bits of NumPy's SFC64, which takes half as long as
    PyTorch's generator and is seeded by it."""
    count = math.prod(shape)
    seed = int(torch.randint(2**63 - 1, ()))
    draws = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16))
    return (draws[:count] >= round(p * 2**16) - 2**15).view(torch.uint8).view(shape)


def _apply_keep_mask(x: Tensor, keep_mask: Tensor, p: float) -> Tensor:
    factor = keep_mask.to(x.dtype).mul_(1 / (1 - p))  # from bytes: multiplying by booleans takes three times as long
    return factor.mul_(x)


# --- feed-forward


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Linear, GELU, Linear on `x` (…, D), in autocast's precision where that is on."""
    inputs: tuple[Tensor, ...] = (x, w1, b1, w2, b2)
    if torch.is_autocast_enabled("cpu"):
        inputs = tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs)
    y: Tensor = _FeedForward.apply(*inputs)  # type: ignore[no-untyped-call]
    return y


class _FeedForward(torch.autograd.Function):
    """Keeps the input of the GELU but not its output (B, T, 4D), which backward recomputes."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        inner = F.linear(x, w1, b1)
        ctx.save_for_backward(x, inner, w1, w2)
        return F.linear(F.gelu(inner), w2, b2)

    @staticmethod
    def backward(ctx: _Context, d_y: Tensor) -> tuple[Tensor, ...]:
        x, inner, w1, w2 = ctx.saved_tensors
        shape = x.shape
        x, inner, d_y = x.flatten(0, -2), inner.flatten(0, -2), d_y.flatten(0, -2)
        d_w2 = d_y.t() @ F.gelu(inner)
        d_inner = d_y @ w2
        torch.ops.aten.gelu_backward.grad_input(d_inner, inner, grad_input=d_inner)
        return (d_inner @ w1).view(shape), d_inner.t() @ x, d_inner.sum(0), d_w2, d_y.sum(0)


# --- norm and GELU


def norm_gelu(x: Tensor, norm: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """GELU of the layer norm of `x` (…, D), keeping only `x` for backward. `norm`: None is a layer norm without parameters."""

    def compute(x: Tensor) -> Tensor:
        return F.gelu(layer_norm(x) if norm is None else norm(x))

    if not x.requires_grad or not use_cpu_kernels(x):
        return compute(x)
    y: Tensor = checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)
    return y


# --- strided convolution


def conv1d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A convolution over time with channels last: `x` (B, T, C), `weight` (O, C, kernel), to (B, T', O).

    Raises ValueError when T is shorter than the kernel."""
    if x.shape[1] < weight.shape[2]:
        raise ValueError(f"an input of {x.shape[1]} steps is shorter than the kernel of {weight.shape[2]}")
    if x.shape[2] == 1:
        return F.linear(x.squeeze(2).unfold(1, weight.shape[2], stride), weight.squeeze(1))
    if autocast_is_on(x):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    y: Tensor = _Conv1d.apply(x.contiguous(), weight, stride)  # type: ignore[no-untyped-call]
    return y


class _Conv1d(torch.autograd.Function):
    """Matrix products on views of the input, without unfolding it.

    Seen as rows of `stride` steps, (T/stride, stride·C), a kernel that spans several rows is a sum of products, each
    of the input shifted by one row."""

    @staticmethod
    def forward(ctx: _ConvContext, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        length = (x.shape[1] - weight.shape[2]) // stride + 1
        y = x.new_empty(len(x), length, weight.shape[0])
        for part in _kernel_parts(weight.shape[2], stride):
            matrix = _kernel_matrix(weight, part)
            for b, rows in enumerate(_input_rows(x, part, stride, length)):
                y[b].addmm_(rows, matrix.T, beta=int(part[0] > 0))
        return y

    @staticmethod
    def backward(ctx: _ConvContext, d_y: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        d_y = d_y.contiguous()
        length, (O, C, kernel) = d_y.shape[1], weight.shape
        d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        if d_x is not None:  # the first part of the kernel overwrites all other rows
            d_x[:, length * ctx.stride if kernel >= ctx.stride else 0 :] = 0
        d_parts = []
        for part in _kernel_parts(kernel, ctx.stride):
            matrix = _kernel_matrix(weight, part)
            d_parts.append(torch.zeros_like(matrix))
            for b, rows in enumerate(_input_rows(x, part, ctx.stride, length)):
                d_parts[-1].addmm_(d_y[b].T, rows)
            for b, rows in enumerate(_input_rows(d_x, part, ctx.stride, length) if d_x is not None else ()):
                rows.addmm_(d_y[b], matrix, beta=int(part[0] > 0 or kernel < ctx.stride))
        return d_x, torch.cat([part.view(O, -1, C) for part in d_parts], 1).transpose(1, 2), None


def _kernel_parts(kernel: int, stride: int) -> list[tuple[int, int]]:
    """The parts (first, last) of a kernel that fit into one row of `stride` steps."""
    return [(first, min(first + stride, kernel)) for first in range(0, kernel, stride)]


def _input_rows(x: Tensor, part: tuple[int, int], stride: int, length: int) -> Iterator[Tensor]:
    """For each sample of `x` (B, T, C), the inputs of a part of the kernel, (length, steps·C), as a view."""
    (_, T, C), (first, last) = x.shape, part
    for b in range(len(x)):
        offset = x.storage_offset() + (b * T + first) * C
        yield x.as_strided((length, (last - first) * C), (stride * C, 1), offset)


def _kernel_matrix(weight: Tensor, part: tuple[int, int]) -> Tensor:
    """The steps first..last of `weight` (O, C, kernel) as a matrix (O, steps·C)."""
    return weight[:, :, part[0] : part[1]].transpose(1, 2).flatten(1)
