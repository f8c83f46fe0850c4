import numpy as np
import pytest

from data2vec.report.figures import (
    plot_attention,
    plot_components,
    plot_losses,
    plot_masks,
    plot_variance_shares,
    principal_components,
)
from data2vec.report.renderers import Renderer

RNG = np.random.default_rng(0)


class Recorder(Renderer):
    """Records what is rendered."""

    def __init__(self, several: bool = False):
        self.several = several

    def render(self, colours, names, scale=None, width=0):  # type: ignore[no-untyped-def]
        self.colours, self.names, self.scale = colours, names, scale


def test_principal_components_are_ordered_by_variance_and_scaled_to_0_1() -> None:
    directions = np.linalg.qr(RNG.normal(size=(16, 16)))[0][:3]
    strength = RNG.normal(size=(4, 8, 8, 3)) * (9, 5, 2)
    features = strength @ directions + 100 + 0.01 * RNG.normal(size=(4, 8, 8, 16))
    result = principal_components(features)
    assert result.shape == (4, 8, 8, 3)
    assert result.min() == 0
    assert result.max() == 1
    for i in range(3):
        assert abs(np.corrcoef(result[..., i].ravel(), strength[..., i].ravel())[0, 1]) > 0.97


def test_principal_components_of_equal_features_are_equal() -> None:
    assert np.ptp(principal_components(np.ones((2, 4, 4, 8)))) == 0


@pytest.mark.parametrize("several", [False, True])
def test_plot_components_shows_several_examples_if_the_renderer_can(several: bool) -> None:
    recorder = Recorder(several)
    plot_components(recorder, RNG.normal(size=(4, 6, 5)), RNG.normal(size=(4, 6, 5)))
    assert recorder.colours.shape == (3, 4 if several else 1, 6, 4)
    assert recorder.names == ["input", "untrained", "trained"]
    assert recorder.colours[..., 3].mean((1, 2)).tolist() == [0, 1, 1]


def test_plot_masks_covers_masked_positions() -> None:
    recorder, masked = Recorder(), RNG.random((2, 5, 7)) < 0.5
    plot_masks(recorder, masked)
    assert recorder.names == ["input", "mask 1", "mask 2", "mask 3"]
    np.testing.assert_array_equal(recorder.colours[1:, 0, :, 3] > 0, masked[0, :3])
    assert recorder.colours[0].max() == 0


def test_plot_losses_colours_masked_positions_and_their_mean() -> None:
    errors = np.full((2, 4, 5), np.nan)
    errors[0, 0, 1], errors[0, 3, 1], errors[1, 2, 1], errors[1, 0, 2] = 1.0, 2.0, 6.0, 9.0
    recorder = Recorder()
    plot_losses(recorder, errors)
    assert recorder.names == ["mask 1", "mask 2", "mask 3", "mean"]
    covered = recorder.colours[:, 0, :, 3] > 0
    assert [np.flatnonzero(row).tolist() for row in covered] == [[1], [], [], [1, 2]]
    expected = recorder.scale.colours(np.array([1.0, 3.0, 9.0]))
    result = recorder.colours[[0, 3, 3], 0, [1, 1, 2]]
    np.testing.assert_allclose(result, expected)


def test_plot_attention_on_a_grid_shows_the_middle_query() -> None:
    weights = np.zeros((2, 3, 12, 12))
    weights[:, :, 6, 4] = 1  # the position in row 1 of 3, column 2 of 4, looks at position 4
    recorder = Recorder(several=True)
    plot_attention(recorder, weights, [0, 5], (3, 4))
    assert recorder.names == ["query", "block 1", "block 6"]
    assert np.flatnonzero(recorder.colours[0, 0, :, 3]).tolist() == [6]
    brightness = recorder.colours[1, 0, :, :3].sum(-1)
    assert np.delete(brightness, 6).argmax() == 4


def test_plot_attention_of_a_sequence_is_a_map_per_block() -> None:
    axes = plot_attention(Recorder(), RNG.random((3, 2, 9, 9)), [0, 1, 2], (9,)).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["block 1", "block 2", "block 3"]
    assert axes.images[0].get_array().shape[:2] == (10, 30)


def test_plot_variance_shares_stacks_a_bar_per_block_to_100_percent() -> None:
    axes = plot_variance_shares(np.array([[0.7, 0.1, 0.2], [0.0, 0.4, 0.6]])).axes[0]
    heights = np.array([[bar.get_height() for bar in bars] for bars in axes.containers])
    np.testing.assert_allclose(heights, [[70, 0], [10, 40], [20, 60]])
    assert [bar.get_y() + bar.get_height() for bar in axes.containers[-1]] == [100, 100]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["position", "input", "within"]
