import pytest
import torch

from data2vec.errors import UserError
from data2vec.nn.transformer import BlockOutput
from data2vec.objective.targets import NORMS, TargetSettings, average_top_k
from helpers.small_models import batch, objective, targets_of


@pytest.fixture
def states() -> list[torch.Tensor]:
    return list(torch.randn(4, 3, 7, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1)


def visited(settings: TargetSettings, states: list[torch.Tensor]) -> torch.Tensor:
    outputs = (BlockOutput(i, state, block=-state) for i, state in enumerate(states))
    return average_top_k(outputs, len(states), settings)


def test_the_last_k_layers_are_averaged(states: list[torch.Tensor]) -> None:
    plain = TargetSettings(top_k=2, per_layer_norms=())
    torch.testing.assert_close(visited(plain, states), (states[2] + states[3]) / 2)


@pytest.mark.parametrize(("norm", "axes"), [("instance", (1,)), ("layer", (2,)), ("batch", (0, 1)), ("group", (1, 2))])
def test_what_each_norm_makes_zero_and_one(norm: str, axes: tuple[int, ...], states: list[torch.Tensor]) -> None:
    y = NORMS[norm](states[0])
    torch.testing.assert_close(y.mean(axes), torch.zeros_like(y.mean(axes)), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(axes, unbiased=False), torch.ones_like(y.mean(axes)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", ["attention", "ffn", "residual", "block"])
def test_targets_are_made_of_the_state_that_source_names(source: str) -> None:
    whole, given, features = objective(target={"source": source, "top_k": 2}), batch(), torch.randn(3, 20, 16)
    student = whole.student  # the teacher is its copy before the first step
    states = [
        output.state
        for output in student.eval().transformer.block_outputs(student.position_encoder(features, None), source=source)
    ]
    expected = (NORMS["instance"](states[1]) + NORMS["instance"](states[2])) / 2
    torch.testing.assert_close(targets_of(whole, given, features), expected)


def test_residual_of_pre_norm_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective.target.source: residual equals block in pre-norm blocks"):
        objective(encoder_changes={"norm": "pre"}, target={"source": "residual", "top_k": 2})


def test_targets_of_each_layer_lie_side_by_side_with_their_norms(states: list[torch.Tensor]) -> None:
    found = visited(TargetSettings(top_k=2, final_norms=("layer",), heads="layer"), states)
    expected = [NORMS["layer"](NORMS["instance"](state)) for state in states[2:]]
    torch.testing.assert_close(found, torch.cat(expected, dim=-1))


def test_norms_come_before_and_after_averaging(states: list[torch.Tensor]) -> None:
    expected = NORMS["layer"]((NORMS["instance"](states[2]) + NORMS["instance"](states[3])) / 2)
    torch.testing.assert_close(visited(TargetSettings(top_k=2, final_norms=("layer",)), states), expected)


def test_targets_are_float32_whatever_comes() -> None:
    assert visited(TargetSettings(top_k=1), [torch.randn(2, 4, 3, dtype=torch.bfloat16)]).dtype == torch.float32
