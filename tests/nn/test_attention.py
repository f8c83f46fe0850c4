import pytest
import torch
from torch.nn import functional as F

from data2vec.nn import attention
from data2vec.nn.attention import Attention, attention_mask
from data2vec.nn.dropout import Dropout, draw_keep


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


def mask_of(kind: str, dtype: torch.dtype = torch.float64) -> torch.Tensor | None:
    """A mask for 3 rows of 6 positions and 2 heads, of every kind that `attention_mask` makes and `Attention` takes."""
    bias = torch.randn(2, 6, 6, dtype=dtype) if kind in ("bias", "both") else None
    bias = torch.randn(3, 2, 6, 6, dtype=dtype) if kind in ("bias of each row", "both of each row") else bias
    padding = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None] if kind.startswith(("padding", "both")) else None
    return attention_mask(bias, padding, extra=0)


def plain(qkv: torch.Tensor, mask: torch.Tensor | None, p: float) -> torch.Tensor:
    """What `_Attend` computes in tiles of one row, in the words of the formula."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits + mask if mask.is_floating_point() else logits.masked_fill(~mask, float("-inf"))
    keep = torch.cat([draw_keep((2, 6, 6), p) for _ in qkv]).view_as(logits) / (1 - p) if p else 1
    return ((logits.softmax(-1) * keep) @ v).transpose(1, 2).flatten(2)


KINDS = ["none", "bias", "padding", "both", "bias of each row", "both of each row"]


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_attention_by_hand_is_the_formula_in_value_and_gradient(kind: str, p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TILE", 1)
    torch.manual_seed(0)
    qkv, mask = torch.randn(3, 6, 3, 2, 4, dtype=torch.float64, requires_grad=True), mask_of(kind)
    inputs = [qkv] if mask is None or not mask.is_floating_point() else [qkv, mask.requires_grad_()]
    results = []
    for function in (attention._Attend.apply, plain):
        torch.manual_seed(1)
        y = function(qkv, mask, p)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_it_is_the_fused_kernel_however_many_rows_at_a_time(
    kind: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "TILE", rows * 2 * 6 * 6)
    torch.manual_seed(0)
    qkv, mask = torch.randn(3, 6, 3, 2, 4, dtype=torch.float64), mask_of(kind)
    fused = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), attn_mask=mask)
    torch.testing.assert_close(attention._Attend.apply(qkv, mask, 0.0), fused.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("key_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_times_values_is_what_comes_out(kind: str, key_bias: bool) -> None:
    torch.manual_seed(0)
    module = Attention(8, 2, dropout=0.5, key_bias=key_bias).double().eval()
    if module.q_bias is not None and module.v_bias is not None:
        with torch.no_grad():
            module.q_bias.normal_(), module.v_bias.normal_()
    x, mask = torch.randn(3, 6, 8, dtype=torch.float64), mask_of(kind)
    weights = module.weights(x, mask)
    assert weights.shape == (3, 2, 6, 6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 6, dtype=torch.float64))
    bias = module.qkv.bias[16:] if module.v_bias is None else module.v_bias
    values = F.linear(x, module.qkv.weight[16:], bias).view(3, 6, 2, 4).transpose(1, 2)
    torch.testing.assert_close(module.out((weights @ values).transpose(1, 2).flatten(2)), module(x, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_in_bf16_is_near_to_fp32(kind: str) -> None:
    torch.manual_seed(0)
    module, x, mask = Attention(8, 2, dropout=0.2), torch.randn(3, 6, 8), mask_of(kind, torch.float32)
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = module(x, mask)
        results.append([y.float(), *torch.autograd.grad(y.float().square().sum(), [module.qkv.weight, module.out.weight])])
    for exact, near in zip(*results, strict=True):
        assert (exact - near).norm() < 0.03 * exact.norm()


def test_padding_does_not_reach_what_is_there() -> None:
    torch.manual_seed(0)
    module = Attention(8, 2).eval()
    x = torch.randn(1, 6, 8)
    padding = torch.tensor([[False] * 4 + [True] * 2])
    torch.testing.assert_close(module(x, attention_mask(None, padding, 0))[:, :4], module(x[:, :4]))


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
