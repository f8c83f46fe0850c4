"""Encoders under torch.func and torch.compile, which know nothing of our own kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from data2vec.batch import Batch
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.recipe.loading import load_recipe

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by torch's own rules

SMALL = {"encoder.width": 16, "encoder.heads": 2, "encoder.ffn_width": 32, "encoder.layers": 2, "objective.target.top_k": 2}
Function = Callable[[dict[str, Tensor], Tensor], Tensor]


def encoder_and_input(name: str) -> tuple[Encoder, Tensor]:
    """In training mode, with dropout and drop path if the recipe has them."""
    recipe = load_recipe(name, SMALL | {"train.device": "cpu"})
    modality = recipe.build_modality()
    torch.manual_seed(0)
    encoder = build_encoder(modality, recipe.encoder)
    kind = recipe.modality.name
    if kind == "text":
        return encoder, torch.randint(4, 100, (2, 12))
    return encoder, torch.randn(2, 3, 32, 32) if kind == "vision" else torch.randn(2, 3000)


def output_of(encoder: Encoder) -> Function:
    """From weights and an input (B, …) to the output (B, T, D), with the same dropout at every call."""

    def output(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Any = functional_call(encoder, weights, (Batch(x),))
        return result[0]

    return output


@pytest.mark.parametrize("name", ["speech/v1-tiny", "vision/v1-tiny", "vision/v2-tiny", "text/v2-tiny"])
def test_torch_func_gives_the_derivatives_of_an_encoder(name: str) -> None:
    encoder, x = encoder_and_input(name)
    encoder.eval()
    weights, output = dict(encoder.named_parameters()), output_of(encoder)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return output(weights, x).square().mean()

    expected = torch.autograd.grad(loss(weights, x), list(weights.values()), allow_unused=True)
    found = grad(loss)(weights, x)
    for key, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(
            found[key], torch.zeros_like(found[key]) if gradient is None else gradient, rtol=1e-4, atol=1e-6
        )
    each = vmap(grad(lambda weights, row: loss(weights, row[None])), in_dims=(None, 0))(weights, x)
    for row in (0, 1):
        alone = grad(loss)(weights, x[row : row + 1])
        for key in weights:
            torch.testing.assert_close(each[key][row], alone[key], rtol=1e-3, atol=1e-6)
    tangents = {key: torch.randn_like(weight) for key, weight in weights.items()}
    value, forward = jvp(lambda weights: output(weights, x), (weights,), (tangents,))
    _, backward = vjp(lambda weights: output(weights, x), weights)
    cotangent = torch.randn_like(value)
    (pulled,) = backward(cotangent)
    inner = torch.stack([(pulled[key] * tangents[key]).sum() for key in weights]).sum()
    torch.testing.assert_close((forward * cotangent).sum(), inner, rtol=1e-3, atol=1e-3)


def test_torch_func_draws_the_dropout_of_training() -> None:
    encoder, x = encoder_and_input("text/v1-tiny")
    encoder.transformer.input_dropout.p = 0.5
    weights, output = dict(encoder.named_parameters()), output_of(encoder.train())
    first, second = vmap(lambda row: output(weights, row), randomness="different")(torch.stack([x, x]))
    assert not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speech/v2-tiny", "vision/v1-tiny", "text/v1-tiny"])
def test_a_compiled_encoder_is_one_graph_with_the_same_outputs_and_gradients(name: str) -> None:
    encoder, x = encoder_and_input(name)
    encoder.eval()
    padding = None if x.ndim == 4 else torch.arange(x.shape[1]) >= torch.tensor([[x.shape[1]], [x.shape[1] // 2]])
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    found = []
    for each in (encoder, compiled):
        encoder.zero_grad()
        output, _ = each(Batch(x, padding))
        output.square().mean().backward()
        found.append([output.detach(), *(p.grad.clone() for p in encoder.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
