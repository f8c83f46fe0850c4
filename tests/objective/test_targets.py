import pytest
import torch

from data2vec.nn.transformer import BlockOutput
from data2vec.objective.targets import NORMS, TargetSettings, average_top_k


@pytest.fixture
def states() -> list[torch.Tensor]:
    return list(torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1)


def visited(settings: TargetSettings, states: list[torch.Tensor]) -> torch.Tensor:
    outputs = (BlockOutput(i, ffn=state, block=-state) for i, state in enumerate(states))
    return average_top_k(outputs, len(states), settings)


def test_the_last_k_layers_are_averaged(states: list[torch.Tensor]) -> None:
    plain = TargetSettings(top_k=2, per_layer_norms=())
    torch.testing.assert_close(visited(plain, states), (states[2] + states[3]) / 2)
    torch.testing.assert_close(
        visited(TargetSettings(source="block", top_k=2, per_layer_norms=()), states), -(states[2] + states[3]) / 2
    )


@pytest.mark.parametrize(("norm", "axes"), [("instance", (1,)), ("layer", (2,)), ("batch", (0, 1)), ("group", (1, 2))])
def test_what_each_norm_makes_zero_and_one(norm: str, axes: tuple[int, ...], states: list[torch.Tensor]) -> None:
    y = NORMS[norm](states[0])
    torch.testing.assert_close(y.mean(axes), torch.zeros_like(y.mean(axes)), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(axes, unbiased=False), torch.ones_like(y.mean(axes)), atol=1e-4, rtol=0)


def test_norms_come_before_and_after_averaging(states: list[torch.Tensor]) -> None:
    expected = NORMS["layer"]((NORMS["instance"](states[2]) + NORMS["instance"](states[3])) / 2)
    torch.testing.assert_close(visited(TargetSettings(top_k=2, final_norms=("layer",)), states), expected)


def test_targets_are_float32_whatever_comes() -> None:
    assert visited(TargetSettings(top_k=1), [torch.randn(2, 4, 3, dtype=torch.bfloat16)]).dtype == torch.float32
