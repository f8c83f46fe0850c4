"""A step of each base recipe on the meta device, as a GPU would run it: no host sync, no more kernels and bytes than now."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.recipe.loading import load_recipe

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
LAYERS = {"encoder.layers": 3, "encoder.layerdrop": 0.0, "train.precision": "bf16", "objective.target.top_k": 1}
LIMITS = {  # launches, GB of eager PyTorch, GB fused: a few per cent above what was counted, at three blocks
    "speech/v1-base": (490, 27.0, 17.2),
    "vision/v1-base": (445, 23.6, 13.6),
    "text/v1-base": (327, 7.6, 6.1),
    "speech/v2-base": (610, 19.6, 11.8),
    "vision/v2-base": (441, 15.6, 10.8),
    "text/v2-base": (402, 9.9, 8.2),
}


@pytest.fixture
def roof(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/roof.py."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield __import__("roof")
    for name in ("roof", "kernel_count", "step"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", LIMITS)
def test_step_waits_for_no_device_and_stays_within_its_kernels_and_bytes(name: str, roof: Any) -> None:
    """`.item()`, `nonzero` and boolean indices raise on the meta device."""
    recipe = load_recipe(name, LAYERS)
    batch = roof.meta_batch(recipe, roof.micro_batch_rows(name))
    kernels = roof.count_step(recipe, batch)
    figures = roof.bound(recipe, batch, kernels)
    launches, eager, fused = LIMITS[name]
    assert figures["launches"] <= launches
    assert figures["gigabytes"] <= eager
    assert figures["fused_gigabytes"] <= fused
    assert set(kernels.products) == {torch.bfloat16}  # no matrix product in float32
    assert sum(kernels.products.values()) == pytest.approx(roof.operations(recipe, batch), rel=0.05)


def test_weights_are_cast_once_for_all_micro_batches_of_a_step(roof: Any) -> None:
    """The student's, in forward; norms, the teacher and gradients are cast in every micro-batch."""
    recipe = load_recipe("text/v1-tiny", {"train.precision": "bf16"})
    batch = roof.meta_batch(recipe, 2)
    one, two, three = (roof.count_step(recipe, batch, count).launches["_to_copy"] for count in (1, 2, 3))
    assert three - two == two - one < one - 4 * recipe.encoder.layers * 2  # weight and bias of four linear layers in a block


def test_host_sync_is_found(roof: Any) -> None:
    x = torch.zeros(3, device="meta")
    with roof.count_kernels():
        with pytest.raises(RuntimeError, match="meta"):
            x.sum().item()
        with pytest.raises(NotImplementedError, match="nonzero"):
            x[x > 0]


def test_count_of_a_layer_equals_the_arithmetic(roof: Any) -> None:
    """Linear, GELU and layer norm on 6 vectors of width 8 under autocast: float32 weights cast once, all else in bf16."""
    linear = torch.nn.Linear(8, 16, device="meta")
    x = torch.zeros(6, 8, device="meta", dtype=torch.bfloat16)
    with roof.count_kernels() as kernels, torch.autocast("meta", torch.bfloat16):
        y = torch.nn.functional.gelu(linear(x)) + linear(x)
        z = torch.nn.functional.layer_norm(y, (16,))
        z @ z.detach().T
    assert kernels.launches == {"_to_copy": 5, "addmm": 2, "gelu": 1, "add": 1, "native_layer_norm": 1, "mm": 1}
    assert kernels.products == {torch.bfloat16: 2 * 2 * 6 * 8 * 16 + 2 * 6 * 6 * 16}
    assert z.dtype == torch.float32  # autocast's rule for CUDA
    size = 6 * 16
    assert kernels.bytes["_to_copy"] == (8 * 16 + 16) * (4 + 2) + size * (2 + 4) + 2 * size * (4 + 2)
    assert kernels.bytes["gelu"] == 2 * size * 2 and kernels.bytes["add"] == 3 * size * 2
    _, fused = kernels.fused()
    # gelu, add, casts and norm in one kernel, which reads the two products and writes both arguments of the third
    assert fused["gelu add _to_copy native_layer_norm"] == 2 * size * 2 + 2 * size * 2
