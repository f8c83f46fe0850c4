import pytest
import torch
from torch.nn import functional as F

from data2vec.nn.attention import Attention, attention_mask
from data2vec.nn.dropout import Dropout


def test_key_without_bias_has_two_biases_and_equals_a_zero_one() -> None:
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


@pytest.mark.parametrize("kind", ["none", "bias", "padding", "both"])
def test_explicit_and_fused_attention_agree(kind: str) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).eval()
    x = torch.randn(3, 6, 8)
    bias = torch.randn(2, 6, 6) if kind in ("bias", "both") else None
    padding = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None] if kind in ("padding", "both") else None
    mask = attention_mask(bias, padding, extra=0)
    q, k, v = attention.qkv(x).view(3, 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attention._explicit(q, k, v, mask), fused)


def test_padding_does_not_reach_what_is_there() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2).eval()
    x = torch.randn(1, 6, 8)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    torch.testing.assert_close(attention(x, attention_mask(None, padding, 0))[:, :4], attention(x[:, :4]))


def test_extra_tokens_are_never_padding() -> None:
    mask = attention_mask(None, torch.tensor([[True, False]]), extra=1)
    assert mask is not None and mask.flatten().tolist() == [True, False, True]


def test_dropout_keeps_the_share_and_the_mean() -> None:
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
