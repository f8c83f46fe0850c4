"""Statistics of representations, on tensors for which they are known."""

import pytest
import torch

from data2vec.batch import MaskedBatch
from data2vec.objective.diagnostics import content_r2, effective_rank, mean_std, r2, representation_stats, variance_shares


def test_mean_std_and_effective_rank_of_known_distributions() -> None:
    torch.manual_seed(0)
    x = torch.randn(5000, 8)
    assert mean_std(x).item() == pytest.approx(1, abs=0.05)
    assert effective_rank(x).item() == pytest.approx(8, abs=0.1)
    assert mean_std(torch.ones(10, 8)).item() == pytest.approx(1e-3)
    line = torch.randn(100, 1) * torch.randn(1, 8)
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-3)
    two = torch.diag_embed(torch.tensor([3.0, 3, 0, 0]))
    assert effective_rank(torch.cat([two, -two])).item() == pytest.approx(2, abs=1e-3)
    wide = torch.randn(20, 64)
    assert 1 < effective_rank(wide).item() <= 20


@pytest.mark.parametrize(
    ("position", "between", "within"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (3, 0, 1), (0.0, 0.2, 0.8)]
)
def test_variance_shares_of_known_components_are_these_components(position: float, between: float, within: float) -> None:
    torch.manual_seed(0)
    x = position**0.5 * torch.randn(1, 60, 64) + between**0.5 * torch.randn(40, 1, 64) + within**0.5 * torch.randn(40, 60, 64)
    shares = variance_shares(x + 5)
    total = position + between + within
    assert [share.item() for share in shares] == pytest.approx([v / total for v in (position, between, within)], abs=0.03)
    assert sum(shares).item() == pytest.approx(1)


def test_variance_shares_do_not_count_noise_as_differences_between_few_inputs() -> None:
    torch.manual_seed(0)
    assert variance_shares(torch.randn(2, 50, 64)).position.item() < 0.03  # the means at a position have half the variance


def test_variance_shares_ignore_padding() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 50, 64) + torch.randn(20, 1, 64) + torch.randn(20, 50, 64)
    padding = torch.arange(50) >= torch.randint(20, 51, (20, 1))
    shares = variance_shares(x.masked_fill(padding[..., None], 1e3), padding)
    assert [share.item() for share in shares] == pytest.approx([1 / 3] * 3, abs=0.05)
    assert torch.equal(torch.stack(shares), torch.stack(variance_shares(x.masked_fill(padding[..., None], -7.0), padding)))


def test_variance_shares_of_one_input_and_of_a_constant_are_all_within() -> None:
    assert [share.item() for share in variance_shares(torch.randn(1, 9, 4))] == [0, 0, 1]
    assert [share.item() for share in variance_shares(torch.ones(3, 9, 4))] == [0, 0, 1]


def masked(mask: torch.Tensor, inputs: int) -> MaskedBatch:
    return MaskedBatch(torch.zeros(inputs, 1), mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0])


def test_content_r2_is_zero_for_a_prediction_from_the_position_alone() -> None:
    torch.manual_seed(0)
    batch = masked(torch.rand(16, 30) < 0.5, 16)
    position, content = 3 * torch.randn(30, 8), torch.randn(16, 30, 8)
    target, at = (position + content).flatten(0, 1)[batch.predicted_indices], batch.predicted_indices % 30
    assert content_r2(position[at], target, batch).item() == pytest.approx(0, abs=1e-6)
    assert r2(position[at], target).item() == pytest.approx(0.9, abs=0.02)
    half = target - 0.5 * content.flatten(0, 1)[batch.predicted_indices]
    assert content_r2(half, target, batch).item() == pytest.approx(0.75, abs=1e-3)
    assert content_r2(half + 7 * torch.randn(30, 8)[at], target, batch).item() == pytest.approx(0.75, abs=1e-3)
    assert content_r2(target, target, batch).item() == r2(target, target).item() == 1


def test_content_r2_leaves_out_positions_predicted_for_one_input_only() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 0, 0]], dtype=torch.bool)  # two views of each of two inputs
    batch = masked(mask, 2)
    target = torch.tensor([[1.0], [5], [5], [3], [9], [3]])  # positions 0, 1, 1, 0, 2, 0
    assert content_r2(target + torch.tensor([[0.0], [70], [-70], [0], [50], [0]]), target, batch).item() == 1
    assert content_r2(torch.full((6, 1), 2.0), target, batch).item() == 0
    alone = masked(torch.tensor([[1, 0], [0, 1]], dtype=torch.bool), 2)
    assert content_r2(target[:2], target[:2], alone).isnan()


def test_representation_stats_without_targets_omit_what_needs_them() -> None:
    torch.manual_seed(0)
    batch, features = masked(torch.rand(4, 10) < 0.5, 4), torch.randn(4, 10, 8)
    stats = representation_stats(batch, features, features)
    assert set(stats) == {f"{stage}_{what}" for stage in ("local_encoder", "student") for what in ("std", "rank")}
    logits = torch.randn(len(batch.predicted_indices), 12)
    assert set(representation_stats(batch, features, features, logits)) == {*stats, "prediction_std", "prediction_rank"}
