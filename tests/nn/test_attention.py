import pytest
import torch
from torch.nn import functional as F

from data2vec.nn.attention import Attention, attention_mask
from helpers.attention_masks import MASK_KINDS, build_attention_mask


def test_attention_without_key_bias_equals_a_key_bias_of_zero() -> None:
    torch.manual_seed(0)
    full, lean = Attention(8, 2), Attention(8, 2, key_bias=False)
    assert lean.q_bias is not None and lean.v_bias is not None
    with torch.no_grad():
        lean.q_bias.normal_(), lean.v_bias.normal_()
        full.qkv.bias.copy_(torch.cat([lean.q_bias, torch.zeros(8), lean.v_bias]))
        full.qkv.weight.copy_(lean.qkv.weight)
    full.out.load_state_dict(lean.out.state_dict())
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(full(x), lean(x))
    assert sum(p.numel() for p in full.parameters()) == sum(p.numel() for p in lean.parameters()) + 8


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("kind", MASK_KINDS)
def test_weights_times_values_equal_the_output(kind: str, key_bias: bool) -> None:
    torch.manual_seed(0)
    module = Attention(8, 2, dropout=0.5, key_bias=key_bias).double().eval()
    if module.q_bias is not None and module.v_bias is not None:
        with torch.no_grad():
            module.q_bias.normal_(), module.v_bias.normal_()
    x, mask = torch.randn(3, 6, 8, dtype=torch.float64), build_attention_mask(kind)
    weights = module.weights(x, mask)
    assert weights.shape == (3, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 6, dtype=torch.float64))
    bias = module.qkv.bias[16:] if module.v_bias is None else module.v_bias
    values = F.linear(x, module.qkv.weight[16:], bias).view(3, 6, 2, 4).transpose(1, 2)
    torch.testing.assert_close(module.out((weights @ values).transpose(1, 2).flatten(2)), module(x, mask))


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_attention_in_bf16_is_close_to_fp32(kind: str) -> None:
    torch.manual_seed(0)
    module, x, mask = Attention(8, 2, dropout=0.2), torch.randn(3, 6, 8), build_attention_mask(kind, torch.float32)
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = module(x, mask)
        results.append([y.float(), *torch.autograd.grad(y.float().square().sum(), [module.qkv.weight, module.out.weight])])
    for exact, near in zip(*results, strict=True):
        assert (exact - near).norm() < 0.03 * exact.norm()


def test_padding_does_not_change_other_positions() -> None:
    torch.manual_seed(0)
    module = Attention(8, 2).eval()
    x = torch.randn(1, 6, 8)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    torch.testing.assert_close(module(x, attention_mask(None, padding, 0))[:, :4], module(x[:, :4]))


def test_extra_tokens_are_never_padding() -> None:
    mask = attention_mask(None, torch.tensor([[True, False]]), extra=1)
    assert mask is not None and mask.flatten().tolist() == [True, False, True]
