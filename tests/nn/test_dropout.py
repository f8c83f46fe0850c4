import torch

from data2vec.nn.dropout import Dropout, DropPath


def test_dropout_keeps_the_configured_share_and_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_003, requires_grad=True)
    y = Dropout(0.3)(x)
    kept = (y != 0).float().mean().item()
    assert abs(kept - 0.7) < 0.003  # five standard errors are 0.0023
    torch.testing.assert_close(y[y != 0].unique(), torch.tensor([1 / 0.7]))
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach())


def test_dropout_is_seeded_and_off_in_evaluation() -> None:
    x, dropout = torch.randn(101), Dropout(0.5)
    torch.manual_seed(1)
    first = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout.eval()(x), x)


def test_drop_path_drops_complete_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert abs(y.mean().item() - 1) < 0.05
    assert set(y.flatten(1).std(1).tolist()) == {0.0}
