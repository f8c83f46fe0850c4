import math

import pytest
import torch
from torch import nn

from data2vec.recipe.loading import load_recipe
from data2vec.recipe.train_settings import Cosine, Polynomial, TrainSettings, TriStage
from data2vec.train.optimizer import (
    build_adamw,
    clip_grad_norm,
    clip_in_step,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)


def rates(schedule: object, *steps: int) -> list[float]:
    return [learning_rate(TrainSettings(steps=100, lr=2.0, schedule=schedule), step) for step in steps]  # type: ignore[arg-type]


def test_tri_stage_warms_up_holds_and_decays_exponentially() -> None:
    schedule = TriStage(warmup=0.1, hold=0.5, initial_scale=0.1, final_scale=0.01)
    # warm-up: 0.2 + 1.8 * step / 10; hold until 60; then 2 * 0.01 ** ((step - 60) / 40)
    assert rates(schedule, 1, 5, 10, 60, 80, 100) == pytest.approx([0.38, 1.1, 2.0, 2.0, 0.2, 0.02])


def test_tri_stage_without_warmup_and_decay_is_constant() -> None:
    assert rates(TriStage(warmup=0, hold=1), 1, 50, 100) == [2.0, 2.0, 2.0]


def test_cosine_ends_at_its_final_rate() -> None:
    schedule = Cosine(warmup_steps=20, final_lr=0.5)
    quarter = 0.5 + 0.75 * (1 + math.cos(math.pi / 4))
    assert rates(schedule, 1, 10, 20, 40, 60, 100) == pytest.approx([0.1, 1.0, 2.0, quarter, 1.25, 0.5])


def test_polynomial_decays_to_zero_by_its_power() -> None:
    assert rates(Polynomial(warmup_steps=20), 10, 20, 60, 100) == pytest.approx([1.0, 2.0, 1.0, 0.0])
    assert rates(Polynomial(power=2.0), 50) == pytest.approx([0.5])


def test_cosine_with_warmup_longer_than_the_run_only_warms_up() -> None:
    assert rates(Cosine(warmup_steps=200), 1, 100) == pytest.approx([0.01, 1.0])


@pytest.mark.parametrize("name", ["speech/v1-tiny", "vision/v1-tiny", "text/v1-tiny"])
def test_parameter_groups_by_default_decay_matrices_only(name: str) -> None:
    recipe = load_recipe(name)
    objective = recipe.build_objective()
    names = {id(parameter): key for key, parameter in objective.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(objective, recipe.train))
    assert decayed | plain == {key for key, p in objective.named_parameters() if p.requires_grad}
    assert not any(key.startswith("teacher") for key in decayed | plain)
    assert {"head.0.weight", "student.transformer.blocks.0.ffn.0.weight"} <= decayed
    never = ("bias", "mask_vector", "extra_tokens", "norm", "scale", "position_encoder.table")
    assert not [key for key in decayed if any(word in key for word in never)]
    assert all(
        p.ndim < 2 or "extra_tokens" in names[id(p)] or "table" in names[id(p)]
        for p in objective.parameters()
        if names[id(p)] in plain
    )


def test_parameter_groups_with_weight_decay_on_all_decay_every_parameter() -> None:
    groups = parameter_groups(
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), TrainSettings(weight_decay_on="all", weight_decay=0.3)
    )
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(4, 0.3)]


def test_adamw_weight_decay_is_decoupled_and_scaled_by_the_learning_rate() -> None:
    layer = nn.Linear(1, 1)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    optimizer = build_adamw(layer, TrainSettings(lr=0.1, weight_decay=0.5))
    layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.zeros(1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(1 - 0.1 * 0.5)
    assert layer.bias.item() == 1


def test_learning_rate_of_a_group_is_scaled_by_its_factor() -> None:
    layers = nn.ModuleDict({"low": nn.Linear(1, 1), "high": nn.Linear(1, 1)})
    settings = TrainSettings(steps=100, lr=2.0, schedule=Cosine(warmup_steps=20, final_lr=0.5))
    optimizer = build_adamw(layers, settings, lambda name: {"low": 0.1, "high": 1.0}[name.split(".")[0]])

    def rates(step: int) -> set[float]:
        set_learning_rate(optimizer, settings, step)
        return {group["lr"] for group in optimizer.param_groups}

    assert len(optimizer.param_groups) == 4  # each with weight decay and without
    assert rates(20) == {0.2, 2.0}
    assert rates(60) == {0.2, 1.25}  # the final rate is the same for all, but not above a group's peak
    assert rates(100) == {0.2, 0.5}


@pytest.mark.parametrize("limit", [0.0, 1.0, 10.0])
def test_clipping_in_the_step_gives_the_weights_of_clipping_before_it(limit: float) -> None:
    weights = []
    for clip in (clip_grad_norm, clip_in_step):
        layer = nn.Linear(2, 1)
        nn.init.ones_(layer.weight), nn.init.ones_(layer.bias)
        optimizer = build_adamw(layer, TrainSettings(lr=0.1, eps=0.1))
        layer.weight.grad, layer.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
        given = layer.parameters() if clip is clip_grad_norm else optimizer
        assert clip(given, limit).item() == 5  # type: ignore[arg-type]
        optimizer.step()
        weights.append(torch.cat([layer.weight[0], layer.bias]))
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(("limit", "after"), [(0.0, 5.0), (1.0, 1.0), (10.0, 5.0)])
def test_clip_grad_norm_above_the_limit_scales_the_global_norm_to_it(limit: float, after: float) -> None:
    parameters = [torch.zeros(1, requires_grad=True) for _ in range(3)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip_grad_norm(parameters, limit).item() == 5
    norm = math.hypot(*(p.grad.item() for p in parameters if p.grad is not None))
    assert norm == pytest.approx(after)
