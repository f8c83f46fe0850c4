"""The CPU kernels against the PyTorch operations they replace, in values and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data2vec.nn import cpu_kernels
from data2vec.nn.cpu_kernels import Dropout, conv1d, draw_keep_mask, norm_gelu, use_cpu_kernels
from data2vec.nn.transformer import Block, TransformerSettings
from helpers.attention_masks import MASK_KINDS, build_attention_mask

SETTINGS = TransformerSettings(width=16, layers=3, heads=2, ffn_width=32, dropout=0.0, attention_dropout=0.0)


def test_cpu_kernels_are_used_for_tensors_on_a_cpu_only() -> None:
    assert use_cpu_kernels(torch.zeros(1))
    assert not use_cpu_kernels(torch.zeros(1, device="meta"))


def reference_attention(qkv: torch.Tensor, mask: torch.Tensor | None, p: float) -> torch.Tensor:
    """The formula, with dropout drawn row by row."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, float("-inf"))
    keep = torch.cat([draw_keep_mask((2, 6, 6), p) for _ in qkv]).view_as(logits) / (1 - p) if p else 1
    return ((logits.softmax(-1) * keep) @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", MASK_KINDS)
def test_attention_equals_the_formula_in_value_and_gradient(kind: str, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "MAX_WEIGHTS", 1)
    torch.manual_seed(0)
    qkv, mask = torch.randn(3, 6, 3, 2, 4, dtype=torch.float64, requires_grad=True), build_attention_mask(kind)
    inputs = [qkv] if mask is None or not mask.is_floating_point() else [qkv, mask.requires_grad_()]
    results = []
    for function in (cpu_kernels.attention, reference_attention):
        torch.manual_seed(1)
        y = function(qkv, mask, p)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("kind", MASK_KINDS)
def test_attention_without_dropout_equals_the_fused_kernel_for_any_number_of_rows_at_a_time(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "MAX_WEIGHTS", rows * 2 * 6 * 6)
    torch.manual_seed(0)
    qkv, mask = torch.randn(3, 6, 3, 2, 4, dtype=torch.float64), build_attention_mask(kind)
    fused = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), attn_mask=mask)
    torch.testing.assert_close(cpu_kernels.attention(qkv, mask, 0.0), fused.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_feed_forward_equals_the_sequence_in_value_and_gradient(precision: str) -> None:
    torch.manual_seed(0)
    block = Block(SETTINGS, 0)
    x = torch.randn(2, 5, 16, requires_grad=True)
    if precision == "fp64":
        block, x = block.double(), x.detach().double().requires_grad_()
    results = []
    for function in (block.ffn, block._feed_forward):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = function(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.ffn.parameters()])])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("affine", [False, True])
def test_norm_gelu_equals_norm_then_gelu_in_value_and_gradient(affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    nn.init.normal_(norm.weight)
    x, weight = torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 5, 8)
    results = []
    for y in (norm_gelu(x, norm if affine else None), F.gelu(norm(x) if affine else F.layer_norm(x, (8,)))):
        norm.zero_grad()
        (gradient,) = torch.autograd.grad((y * weight).sum(), x, retain_graph=True)
        results.append((y.detach(), gradient))
        if affine:
            (y * weight).sum().backward(inputs=list(norm.parameters()))
            assert norm.weight.grad is not None
            results[-1] += (norm.weight.grad.clone(),)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_norm_gelu_keeps_only_its_input_for_backward() -> None:
    saved: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(4, 6, 16, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = norm_gelu(x)
    assert sum(tensor.numel() for tensor in saved) <= x.numel()
    assert y.requires_grad


def test_norm_gelu_without_gradients_equals_norm_then_gelu() -> None:
    x = torch.randn(2, 3, 8)
    assert not norm_gelu(x).requires_grad
    torch.testing.assert_close(norm_gelu(x), F.gelu(F.layer_norm(x, (8,))))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (10, 5), (3, 1), (5, 2), (2, 3)])
def test_conv1d_equals_pytorch_in_value_and_gradient(kernel: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 53, 6, dtype=torch.double, generator=generator, requires_grad=True)
    weight = torch.randn(5, 6, kernel, dtype=torch.double, generator=generator, requires_grad=True)
    y, reference = conv1d(x, weight, stride), F.conv1d(x.transpose(1, 2), weight, stride=stride).transpose(1, 2)
    seed = torch.randn(reference.shape, dtype=torch.double, generator=generator)
    torch.testing.assert_close(y, reference)
    for gradient, expected in zip(
        torch.autograd.grad(y, [x, weight], seed), torch.autograd.grad(reference, [x, weight], seed), strict=True
    ):
        torch.testing.assert_close(gradient, expected)


def test_conv1d_takes_an_input_that_is_not_contiguous() -> None:
    x, weight = torch.randn(2, 6, 20).transpose(1, 2), torch.randn(5, 6, 3)
    torch.testing.assert_close(conv1d(x, weight, 2), F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2))


def test_conv1d_refuses_an_input_shorter_than_its_kernel() -> None:
    with pytest.raises(ValueError, match="2 steps is shorter than the kernel of 3"):
        conv1d(torch.randn(1, 2, 4), torch.randn(4, 4, 3), 2)


def test_dropout_keeps_the_configured_share_and_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_003, requires_grad=True)
    y = Dropout(0.3)(x)
    kept = (y != 0).float().mean().item()
    assert abs(kept - 0.7) < 0.003  # five standard errors are 0.0023
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / 0.7]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_is_seeded_and_off_in_evaluation() -> None:
    x, dropout = torch.randn(101), Dropout(0.5)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout.eval()(x), x)
