"""The decoder of data2vec 2.0, against a loop over every position and channel."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data2vec.nn.conv_decoder import ConvDecoder, ConvDecoderSettings


def decoder(width: int = 6, **changes: Any) -> ConvDecoder:
    torch.manual_seed(0)
    settings = {"layers": 3, "kernel": (3,), "groups": 2, "width": width, "dropout": 0.0, "noise_std": 0.0} | changes
    return ConvDecoder(ConvDecoderSettings(**settings), width=6)


def views(rows: int, T: int, visible: int, width: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, the positions they are at, in order, and the other ones."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows, T, generator=generator).argsort(1)[:, :visible].sort(1).values
    masked = torch.ones(rows, T, dtype=torch.bool).scatter(1, order, False).flatten().nonzero()[:, 0]
    return torch.randn(rows, visible, width, generator=generator), order, masked


def plain(model: ConvDecoder, x: Tensor, visible: Tensor, masked: Tensor, grid: tuple[int, ...], noise: Tensor) -> Tensor:
    """The same, said slowly: one position, one tap and one group of channels at a time."""
    rows, columns = (1, *grid)[-2:]
    groups, residual = model.settings.groups, model.settings.residual
    y = noise.view(len(x), rows * columns, -1).clone()
    for r, places in enumerate(visible.tolist()):
        for p, place in enumerate(places):
            y[r, place] = x[r, p]
    y = y.view(len(x), rows, columns, -1)
    for conv in model.convs:
        weight, bias = conv.weight, conv.bias
        high, wide = weight.shape[2:]
        z = torch.zeros(len(x), rows, columns, len(weight), dtype=x.dtype)
        for i, j, di, dj in product(range(rows), range(columns), range(high), range(wide)):
            down, across = i + di - high // 2, j + dj - wide // 2
            if 0 <= down < rows and 0 <= across < columns:
                parts = y[:, down, across].chunk(groups, dim=1)
                taps = weight[:, :, di, dj].chunk(groups)
                z[:, i, j] += torch.cat([part @ tap.T for part, tap in zip(parts, taps, strict=True)], dim=1)
        z = z + bias
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        z = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
        y = z + y if residual and z.shape == y.shape else z
    return model.head(y.reshape(len(x) * rows * columns, -1)[masked])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("width", [6, 4], ids=["equal widths", "unlike widths"])
@pytest.mark.parametrize(
    ("grid", "kernel"), [((11,), (3,)), ((11,), (4,)), ((4, 5), (3, 3)), ((4, 5), (2, 4)), ((4, 5), (5, 1))], ids=str
)
def test_decoder_equals_a_plain_loop(grid: tuple[int, ...], kernel: tuple[int, ...], width: int, residual: bool) -> None:
    model = decoder(width, kernel=kernel, residual=residual).double()
    T = math.prod(grid)
    x, visible, masked = views(3, T, T // 2)
    noise = torch.randn(3 * T, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    model.draw_noise = lambda count, width, like: noise.clone()  # type: ignore[method-assign]
    ours = model(x.double(), visible, masked, grid)
    assert ours.shape == (len(masked), 6)
    torch.testing.assert_close(ours, plain(model, x.double(), visible, masked, grid, noise))


def test_head_has_the_configured_layers() -> None:
    for layers, shapes in ((1, [(6, 4)]), (2, [(8, 4), (6, 8)]), (3, [(8, 4), (8, 8), (6, 8)])):
        model = decoder(4, head_layers=layers)
        assert [tuple(part.weight.shape) for part in model.head if hasattr(part, "weight")] == shapes
    x = torch.randn(5, 4)
    first, second, last = model.head[::2]
    torch.testing.assert_close(model.head(x), last(F.gelu(second(F.gelu(first(x))))))


def test_head_init_sets_the_initial_weights() -> None:
    bert = ConvDecoder(ConvDecoderSettings(layers=1, width=256, head_init="bert"), 256).head[0]
    assert bert.weight.std().item() == pytest.approx(0.02, rel=0.02) and bert.bias.abs().max() == 0
    assert ConvDecoder(ConvDecoderSettings(layers=1, width=256), 256).head[0].bias.abs().max() > 0


def seen(model: ConvDecoder, x: Tensor, visible: Tensor, masked: Tensor, T: int) -> Tensor:
    """What the first convolution is given, (R, T, D)."""
    given: list[Tensor] = []
    hook = model.convs[0].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    model(x, visible, masked, (T,))
    hook.remove()
    return given[0].squeeze(2).transpose(1, 2)


def test_noise_is_at_masked_positions_only() -> None:
    model = decoder(noise_std=0.25)
    x, visible, masked = views(8, 500, 200)
    given = seen(model, x, visible, masked, 500)
    torch.testing.assert_close(given.gather(1, visible[..., None].expand(-1, -1, 6)), x)
    noise = given.reshape(-1, 6)[masked]
    assert noise.numel() == 14400
    assert abs(noise.mean().item()) < 5 * 0.25 / 120
    assert noise.std().item() == pytest.approx(0.25, rel=0.03)  # five standard errors
    assert len(noise.unique()) > 14_000, "fresh at every place"
    assert not torch.equal(given, seen(model, x, visible, masked, 500)), "and at every call"
    still = seen(decoder(noise_std=0.0), x, visible, masked, 500)
    assert still.reshape(-1, 6)[masked].abs().max() == 0


def test_dropout_acts_on_the_students_vectors_in_training_only() -> None:
    model = decoder(dropout=0.5, noise_std=1.0)
    x, visible, masked = views(4, 100, 60)
    training, evaluating = seen(model, x, visible, masked, 100), seen(model.eval(), x, visible, masked, 100)
    at = visible[..., None].expand(-1, -1, 6)
    assert 0.4 < (training.gather(1, at) == 0).float().mean() < 0.6
    assert (training.reshape(-1, 6)[masked] != 0).all()
    torch.testing.assert_close(evaluating.gather(1, at), x)


def test_gradients_reach_every_visible_vector_and_are_correct() -> None:
    model = decoder(kernel=(5,), head_layers=2).double()
    x, visible, masked = views(2, 7, 4)
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: model(x, visible, masked, (7,)), [x])
    gradient = torch.autograd.grad(model(x, visible, masked, (7,)).square().sum(), x)[0]
    assert (gradient.abs().amax(-1) > 1e-6).all()


def test_order_of_visible_positions_does_not_change_predictions() -> None:
    model = decoder()
    x, visible, masked = views(3, 12, 7)
    order = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    shuffled = x.gather(1, order[..., None].expand(-1, -1, 6)), visible.gather(1, order)
    assert not torch.equal(shuffled[1], visible)
    assert torch.equal(model(*shuffled, masked, (12,)), model(x, visible, masked, (12,)))


def test_views_do_not_influence_each_other() -> None:
    model = decoder(kernel=(3, 3))
    x, visible, masked = views(3, 12, 5)
    other = torch.cat([x[:2], torch.randn_like(x[2:])])
    one, two = (model(y, visible, masked, (3, 4)) for y in (x, other))
    torch.testing.assert_close(one[:14], two[:14])  # 7 masked in each of the first two
    assert not torch.allclose(one[14:], two[14:])


def test_predictions_have_the_precision_of_the_student() -> None:
    x, visible, masked = views(2, 9, 5)
    assert decoder().bfloat16()(x.bfloat16(), visible, masked, (9,)).dtype == torch.bfloat16
