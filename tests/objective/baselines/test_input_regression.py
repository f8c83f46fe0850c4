"""Input regression: its target, its loss, its views, and Hugging Face's MAE."""

import pytest
import torch
from torch.nn import functional as F

from data2vec.errors import UserError
from data2vec.objective.baselines.input_regression import InputRegressionSettings
from data2vec.objective.baselines.masked_prediction import compute_input
from data2vec.objective.masking import SpanMask
from helpers.rivals import rival
from helpers.sensor_modality import Sensor, SensorSettings
from helpers.small_models import batch2, modality

FEATURES = [("speech", "raw"), ("speech", "log_mel"), ("vision", "raw"), ("vision", "hog"), ("vision-relative", "raw")]


@pytest.mark.parametrize(("kind", "features"), FEATURES)
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_loss_is_the_error_at_masked_positions(kind: str, features: str, loss: str) -> None:
    whole, batch = rival("input_regression", kind, features=features, loss=loss), batch2(kind, masks=1)
    output = whole(batch)
    x, _ = whole.student.local_encoder(batch)
    masked = torch.where(batch.mask[..., None], whole.student.local_encoder.mask_vector, x)
    prediction = whole.head(whole.student.encode(masked, None))
    target = modality(kind).input_features()[features].compute(batch)
    errors = (prediction - target).abs() if loss == "l1" else (prediction - target) ** 2
    torch.testing.assert_close(output.loss, errors.mean(-1)[batch.mask].sum())
    torch.testing.assert_close(output.errors, errors.mean(-1)[batch.mask].detach())
    assert len(output.errors) == batch.mask.sum()


@pytest.mark.parametrize(("kind", "features"), FEATURES[:4])
def test_views_of_a_batch_add_up(kind: str, features: str) -> None:
    """The loss of four views at once is the sum of those of four batches with one view each."""
    whole, batch = rival("input_regression", kind, features=features, view="visible"), batch2(kind)
    masks = batch.mask.view(3, 4, -1)
    single = [batch2(kind) for _ in range(4)]
    total = torch.zeros(())
    for m, one in enumerate(single):
        one.mask, one.predicted_indices = masks[:, m], masks[:, m].flatten().nonzero()[:, 0]
        total = total + whole(one).loss
    torch.testing.assert_close(whole(batch).loss, total)


@pytest.mark.parametrize("view", ["visible", "mask_token"])
def test_masked_input_does_not_reach_the_prediction(view: str) -> None:
    whole = rival("input_regression", "vision", view=view).eval()
    batch = batch2("vision", masks=4 if view == "visible" else 1)
    before = whole.head(whole.encode_masked(batch, *whole.student.local_encoder(batch))[1])
    features, padding = whole.student.local_encoder(batch)
    everywhere = batch.mask.view(len(features), -1, features.shape[1]).all(1)  # masked in every view
    assert everywhere.any()
    changed = torch.where(everywhere[..., None], 100.0, features)
    assert torch.equal(before, whole.head(whole.encode_masked(batch, changed, padding)[1]))


def test_normalized_target_has_mean_0_and_variance_1_at_every_position() -> None:
    whole, batch = rival("input_regression", "vision", normalize="position"), batch2("vision")
    target = compute_input(whole.features, batch, normalize="position")
    assert target.mean(-1).abs().max() < 1e-5 and (target.var(-1) - 1).abs().max() < 1e-3
    raw = compute_input(whole.features, batch, normalize="none")
    torch.testing.assert_close(target, (raw - raw.mean(-1, keepdim=True)) / raw.std(-1, keepdim=True), atol=1e-4, rtol=1e-4)


def test_targets_of_several_views_are_those_of_their_sample() -> None:
    batch = batch2("speech", rows=3, masks=4)
    targets = torch.arange(3 * 20).view(3, 20, 1)
    expected = targets.repeat_interleave(4, dim=0)[batch.mask]
    assert torch.equal(batch.at_predicted(targets), expected)


def test_loss_equals_that_of_mae_in_transformers() -> None:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    decoder = {f"decoder_{key}": value for key, value in small.items()}
    torch.manual_seed(0)
    mae = ViTMAEForPreTraining(ViTMAEConfig(image_size=20, patch_size=4, norm_pix_loss=True, **small, **decoder))
    whole, batch = rival("input_regression", "vision", normalize="position"), batch2("vision", masks=1)
    theirs = mae(batch.input)
    # They flatten a patch as rows, columns, channels; we as channels, rows, columns.
    prediction = theirs.logits.view(3, 25, 16, 3).transpose(2, 3).flatten(2)
    errors = F.mse_loss(prediction, compute_input(whole.features, batch, normalize="position"), reduction="none").mean(-1)
    torch.testing.assert_close(errors[theirs.mask.bool()].mean(), theirs.loss)


def test_features_that_a_modality_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.features: hog is not defined by modality speech; use raw, log_mel, mfcc"):
        rival("input_regression", "speech", features="hog")
    with pytest.raises(UserError, match=r"predict them by objective\.name=mlm"):
        rival("input_regression", "text")


def test_custom_modality_with_an_input_width_has_raw_features() -> None:
    class WithWidth(Sensor):
        input_width = 24

    features = WithWidth(SensorSettings(), None).input_features()["raw"]
    batch = WithWidth.collate(None, [torch.arange(5 * 8 * 3.0).view(5, 8, 3).numpy()] * 2)
    assert features.width == 24 and torch.equal(features.compute(batch)[1, 4], torch.arange(96.0, 120.0))
    assert Sensor(SensorSettings(), None).input_features() == {}


def test_views_with_other_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="view: visible needs masks of equal size"):
        InputRegressionSettings(view="visible", mask=SpanMask())
    with pytest.raises(ValueError, match="masks_per_sample: 3 needs view: visible"):
        InputRegressionSettings(masks_per_sample=3)


def test_statistics_are_logged_when_they_are_asked_for() -> None:
    whole, batch = rival("input_regression", "vision", view="visible"), batch2("vision")
    stats = whole(batch, measure=True).stats
    names = {"local_encoder_std", "local_encoder_rank", "student_std", "student_rank", "explained_variance"}
    assert stats.keys() == names and all(torch.isfinite(value) for value in stats.values())
    assert whole(batch).stats == {}
