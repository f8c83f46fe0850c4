"""Statistics of representations, on tensors for which they are known."""

import pytest
import torch

from data2vec.objective.diagnostics import between_input_variance, effective_rank, mean_std


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


def test_between_input_variance_is_the_share_that_position_does_not_explain() -> None:
    torch.manual_seed(0)
    x, position = torch.randn(30, 200, 8), torch.randn(200, 8)
    assert between_input_variance(x).item() == pytest.approx(1, abs=0.02)
    assert between_input_variance(x + position).item() == pytest.approx(0.5, abs=0.03)
    assert between_input_variance(position.expand(30, -1, -1)).item() == 0
    assert between_input_variance(x[:1]).item() == 1
