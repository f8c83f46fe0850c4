import pytest
import torch
from pydantic import ValidationError

from data2vec.nn.transformer import DropPath, Transformer, TransformerSettings

SMALL = {"width": 16, "layers": 3, "heads": 2, "ffn_width": 32}


def small(**changes: object) -> TransformerSettings:
    return TransformerSettings(**{**SMALL, "dropout": 0.0, "attention_dropout": 0.0, **changes})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="width 16 is not a multiple of heads 3"):
        small(heads=3)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("extra", [0, 2])
def test_visited_states_are_those_of_the_sequence(norm: str, extra: int) -> None:
    torch.manual_seed(0)
    model = Transformer(small(norm=norm, extra_tokens=extra, final_norm=norm == "pre")).eval()
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    out = model(torch.randn(2, 5, 16), visit=lambda i, ffn, block: seen.update({i: (ffn, block)}))
    assert out.shape == (2, 5, 16) and sorted(seen) == [0, 1, 2]
    assert all(state.shape == (2, 5, 16) for pair in seen.values() for state in pair)
    torch.testing.assert_close(model.final_norm(seen[2][1]), out)


def test_a_block_is_what_the_paper_says() -> None:
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


def test_layerdrop_skips_blocks_in_training_only() -> None:
    torch.manual_seed(0)
    model, x = Transformer(small(layers=8, layerdrop=0.5)), torch.randn(1, 4, 16)
    counts = []
    for _ in range(200):
        visited: list[int] = []
        model(x, visit=lambda i, *_, visited=visited: visited.append(i))
        counts.append(len(visited))
    assert 3.5 < sum(counts) / 200 < 4.5  # 4 expected; ten standard errors
    visited = []
    model.eval()(x, visit=lambda i, *_: visited.append(i))
    assert visited == list(range(8))


def test_drop_path_grows_with_depth_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    rates = [block.drop_path.p for block in Transformer(small(drop_path=0.2)).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert abs(y.mean().item() - 1) < 0.05
    assert set(y.flatten(1).std(1).tolist()) == {0.0}


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
