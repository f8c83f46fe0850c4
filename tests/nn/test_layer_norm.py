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
    rounded = [part.detach().bfloat16().double() for part in (x, norm.weight, norm.bias)]
    exact = F.layer_norm(rounded[0], (4096,), *rounded[1:], 1e-6)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=2**-8)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert gradient.dtype == dtype
