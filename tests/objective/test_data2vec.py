import math

import pytest
import torch
from torch.nn import functional as F

from data2vec.errors import UserError
from data2vec.objective import diagnostics as health
from data2vec.objective.base import smooth_l1
from data2vec.objective.diagnostics import HealthSettings
from helpers.small_models import batch, objective, targets_of


@pytest.mark.parametrize("beta", [0.0, 2.0])
@pytest.mark.parametrize(("scale", "factor"), [("1/sqrt(width)", 1 / 4), ("1/width", 1 / 16), (3.0, 3.0)])
def test_loss_is_summed_over_positions_and_scaled(beta: float, scale: str | float, factor: float) -> None:
    whole = objective(beta=beta, scale=scale)
    prediction, target = torch.randn(6, 16), torch.randn(6, 16)
    error = (prediction - target) ** 2 if beta == 0 else F.smooth_l1_loss(prediction, target, beta=beta, reduction="none")
    torch.testing.assert_close(smooth_l1(prediction, target, beta).sum(-1) * whole.loss_scale, error.sum(1) * factor)


def test_only_masked_positions_count_and_only_the_student_learns() -> None:
    whole, given = objective(), batch()
    output = whole(given)
    assert output.predicted == 15 and output.stats == {}
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
        (output.loss / output.predicted).backward()
        optimizer.step()
        optimizer.zero_grad()
        whole.after_step(step)
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    stages = ("features", "student", "target", "prediction")
    assert set(output.stats) == {f"{stage}_{what}" for stage in stages for what in ("std", "rank")} | {"target_content"}


def test_spread_and_rank() -> None:
    torch.manual_seed(0)
    x = torch.randn(5000, 8)
    assert health.mean_std(x).item() == pytest.approx(1, abs=0.05)
    assert health.effective_rank(x).item() == pytest.approx(8, abs=0.1)
    assert health.mean_std(torch.ones(10, 8)).item() == pytest.approx(1e-3)
    line = torch.randn(100, 1) * torch.randn(1, 8)
    assert health.effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    two = torch.diag_embed(torch.tensor([3.0, 3, 0, 0]))
    assert health.effective_rank(torch.cat([two, -two])).item() == pytest.approx(2, abs=1e-3)
    wide = torch.randn(20, 64)
    assert 1 < health.effective_rank(wide).item() <= 20


def test_content_is_what_differs_between_inputs_at_the_same_place() -> None:
    torch.manual_seed(0)
    x, place = torch.randn(30, 200, 8), torch.randn(200, 8)
    assert health.between_input_variance(x).item() == pytest.approx(1, abs=0.02)
    assert health.between_input_variance(x + place).item() == pytest.approx(0.5, abs=0.03)
    assert health.between_input_variance(place.expand(30, -1, -1)).item() == 0
    assert health.between_input_variance(x[:1]).item() == 1


@pytest.mark.parametrize(
    ("target", "prediction", "step", "said"),
    [
        (0.05, 1.0, 5000, "the targets hardly differ"),
        (1.0, 0.005, 5000, "the student predicts nearly the same"),
        (0.05, 0.005, 4999, None),
        (0.2, 0.02, 9000, None),
        (math.nan, 1.0, 9000, None),
    ],
)
def test_when_a_run_is_called_collapsed(target: float, prediction: float, step: int, said: str | None) -> None:
    line = {"loss": 1.0, "grad_norm": 1.0, "target_std": target, "prediction_std": prediction}
    reason = health.collapsed(line, step, HealthSettings())
    assert (reason is None) if said is None else (reason is not None and said in reason)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, None])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_no_number_ends_a_run_at_any_step(name: str, wrong: float | None) -> None:
    reason = health.collapsed({"loss": 1.0, "grad_norm": 1.0, name: wrong}, 1, HealthSettings())
    assert reason is not None and "no number" in reason
