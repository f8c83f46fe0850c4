"""The Transformer decoder, against its parts applied row by row."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from data2vec.nn.transformer_decoder import TransformerDecoder, TransformerDecoderSettings

T = 12
GRIDS = pytest.mark.parametrize("grid", [(12,), (3, 4)], ids=str)


def decoder(predictions: int = 1, **changes: Any) -> TransformerDecoder:
    torch.manual_seed(0)
    settings = TransformerDecoderSettings(**{"layers": 2, "width": 8, "heads": 2, "dropout": 0.0} | changes)
    return TransformerDecoder(settings, width=6, predictions=predictions)


def views(rows: int = 3, visible: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.rand(rows, T, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :visible].sort(1).values
    masked = torch.ones(rows, T, dtype=torch.bool).scatter(1, order, False).flatten().nonzero()[:, 0]
    return torch.randn(rows, visible, 6, generator=torch.Generator().manual_seed(2)), order, masked


def position(index: int, grid: tuple[int, ...]) -> list[float]:
    """Sines and cosines of a position, by hand: of a sequence; or of the column, then of the row."""
    axes = [index] if len(grid) == 1 else [index % grid[1], index // grid[1]]
    count = 4 // len(axes)
    angles = [torch.tensor([axis / 10000 ** (i / count) for i in range(count)]) for axis in axes]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())]).tolist()


@GRIDS
def test_decoder_equals_its_parts_row_by_row(grid: tuple[int, ...]) -> None:
    model, (x, visible, masked) = decoder(), views()
    predictions = []
    for row, places in zip(x, visible.tolist(), strict=True):
        inputs = [model.project(row[places.index(i)]) if i in places else model.mask_vector for i in range(T)]
        placed = torch.stack(inputs) + torch.tensor([position(i, grid) for i in range(T)])
        out = model.head(model.layers(placed[None])[0])
        predictions += [out[i] for i in range(T) if i not in places]
    torch.testing.assert_close(model(x, visible, masked, grid), torch.stack(predictions))


@GRIDS
def test_predictions_depend_on_the_place_of_a_masked_position(grid: tuple[int, ...]) -> None:
    predictions = decoder()(*views(), grid)
    assert torch.pdist(predictions[:7]).min() > 1e-3


def test_decoder_learns_in_all_its_parts_and_predicts_several_vectors() -> None:
    model = decoder(predictions=3)
    predictions = model(*views(), (12,))
    assert predictions.shape == (21, 18)
    predictions.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_positions_follow_the_grid_of_the_batch() -> None:
    model = decoder()
    first = model(*views(), (12,))
    assert not torch.allclose(first, model(*views(), (3, 4)))
    assert torch.equal(first, model(*views(), (12,)))


@pytest.mark.parametrize("changes", [{"width": 9, "heads": 3}, {"width": 8, "heads": 3}])
def test_width_that_heads_or_positions_do_not_divide_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="is not a multiple of 4 and of heads"):
        TransformerDecoderSettings(**changes)
