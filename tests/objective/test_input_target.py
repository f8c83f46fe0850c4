"""The warm start: an additional prediction of the input, with a weight that fades."""

import math

import pytest
import torch
from torch.nn import functional as F

from data2vec.batch import MaskedBatch
from data2vec.errors import UserError
from data2vec.objective.input_target import InputTargetSettings
from data2vec.recipe.loading import load_recipe
from helpers import small_models


def test_weight_is_constant_then_falls_linearly_to_zero() -> None:
    objective = small_models.objective(input_target=InputTargetSettings(weight=0.8, fade_from=0.2, fade_to=0.6))
    weights = []
    for step in (1, 20, 30, 40, 50, 60, 100):  # of 100
        objective.before_step(step)
        weights.append(objective.input_weight)
    assert weights == pytest.approx([0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])


def test_weight_drops_at_once_when_both_ends_are_equal() -> None:
    objective = small_models.objective(input_target=InputTargetSettings(fade_from=0.5, fade_to=0.5))
    objective.before_step(50)
    assert objective.input_weight == 1
    objective.before_step(51)
    assert objective.input_weight == 0


def test_fade_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UserError, match=r"fade_to: 0\.1 is less than fade_from: 0\.2"):
        load_recipe("speech/v1-tiny", ["objective.input_target={features: raw, fade_from: 0.2, fade_to: 0.1}"])


def test_features_of_another_modality_are_refused() -> None:
    with pytest.raises(UserError, match=r"hog is not defined by modality speech; use raw, log_mel, mfcc"):
        small_models.objective(input_target=InputTargetSettings(features="hog"))


@pytest.mark.parametrize("version", [1, 2])
def test_loss_mixes_both_predictions_by_the_weight(version: int) -> None:
    settings = InputTargetSettings(features="raw", norms=(), weight=0.25, fade_from=1, fade_to=1)
    build = small_models.objective if version == 1 else small_models.objective2
    plain, mixed = build(), build(input_target=settings)
    mixed.load_state_dict(mixed.state_dict() | plain.state_dict())
    if version == 2:
        mixed.decoder.settings = plain.decoder.settings
    batch = small_models.batch(rows=3)
    vectors: list[torch.Tensor] = []
    assert mixed.input_target is not None
    mixed.input_target.head.register_forward_pre_hook(lambda module, inputs: vectors.append(inputs[0]))
    mixed.before_step(1)
    torch.manual_seed(0)
    total = mixed(batch).loss
    torch.manual_seed(0)
    latent = plain(batch).loss

    raw = mixed.modality.input_features()["raw"].compute(batch)  # (B, T, F)
    target = raw.flatten(0, 1)[batch.predicted_indices]
    prediction = mixed.input_target.head(vectors[0])
    own = ((prediction - target) ** 2).sum() / math.sqrt(raw.shape[-1])
    torch.testing.assert_close(total, 0.75 * latent + 0.25 * own)


def test_figures_of_predictions_are_left_out_while_the_loss_does_not_depend_on_them() -> None:
    objective = small_models.objective(input_target=InputTargetSettings(fade_from=0.5, fade_to=1))
    found = []
    for step in (50, 51):
        objective.before_step(step)
        found.append(set(objective(small_models.batch(), measure=True).stats))
    assert found[1] - found[0] == {"prediction_std", "prediction_rank", "r2", "content_r2"}
    assert found[0] < found[1]


def test_tokens_are_predicted_by_cross_entropy() -> None:
    objective = small_models.objective2("text", input_target=InputTargetSettings(features="tokens"))
    ids = torch.arange(5, 25).expand(2, -1).contiguous()
    mask = torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 3:9] = True
    batch = MaskedBatch(ids, mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0])
    assert objective.input_target is not None
    vectors = torch.randn(12, objective.input_target.head.in_features)
    errors = objective.input_target(vectors, batch)
    logits = objective.input_target.head(vectors)
    torch.testing.assert_close(errors, F.cross_entropy(logits, ids[mask], reduction="none"))


def test_objective_without_a_warm_start_has_no_head_for_it() -> None:
    assert not [name for name in small_models.objective().state_dict() if "input_target" in name]
