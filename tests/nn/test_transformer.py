from itertools import islice, pairwise

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from data2vec.nn.transformer import Attention, Block, DropPath, Transformer, TransformerSettings, attention_mask
from helpers.attention_masks import MASK_KINDS, build_attention_mask

SMALL = {"width": 16, "layers": 3, "heads": 2, "ffn_width": 32}


def small(**changes: object) -> TransformerSettings:
    return TransformerSettings(**{**SMALL, "dropout": 0.0, "attention_dropout": 0.0, **changes})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="width 16 is not a multiple of heads 3"):
        small(heads=3)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("extra", [0, 2])
def test_block_outputs_leave_out_extra_tokens_and_end_in_the_output(norm: str, extra: int) -> None:
    torch.manual_seed(0)
    model = Transformer(small(norm=norm, extra_tokens=extra, final_norm=norm == "pre")).eval()
    x = torch.randn(2, 5, 16)
    out, outputs = model(x), list(model.block_outputs(x))
    assert out.shape == (2, extra + 5, 16) and [output.layer for output in outputs] == [0, 1, 2]
    assert all(output.state.shape == output.block.shape == (2, 5, 16) for output in outputs)
    torch.testing.assert_close(model.final_norm(outputs[2].block), out[:, extra:])


def test_block_outputs_runs_no_block_beyond_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(small()).eval()
    monkeypatch.setattr(model.blocks[2], "forward", lambda *_: pytest.fail("the last block was computed"))
    assert [output.layer for output in islice(model.block_outputs(torch.randn(1, 4, 16)), 2)] == [0, 1]


def test_block_equals_the_formula_of_the_paper() -> None:
    """Post-norm: the feed-forward output is what is added before the last norm. Pre-norm: what is added last."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 16)
    post = Transformer(small()).eval().blocks[0]
    out, fed = post(x)
    middle = post.norm1(x + post.attention(x))
    torch.testing.assert_close(fed, post.ffn(middle))
    torch.testing.assert_close(out, post.norm2(middle + fed))
    pre = Transformer(small(norm="pre", layer_scale=0.5)).eval().blocks[0]
    out, fed = pre(x)
    middle = x + 0.5 * pre.attention(pre.norm1(x))
    torch.testing.assert_close(fed, 0.5 * pre.ffn(pre.norm2(middle)))
    torch.testing.assert_close(out, middle + fed)


@pytest.mark.parametrize(("norm", "scale"), [("post", None), ("pre", None), ("pre", 0.5)])
def test_block_state_of_each_source_equals_the_formula(norm: str, scale: float | None) -> None:
    torch.manual_seed(0)
    block, x = Transformer(small(norm=norm, layer_scale=scale)).eval().blocks[0], torch.randn(2, 4, 16)
    torch.nn.init.normal_(block.norm1.weight), torch.nn.init.normal_(block.norm2.weight)  # so that no two norms are alike
    s = scale or 1.0
    if norm == "pre":
        attended = s * block.attention(block.norm1(x))
        fed = s * block.ffn(block.norm2(x + attended))
        residual = output = x + attended + fed
    else:
        attended = block.attention(x)
        middle = block.norm1(x + attended)
        fed = block.ffn(middle)
        residual, output = middle + fed, block.norm2(middle + fed)
    for source, expected in {"attention": attended, "ffn": fed, "residual": residual, "block": output}.items():
        out, state = block(x, None, source)
        torch.testing.assert_close(state, expected)
        torch.testing.assert_close(out, output)


def test_block_outputs_carry_the_state_of_the_source_without_extra_tokens() -> None:
    torch.manual_seed(0)
    model, x = Transformer(small(extra_tokens=2)).eval(), torch.randn(2, 5, 16)
    first = next(model.block_outputs(x, source="attention"))
    torch.testing.assert_close(first.state, model.blocks[0].attention(model.embed(x))[:, 2:])
    assert torch.equal(next(model.block_outputs(x, source="block")).state, first.block)


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_residual_branch_is_scaled_dropped_and_added(scale: float | None, dropout: float) -> None:
    torch.manual_seed(0)
    block = Block(small(layer_scale=scale, dropout=dropout, drop_path=0.5), 2)
    x, branch = torch.randn(64, 5, 16), torch.randn(64, 5, 16)
    y, scaled = block._add_residual(x, branch, block.scale1), branch * (scale or 1)
    rest = y - x
    kept = rest.flatten(1).abs().amax(1) > 0
    assert 16 < kept.sum() < 48  # 32 expected; four standard errors
    there = rest[kept].abs() > 1e-5
    torch.testing.assert_close(rest[kept][there], (scaled[kept] * 2 / (1 - dropout))[there], rtol=1e-4, atol=1e-5)
    assert (there.float().mean() - (1 - dropout)).abs() < 0.05


def test_layerdrop_skips_blocks_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = Transformer(small(layers=8, layerdrop=0.5)), torch.randn(1, 4, 16)
    counts = []
    for _ in range(200):
        counts.append(len(list(model.block_outputs(x))))
    assert 3.5 < sum(counts) / 200 < 4.5  # 4 expected; ten standard errors
    assert [output.layer for output in model.eval().block_outputs(x)] == list(range(8))


def test_layerdrop_that_selects_outputs_equals_layerdrop_that_skips_blocks() -> None:
    torch.manual_seed(0)
    model, x = Transformer(small(layers=8, layerdrop=0.5)), torch.randn(2, 4, 16)
    model.layerdrop_generator.manual_seed(1)
    skipping = [model(x) for _ in range(3)]
    model.layerdrop_generator.manual_seed(1)
    model.kept_blocks = torch.ones(8, dtype=torch.bool)
    for expected in skipping:
        model.draw_kept_blocks()
        assert 0 < model.kept_blocks.sum() < 8
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("norm", "dtype"), [("post", torch.bfloat16), ("pre", torch.float32)])
def test_residual_stream_under_autocast_is_normed_between_blocks_or_in_float32(norm: str, dtype: torch.dtype) -> None:
    """Pre-norm blocks add to it without a norm: small additions would be lost in bf16."""
    model, x = Transformer(small(norm=norm, layer_scale=1e-4 if norm == "pre" else None)).eval(), torch.randn(2, 4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        first = next(model.block_outputs(x))
    assert first.block.dtype == dtype and first.state.dtype in (torch.bfloat16, torch.float32)
    if norm == "pre":
        change = first.block - model.embed(x)
        assert 0 < change.abs().max() < 1e-2


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_weights_in_bf16_need_no_autocast(norm: str) -> None:
    torch.manual_seed(0)
    model, x = Transformer(small(norm=norm, layer_scale=0.1, extra_tokens=1)).eval(), torch.randn(2, 4, 16)
    expected = model(x)
    half = model.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.05)


def test_attention_bias_is_cast_once_for_all_blocks() -> None:
    bias = torch.randn(2, 4, 4)
    mask = attention_mask(bias, torch.tensor([[False, False, False, True]]), 0, torch.bfloat16)
    assert mask is not None and mask.dtype == torch.bfloat16 and mask[..., 3].isneginf().all()
    torch.testing.assert_close(mask[0, ..., :3].float(), bias[..., :3], rtol=2**-8, atol=0)


def test_attention_bias_off_the_cpu_has_rows_that_fused_kernels_can_read() -> None:
    mask = attention_mask(torch.zeros(2, 13, 13, device="meta"), None, 0, torch.bfloat16)
    assert mask is not None and mask.shape == (1, 2, 13, 13) and all(stride % 8 == 0 for stride in mask.stride()[:-1])


def test_layerdrop_of_all_blocks_gives_the_embedded_input() -> None:
    model = Transformer(small(layerdrop=0.999999))
    x = torch.randn(1, 4, 16)
    torch.testing.assert_close(model(x), model.input_norm(x))


def test_drop_path_grows_with_depth() -> None:
    rates = [1 - block.drop_path.keep_prob.item() for block in Transformer(small(drop_path=0.2)).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_initial_weights() -> None:
    torch.manual_seed(0)
    wide = {"width": 128, "ffn_width": 512, "extra_tokens": 1}
    bert, beit = Transformer(small(**wide)), Transformer(small(**wide, init="beit"))
    assert bert.blocks[2].ffn[-1].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert beit.blocks[0].ffn[0].weight.abs().max().item() <= 0.02
    ratio = beit.blocks[2].attention.out.weight.std() / beit.blocks[2].attention.qkv.weight.std()
    assert ratio.item() == pytest.approx(6**-0.5, rel=0.03)
    assert all(p.abs().max() == 0 for n, p in bert.named_parameters() if n.endswith("bias"))
    assert beit.extra_tokens is not None and 0 < beit.extra_tokens.abs().max() <= 0.02


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


def test_drop_path_drops_complete_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert abs(y.mean().item() - 1) < 0.05
    assert set(y.flatten(1).std(1).tolist()) == {0.0}


@pytest.mark.parametrize("extra", [0, 1])
def test_states_are_the_input_of_the_first_block_and_the_output_of_every_block(extra: int) -> None:
    model, x = Transformer(TransformerSettings(**SMALL, extra_tokens=extra)).eval(), torch.randn(2, 4, 16)
    states = list(model.states(x))
    assert len(states) == len(model.blocks) + 1
    torch.testing.assert_close(states[0], model.embed(x)[:, extra:])
    for state, output in zip(states[1:], model.block_outputs(x), strict=True):
        torch.testing.assert_close(state, output.block)


def test_states_run_no_block_beyond_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Transformer(TransformerSettings(**SMALL)).eval()
    monkeypatch.setattr(model.blocks[1], "forward", lambda *_: pytest.fail("ran"))
    assert len(list(islice(model.states(torch.randn(1, 4, 16)), 2))) == 2


def test_states_of_blocks_that_layerdrop_skips_are_their_inputs() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerSettings(**{**SMALL, "layers": 8, "dropout": 0.0}, layerdrop=0.5)).train()
    states = list(model.states(torch.randn(1, 4, 16)))
    same = sum(torch.equal(a, b) for a, b in pairwise(states))
    assert len(states) == 9 and 0 < same < 8
