from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data2vec.errors import CorruptExample, UserError
from data2vec.objective import Objective
from data2vec.objective.diagnostics import variance_shares
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.report.samples import (
    Sample,
    attention_weights,
    encoder_features,
    layer_variance_shares,
    load_sample,
    masked_errors,
)
from data2vec.run_dir import Run


@pytest.fixture
def opened(run: Run) -> tuple[Recipe, Sample, Objective]:
    recipe = load_recipe(run.recipe)
    modality = recipe.build_modality()
    sample = load_sample(modality, str(recipe.data.train))
    return recipe, sample, recipe.build_objective().eval()


def test_masked_errors_are_nan_except_at_masked_positions(opened: tuple[Recipe, Sample, Objective]) -> None:
    recipe, sample, objective = opened
    views, n, T = recipe.objective.masks_per_sample, len(sample.batch), int(np.prod(sample.grid))
    batches = list(sample.masked_batches(recipe.objective.mask, views, 3))
    errors = masked_errors(objective, batches)
    assert errors.shape == (n, 3 * views, T)
    masked = torch.cat([batch.mask.view(n, views, T) for batch in batches], 1).numpy()
    np.testing.assert_array_equal(~np.isnan(errors), masked)
    torch.manual_seed(0)
    with torch.inference_mode():
        first = objective(batches[0])
    assert np.nansum(errors[:, :views]) == pytest.approx(float(first.errors.sum()), rel=1e-4)
    assert not np.array_equal(masked[:, :views], masked[:, views : 2 * views])


def test_attention_weights_are_those_of_the_given_blocks_and_first_example(opened: tuple[Recipe, Sample, Objective]) -> None:
    recipe, sample, objective = opened
    T, extra = int(np.prod(sample.grid)), recipe.encoder.extra_tokens
    weights = attention_weights(objective.student, sample.batch, [0, 2])
    assert weights.shape == (2, recipe.encoder.heads, T, T)
    if extra:
        assert (weights.sum(-1) < 1).all()
    else:
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-4)
    again = attention_weights(objective.student, sample.batch.rows(0, 1), [2])
    np.testing.assert_allclose(again[0], weights[1], rtol=1e-4)
    assert not any(block.attention._forward_pre_hooks for block in objective.student.transformer.blocks)


def test_encoder_features_equal_the_encoder_output(opened: tuple[Recipe, Sample, Objective]) -> None:
    _, sample, objective = opened
    features = encoder_features(objective.student, sample.batch)
    with torch.no_grad():
        np.testing.assert_allclose(features, objective.student(sample.batch)[0].numpy(), rtol=1e-5)


def sensor_modality(tmp_path: Path, readings: np.ndarray) -> tuple[Any, str]:
    from helpers.sensor_modality import Sensor, SensorData, SensorSettings

    np.save(tmp_path / "readings.npy", readings)
    return Sensor(SensorSettings(), SensorData()), str(tmp_path / "readings.npy")


def test_load_sample_skips_unreadable_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality, where = sensor_modality(tmp_path, np.arange(6.0)[:, None, None] * np.ones((6, 16, 3)))
    examples = type(modality.examples(np.zeros((1, 16, 3))))
    load = examples.load

    def broken(self: Any, index: int, limit: float | None, rng: Any) -> np.ndarray:
        if index % 2 or broken.all:  # type: ignore[attr-defined]
            raise CorruptExample(f"{index}: no reading")
        return load(self, index, limit, rng)

    broken.all = False  # type: ignore[attr-defined]
    monkeypatch.setattr(examples, "load", broken)
    inputs = load_sample(modality, where, count=6).batch.input
    assert sorted(inputs[:, 0, 0, 0].tolist()) == [0, 2, 4]
    broken.all = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"no example can be read, such as .: no reading"):
        load_sample(modality, where)


def test_layer_variance_shares_have_a_row_per_block_that_sums_to_1(opened: tuple[Recipe, Sample, Objective]) -> None:
    recipe, sample, objective = opened
    shares = layer_variance_shares(objective.student, sample.batch)
    assert shares.shape == (recipe.encoder.layers, 3)
    assert shares.min() >= -1e-6
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    last = variance_shares(torch.from_numpy(encoder_features(objective.student, sample.batch)))
    assert recipe.encoder.final_norm or shares[-1] == pytest.approx([float(share) for share in last], abs=1e-4)
