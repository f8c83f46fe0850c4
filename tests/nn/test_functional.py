"""Norm and GELU in one: the same numbers, with less kept for backward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data2vec.nn.functional import norm_gelu


@pytest.mark.parametrize("affine", [False, True])
def test_values_and_gradients_are_those_of_the_two(affine: bool) -> None:
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


def test_only_the_input_is_kept_for_backward() -> None:
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(4, 6, 16, requires_grad=True) * 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = norm_gelu(x)
    assert sum(tensor.numel() for tensor in kept) <= x.numel()
    assert y.requires_grad


def test_without_gradients_it_is_only_computed() -> None:
    x = torch.randn(2, 3, 8)
    assert not norm_gelu(x).requires_grad
    torch.testing.assert_close(norm_gelu(x), F.gelu(F.layer_norm(x, (8,))))
