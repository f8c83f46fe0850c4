import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from data2vec.errors import UserError
from data2vec.objective.data2vec import Data2VecSettings
from data2vec.objective.latent import smooth_l1
from helpers.small_models import LATENT_STATS, batch, objective, targets_of


@pytest.mark.parametrize("beta", [0.0, 2.0])
@pytest.mark.parametrize(("scale", "factor"), [("1/sqrt(width)", 1 / 4), ("1/width", 1 / 16), (3.0, 3.0)])
def test_loss_is_summed_over_positions_and_scaled(beta: float, scale: str | float, factor: float) -> None:
    whole = objective(beta=beta, loss_scale=scale)
    prediction, target = torch.randn(6, 16), torch.randn(6, 16)
    error = (prediction - target) ** 2 if beta == 0 else F.smooth_l1_loss(prediction, target, beta=beta, reduction="none")
    torch.testing.assert_close(smooth_l1(prediction, target, beta).sum(-1) * whole.loss_scale, error.sum(1) * factor)


@pytest.mark.parametrize(
    ("loss", "beta", "by_hand"), [("l1", 0.0, 1.5 + 0.5), ("l2", 0.0, 2.25 + 0.25), ("smooth_l1", 1.0, 1.0 + 0.125)]
)
def test_loss_of_each_name_is_that_of_its_formula(loss: str, beta: float, by_hand: float) -> None:
    whole = objective(loss=loss, beta=beta, loss_scale=2.0)
    errors = whole.error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[2.5, 1.5], [0.0, 0.0]]))
    torch.testing.assert_close(errors, torch.tensor([2 * by_hand, 0.0]))


def test_loss_l2_equals_beta_zero() -> None:
    assert torch.equal(objective(loss="l2")(batch()).errors, objective(beta=0.0)(batch()).errors)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_without_a_beta_refuses_one(loss: str) -> None:
    with pytest.raises(ValidationError, match=f"loss {loss} has no beta, which is 2; set beta to 0"):
        Data2VecSettings(loss=loss, beta=2.0)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_head_for_each_layer_has_the_mean_of_their_losses(layers: int) -> None:
    whole, given = objective(target={"top_k": 2, "heads": "layer"}, head_layers=layers), batch()
    features, _ = whole.student.local_encoder(given)
    context = whole.student.encode(whole.student.apply_mask(features, given.mask, given.input), None)
    blocks = whole.student.block_outputs(features, None)  # the teacher is a copy of the student
    targets = [F.instance_norm(output.state.mT).mT for output in blocks][1:]
    weights, biases = whole.head[-1].weight.chunk(2), whole.head[-1].bias.chunk(2)
    inner = whole.head[:-1](context)
    by_layer = [
        (F.linear(inner, w, b) - y)[given.mask].square().sum() / 4 for w, b, y in zip(weights, biases, targets, strict=True)
    ]
    torch.testing.assert_close(whole(given, measure=True).loss, (by_layer[0] + by_layer[1]) / 2)


def test_only_masked_positions_count_and_only_the_student_learns() -> None:
    whole, given = objective(), batch()
    output = whole(given)
    assert len(output.errors) == 15 and output.stats == {}
    output.loss.backward()
    assert all(p.grad is not None for p in (*whole.student.parameters(), *whole.head.parameters()))
    assert all(p.grad is None for p in whole.teacher.parameters())


def test_the_error_of_each_position_is_told() -> None:
    output = objective()(batch())
    assert output.errors.shape == (15,) and not output.errors.requires_grad
    torch.testing.assert_close(output.errors.sum(), output.loss)


def test_the_student_does_not_see_what_is_masked() -> None:
    """Changing the features under the mask leaves the student's context as it was, and moves the targets."""
    whole, given = objective(), batch()
    x = torch.randn(3, 20, 16)
    y = torch.where(given.mask[..., None], torch.randn(3, 20, 16), x)
    apply_mask = whole.student.local_encoder.apply_mask
    assert torch.equal(apply_mask(x, given.mask, given.input), apply_mask(y, given.mask, given.input))
    assert not torch.allclose(targets_of(whole, given, x), targets_of(whole, given, y))


def test_the_head_has_the_layers_asked_for() -> None:
    assert [tuple(p.shape) for p in objective(head_layers=2).head.parameters()] == [(32, 16), (32,), (16, 32), (16,)]
    assert [tuple(p.shape) for p in objective().head.parameters()] == [(16, 16), (16,)]


def test_more_layers_than_there_are_cannot_be_averaged() -> None:
    with pytest.raises(UserError, match=r"objective.target.top_k: 4 is more than encoder.layers, 3"):
        objective(target={"top_k": 4})


def test_learning_lowers_the_loss() -> None:
    torch.manual_seed(0)
    whole, given = objective(), batch()
    optimizer = torch.optim.AdamW((p for p in whole.parameters() if p.requires_grad), lr=3e-3)
    losses = []
    for step in range(1, 61):
        output = whole(given, measure=step == 60)
        (output.loss / len(output.errors)).backward()
        optimizer.step()
        optimizer.zero_grad()
        whole.after_step(step)
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert set(output.stats) == LATENT_STATS
