"""The count of operations, against counts by hand."""

import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data2vec.distributed import process_group
from data2vec.nn import cpu_kernels
from data2vec.recipe.loading import load_recipe
from data2vec.train.planning.flops import flop_counter
from data2vec.train.planning.step_cost import step_cost
from data2vec.train.train_step import TrainStep

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def counted(call, *tensors: torch.Tensor) -> int:
    with flop_counter() as counter:
        call(*tensors).sum().backward()
    return counter.get_total_flops()


def test_flops_of_a_linear_layer_are_three_products() -> None:
    x, w = torch.randn(5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True)
    assert counted(F.linear, x, w) == 3 * 2 * 5 * 7 * 3


def test_flops_of_a_linear_layer_on_data_are_two_products() -> None:
    x, w = torch.randn(5, 7), torch.randn(3, 7, requires_grad=True)
    assert counted(F.linear, x, w) == 2 * 2 * 5 * 7 * 3


def test_flops_of_a_grouped_convolution_take_the_channels_of_each_group() -> None:
    x, w = torch.randn(2, 8, 10, requires_grad=True), torch.randn(6, 4, 3, requires_grad=True)
    assert counted(lambda x, w: F.conv1d(x, w, groups=2, padding=1), x, w) == 3 * 2 * 2 * 10 * 6 * 4 * 3


def test_flops_of_the_strided_convolution_kernel_are_those_of_a_convolution() -> None:
    x, w = torch.randn(2, 11, 4, requires_grad=True), torch.randn(6, 4, 3, requires_grad=True)
    assert counted(lambda x, w: cpu_kernels.conv1d(x, w, 2), x, w) == 3 * 2 * 2 * 5 * 6 * 4 * 3


@pytest.mark.parametrize("kernel", ["fused", "with dropout"])
def test_flops_of_attention_are_two_products_and_five_backward(kernel: str) -> None:
    B, T, H, d = 2, 6, 2, 4
    qkv = torch.randn(B, T, 3, H, d, requires_grad=True)

    def fused(qkv: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))

    call = fused if kernel == "fused" else lambda qkv: cpu_kernels.attention(qkv, None, 0.1)
    assert counted(call, qkv) == (2 + 5) * 2 * B * H * T * T * d


@pytest.mark.parametrize("name", ["vision/v2-tiny", "text/v1-tiny", "speech/v2-tiny"])
def test_flops_of_a_step_agree_with_the_analytic_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import step as benchmark

    shared = {f"objective.teacher.{part}_encoder": "shared" for part in ("local", "position")}  # as the analytic count takes it
    overrides = {"train.device": "cpu", "objective.input_target": None}  # nor does it count a warm start
    recipe = load_recipe(name, overrides | (shared if name.startswith("speech") else {}))
    batch = benchmark.batch(recipe, 1)
    with process_group("cpu") as process:
        step = TrainStep(recipe.build_objective(), recipe.train, process)
        with flop_counter() as counter:
            step(1, [batch], measure=False, norm=False)
    sys.modules.pop("step")
    assert counter.get_total_flops() == pytest.approx(benchmark.operations(recipe, batch), rel=0.05)


def test_step_cost_includes_all_micro_batches(tiny: dict[str, object]) -> None:
    one = step_cost(load_recipe("vision/v1-tiny", tiny | {"data.batch_size": 8}), steps=1)
    two = step_cost(load_recipe("vision/v1-tiny", tiny), steps=1)
    assert two.flops == pytest.approx(2 * one.flops, rel=0.01)  # masks differ in size
    assert one.seconds > 0


def test_step_cost_leaves_the_random_state_alone(tiny: dict[str, object]) -> None:
    torch.manual_seed(5)
    step_cost(load_recipe("vision/v1-tiny", tiny), steps=1)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
