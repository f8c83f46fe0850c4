import pytest
import torch
from torch.nn import functional as F

from data2vec.nn.layer_norm import LayerNorm


def norm_of(width: int) -> LayerNorm:
    torch.manual_seed(0)
    norm = LayerNorm(width, eps=1e-6)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    return norm


def test_layer_norm_without_autocast_is_that_of_pytorch() -> None:
    norm, x = norm_of(16), torch.randn(2, 3, 16)
    assert torch.equal(norm(x), F.layer_norm(x, (16,), norm.weight, norm.bias, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm_under_autocast_gives_its_precision_with_statistics_in_float32(dtype: torch.dtype) -> None:
    """The mean of 4,096 numbers around 3 has an error of several per cent when it is added up in bf16."""
    norm, x = norm_of(4096), (torch.randn(2, 4096) + 3).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    exact = F.layer_norm(x.detach().double(), (4096,), norm.weight.double(), norm.bias.double(), 1e-6)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=2**-8)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert gradient.dtype == dtype


def test_gradients_of_weight_and_bias_under_autocast_are_added_up_in_float32() -> None:
    """Added up in bf16, the gradient of a bias over 4,096 positions is off by more than a tenth."""
    norm, x, seed = norm_of(16), torch.randn(4096, 16).bfloat16(), (torch.randn(4096, 16) + 0.1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        gradients = torch.autograd.grad(norm(x), [norm.weight, norm.bias], seed)
    exact = torch.autograd.grad(
        F.layer_norm(x.double(), (16,), norm.weight.double(), norm.bias.double(), 1e-6), [norm.weight, norm.bias], seed.double()
    )
    torch.testing.assert_close(gradients, exact, rtol=1e-3, atol=1e-2)
