import numpy as np
import pytest

from data2vec.report import panels as pictures
from data2vec.report.renderers import Canvas

RNG = np.random.default_rng(0)


class Recorder(Canvas):
    """Remembers what is painted."""

    def __init__(self, several: bool = False):
        self.several = several

    def paint(self, colours, names, scale=None, width=0):  # type: ignore[no-untyped-def]
        self.colours, self.names, self.scale = colours, names, scale


def test_components_are_ordered_by_spread_and_fill_the_range() -> None:
    directions = np.linalg.qr(RNG.normal(size=(16, 16)))[0][:3]
    strength = RNG.normal(size=(4, 8, 8, 3)) * (9, 5, 2)
    features = strength @ directions + 100 + 0.01 * RNG.normal(size=(4, 8, 8, 16))
    found = pictures.principal(features)
    assert found.shape == (4, 8, 8, 3)
    assert found.min() == 0
    assert found.max() == 1
    for i in range(3):
        assert abs(np.corrcoef(found[..., i].ravel(), strength[..., i].ravel())[0, 1]) > 0.97


def test_features_that_are_all_alike_give_one_colour() -> None:
    assert np.ptp(pictures.principal(np.ones((2, 4, 4, 8)))) == 0


@pytest.mark.parametrize("several", [False, True])
def test_components_show_as_many_examples_as_there_is_room_for(several: bool) -> None:
    canvas = Recorder(several)
    pictures.components(canvas, RNG.normal(size=(4, 6, 5)), RNG.normal(size=(4, 6, 5)))
    assert canvas.colours.shape == (3, 4 if several else 1, 6, 4)
    assert canvas.names == ["input", "untrained", "trained"]
    assert canvas.colours[..., 3].mean((1, 2)).tolist() == [0, 1, 1]


def test_hidden_positions_are_covered() -> None:
    canvas, hidden = Recorder(), RNG.random((2, 5, 7)) < 0.5
    pictures.masks(canvas, hidden)
    assert canvas.names == ["input", "mask 1", "mask 2", "mask 3"]
    np.testing.assert_array_equal(canvas.colours[1:, 0, :, 3] > 0, hidden[0, :3])
    assert canvas.colours[0].max() == 0


def test_losses_stand_at_their_positions_and_their_mean_beside_them() -> None:
    errors = np.full((2, 4, 5), np.nan)
    errors[0, 0, 1], errors[0, 3, 1], errors[1, 2, 1], errors[1, 0, 2] = 1.0, 2.0, 6.0, 9.0
    canvas = Recorder()
    pictures.losses(canvas, errors)
    assert canvas.names == ["mask 1", "mask 2", "mask 3", "mean"]
    covered = canvas.colours[:, 0, :, 3] > 0
    assert [np.flatnonzero(row).tolist() for row in covered] == [[1], [], [], [1, 2]]
    expected = canvas.scale.colours(np.array([1.0, 3.0, 9.0]))
    found = canvas.colours[[0, 3, 3], 0, [1, 1, 2]]
    np.testing.assert_allclose(found, expected)


def test_attention_of_the_middle_is_painted_on_a_picture() -> None:
    weights = np.zeros((2, 3, 12, 12))
    weights[:, :, 6, 4] = 1  # the position in row 1 of 3, column 2 of 4, looks at position 4
    canvas = Recorder(several=True)
    pictures.attention(canvas, weights, [0, 5], (3, 4))
    assert canvas.names == ["query", "block 1", "block 6"]
    assert np.flatnonzero(canvas.colours[0, 0, :, 3]).tolist() == [6]
    brightness = canvas.colours[1, 0, :, :3].sum(-1)
    assert np.delete(brightness, 6).argmax() == 4


def test_attention_along_a_sequence_is_a_map() -> None:
    axes = pictures.attention(Recorder(), RNG.random((3, 2, 9, 9)), [0, 1, 2], (9,)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["block 1", "block 2", "block 3"]
    assert axes.images[0].get_array().shape[:2] == (10, 30)
