"""Version 2: what several views of a sample share, what each sees, and what the losses add up to."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.nn.conv_decoder import ConvDecoderSettings
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.nn.transformer import TransformerSettings
from data2vec.nn.transformer_decoder import TransformerDecoderSettings
from data2vec.objective import latent
from data2vec.objective.data2vec2 import Data2Vec2, Data2Vec2Settings, visible_positions
from data2vec.objective.input_target import InputTargetSettings
from data2vec.objective.latent import smooth_l1
from data2vec.objective.targets import TargetSettings
from data2vec.objective.teacher import TeacherSettings
from data2vec.recipe.loading import load_recipe
from helpers.small_models import KINDS, LATENT_STATS, batch2, encoder, objective2, targets_of, with_masks

BY_LAYER = TargetSettings(top_k=2, per_layer_norms=("layer",))  # instance norm makes the mean over the positions nothing
every_kind = pytest.mark.parametrize("kind", KINDS)


def gradients(whole: Data2Vec2, given: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its gradients."""
    whole.zero_grad()
    loss = whole(given).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in whole.named_parameters() if p.grad is not None}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Filled with the predictions and the targets of every step."""
    arguments: dict[str, Tensor] = {}

    def recorded(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
        arguments.update(prediction=prediction, target=target)
        return smooth_l1(prediction, target, beta)

    monkeypatch.setattr(latent, "smooth_l1", recorded)
    return arguments


@every_kind
def test_what_is_visible_is_what_is_not_masked_in_order(kind: str) -> None:
    given = batch2(kind)
    kept = visible_positions(given.mask, len(given.predicted_indices))
    assert kept.tolist() == [(~row).nonzero()[:, 0].tolist() for row in given.mask]


@every_kind
@pytest.mark.parametrize("cls_loss", [0.0, 0.5])
def test_views_of_a_batch_add_up(kind: str, cls_loss: float) -> None:
    """Loss and gradients of four views at once are the sum of those of four batches with one view each."""
    whole = objective2(kind, {"extra_tokens": 1}, cls_loss=cls_loss, beta=2.0, target=BY_LAYER)
    given = batch2(kind)
    loss, together = gradients(whole, given)
    apart = [gradients(whole, with_masks(given.input, given.mask[view::4])) for view in range(4)]
    torch.testing.assert_close(loss, sum((part[0] for part in apart), torch.zeros(())))
    assert together
    for name, gradient in together.items():
        expected = sum((part[1][name] for part in apart), torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)


def test_the_error_of_each_position_is_told() -> None:
    given = batch2("vision")
    with_summary, without = (objective2("vision", cls_loss=weight)(given) for weight in (1.0, 0.0))
    assert without.errors.shape == given.predicted_indices.shape and not without.errors.requires_grad
    torch.testing.assert_close(without.errors.sum(), without.loss)
    torch.testing.assert_close(with_summary.errors, without.errors)


@every_kind
def test_samples_of_a_batch_add_up(kind: str) -> None:
    """So each view is compared with the targets of its own sample."""
    whole, given = objective2(kind), batch2(kind)
    single = [whole(with_masks(given.input[i : i + 1], given.mask[4 * i : 4 * i + 4])).loss for i in range(3)]
    torch.testing.assert_close(whole(given).loss, torch.stack(single).sum())


@every_kind
def test_the_input_is_embedded_and_the_teacher_asked_once_a_sample(kind: str) -> None:
    whole, given = objective2(kind), batch2(kind)
    embedded: list[tuple[int, ...]] = []
    taught: list[tuple[int, ...]] = []
    whole.student.local_encoder.register_forward_hook(lambda *x: embedded.append(tuple(x[2][0].shape)))
    whole.teacher.ema["transformer"].blocks[0].register_forward_pre_hook(lambda _, x: taught.append(tuple(x[0].shape)))
    whole(given)
    T = given.mask.shape[1]
    assert embedded == [(3, T, 16)]
    assert taught == [(3, T + kind.startswith("vision"), 16)]


@every_kind
def test_targets_are_those_of_the_masked_positions_of_each_view(kind: str, seen: dict[str, Tensor]) -> None:
    whole, given = objective2(kind), batch2(kind)
    output = whole(given)
    features, padding = whole.student.local_encoder(given)
    every = targets_of(whole, given, features, padding).repeat_interleave(4, dim=0)
    torch.testing.assert_close(seen["target"], every[given.mask])
    assert len(output.errors) == int(given.mask.sum()) == len(seen["prediction"])
    assert seen["prediction"].dtype == seen["target"].dtype == torch.float32


def test_the_student_sees_nothing_of_masked_patches(seen: dict[str, Tensor]) -> None:
    """Other pixels there move the targets, and leave the predictions as they were."""
    whole, given = objective2("vision"), batch2("vision", masks=1)
    masked = given.mask.view(3, 1, 5, 5).repeat_interleave(4, 2).repeat_interleave(4, 3)
    whole(given)
    before = dict(seen)
    whole(replace(given, input=torch.where(masked, torch.randn(3, 3, 20, 20), given.input)))
    assert torch.equal(seen["prediction"], before["prediction"])
    assert not torch.allclose(seen["target"], before["target"], atol=0.1)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 2)])
def test_the_cls_loss_and_the_size_of_the_batch(reduction: str, factor: int) -> None:
    """A mean over the views does not depend on it; a sum, as in the released code, does."""
    changes: dict[str, Any] = {"cls_reduction": reduction, "target": BY_LAYER}
    with_cls, without = objective2("vision", cls_loss=0.3, **changes), objective2("vision", **changes)
    one = batch2("vision")
    two = with_masks(torch.cat([one.input] * 2), torch.cat([one.mask] * 2))

    def part(given: Batch) -> Tensor:
        return (with_cls(given).loss - without(given).loss) / len(given.predicted_indices)

    torch.testing.assert_close(without(two).loss, 2 * without(one).loss)
    torch.testing.assert_close(part(two), factor * part(one), rtol=1e-3, atol=0)


def test_the_cls_loss_is_the_error_of_the_last_extra_token_against_the_mean_target() -> None:
    changes: dict[str, Any] = {"encoder_changes": {"extra_tokens": 2}, "target": BY_LAYER}
    whole, given = objective2("vision", **changes, cls_loss=0.3), batch2("vision")
    features, _ = whole.student.local_encoder(given)
    mean = targets_of(whole, given, features).mean(1).repeat_interleave(4, dim=0)
    kept = visible_positions(given.mask, len(given.predicted_indices))
    extra, _ = whole.student.encode_visible(features, None, given.mask, kept)
    error = ((extra[:, 1] - mean) ** 2).sum(1).mean() / 4  # 1/sqrt(width)
    plain = objective2("vision", **changes)(given)
    torch.testing.assert_close(whole(given).loss / len(plain.errors), plain.loss / len(plain.errors) + 0.3 * error)


@pytest.mark.parametrize("cls_loss", [0.0, 0.1])
@every_kind
def test_all_that_learns_gets_a_gradient_and_nothing_else_does(kind: str, cls_loss: float) -> None:
    """Else data-parallel training would wait for parameters that have no part in the loss."""
    averaged = TeacherSettings(local_encoder="averaged", position_encoder="averaged")
    whole = objective2(kind, {"extra_tokens": 1}, cls_loss=cls_loss, teacher=averaged)
    whole(batch2(kind)).loss.backward()
    assert [n for n, p in whole.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in whole.named_parameters() if not p.requires_grad and p.grad is not None] == []
    assert not any(p.requires_grad for p in whole.teacher.parameters())
    if (vector := whole.student.local_encoder.mask_vector) is not None:
        assert not vector.requires_grad
    learning = {n.split(".")[0] for n, p in whole.named_parameters() if p.requires_grad}
    assert learning == {"student", "decoder"}


@pytest.mark.parametrize(("prenet", "top_k", "said"), [(2, 2, "3 less encoder.prenet_layers, 2"), (0, 4, "3")])
def test_more_layers_than_there_are_cannot_be_averaged(prenet: int, top_k: int, said: str) -> None:
    with pytest.raises(UserError) as told:
        objective2("vision", {"prenet_layers": prenet}, target=TargetSettings(top_k=top_k))
    assert str(told.value) == f"objective.target.top_k: {top_k} is more than encoder.layers, {said}"


def test_prenet_layers_are_layers_that_no_target_is_of() -> None:
    with_prenet, without = objective2("vision", {"prenet_layers": 1}), objective2("vision")
    torch.testing.assert_close(with_prenet(batch2("vision")).loss, without(batch2("vision")).loss)


def test_masks_of_unlike_numbers_are_no_masks_of_version_2() -> None:
    with pytest.raises(ValueError, match="fixed-block"):
        Data2Vec2Settings(mask={"kind": "span"})  # type: ignore[arg-type]


def saved(model: Encoder, T: int, kept: int, masks: int) -> int:
    """Bytes that autograd keeps for the backward pass of `encode_visible`, parameters and the input aside."""
    torch.manual_seed(0)
    x = torch.randn(1, T, 16, requires_grad=True)
    places = torch.rand(masks, T).argsort(1)[:, :kept]
    masked = torch.ones(masks, T, dtype=torch.bool).scatter(1, places, False)
    known = {p.untyped_storage().data_ptr() for p in (x, *model.parameters())}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in known:
            found[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model.encode_visible(x, None, masked, places)
    assert y[1].requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_memory_grows_with_what_is_kept_not_with_the_length(kind: str) -> None:
    """For positions that look at each vector alone: what a view adds is proportional to what it keeps."""
    from data2vec.modalities.text import Text, TextSettings
    from data2vec.modalities.vision import Vision, VisionSettings

    settings = TransformerSettings(width=16, layers=3, heads=2, ffn_width=32, dropout=0.0, attention_dropout=0.0)

    def model(side: int) -> Encoder:
        sized: Any = Vision(VisionSettings(image=4 * side, patch=4, positions="sincos"), None)
        return build_encoder(
            Text(TextSettings(vocab_size=40, max_length=side * side), None) if kind == "text" else sized, settings
        )

    long, short = model(16), model(8)
    for kept in (16, 32):
        one, two, four = (saved(long, 256, kept, masks) for masks in (1, 2, 4))
        view = two - one
        assert four - two == 2 * view, "each view adds the same"
        short_view = saved(short, 64, kept, 2) - saved(short, 64, kept, 1)
        assert view == short_view, "which does not depend on the length"
        if kind == "vision":
            assert one < 1.2 * view, "and there is next to nothing besides"
    halved = saved(long, 256, 16, 2) - saved(long, 256, 16, 1)
    assert view == pytest.approx(2 * halved, rel=0.01)


@every_kind
def test_half_precision_is_near_to_full(kind: str, seen: dict[str, Tensor]) -> None:
    whole, given = objective2(kind), batch2(kind)
    full = whole(given).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        output = whole(given, measure=True)
    assert seen["prediction"].dtype == seen["target"].dtype == torch.float32
    output.loss.backward()
    assert output.loss.item() != full
    assert output.loss.item() == pytest.approx(full, rel=0.03)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in whole.parameters() if p.requires_grad)
    assert all(torch.isfinite(value) for value in output.stats.values())


def test_the_health_of_a_step_is_measured_when_asked_for() -> None:
    whole, given = objective2(), batch2()
    assert whole(given).stats == {}
    stats = whole(given, measure=True).stats
    assert set(stats) == LATENT_STATS
    assert all(value.ndim == 0 and not value.requires_grad for value in stats.values())
    assert all(value > 0 for name, value in stats.items() if name.endswith(("_std", "_rank")))


@every_kind
def test_learning_lowers_the_loss(kind: str) -> None:
    whole, given = objective2(kind, cls_loss=0.1 if kind == "vision" else 0.0), batch2(kind)
    optimizer = torch.optim.AdamW((p for p in whole.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for step in range(1, 41):
        output = whole(given)
        (output.loss / len(output.errors)).backward()
        optimizer.step()
        optimizer.zero_grad()
        whole.after_step(step)
        losses.append(output.loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_without_a_mask_vector_version_1_is_told_what_is_missing() -> None:
    student = encoder()
    student.local_encoder.mask_vector = None
    with pytest.raises(UserError, match=r"modality\.mask_vector: false, but this objective needs a mask vector"):
        student.apply_mask(torch.zeros(3, 20, 16), batch2(masks=1).mask, batch2(masks=1).input)


@pytest.mark.parametrize(
    "override", ["encoder.extra_tokens=0", "objective.decoder.groups=7"], ids=["no token for the class loss", "groups"]
)
def test_what_cannot_be_built_is_refused_by_its_setting(override: str) -> None:
    recipe = load_recipe("vision/v2-tiny", [override])
    key = "objective.cls_loss" if "extra" in override else "objective.decoder.groups"
    with pytest.raises(UserError, match=key):
        recipe.build_objective()


@every_kind
def test_transformer_decoder_predicts_and_learns(kind: str) -> None:
    decoder = {"kind": "transformer", "layers": 1, "width": 8, "heads": 2}
    whole, given = objective2(kind, decoder=decoder), batch2(kind)
    output = whole(given)
    output.loss.backward()
    assert len(output.errors) == len(given.predicted_indices)
    assert all(p.grad is not None for p in (*whole.decoder.parameters(), *whole.student.transformer.parameters()))


def test_decoder_is_convolutional_where_its_kind_is_left_out() -> None:
    assert Data2Vec2Settings(decoder={"layers": 2}).decoder == ConvDecoderSettings(layers=2)
    assert load_recipe("vision/v2-tiny").objective.decoder.kind == "conv"
    replaced = load_recipe("vision/v2-tiny", ["objective.decoder={kind: transformer, layers: 2}"]).objective
    assert replaced.decoder == TransformerDecoderSettings(layers=2)
    with pytest.raises(UserError, match=r"objective.decoder.kind: 'trnsformer' is not one of 'conv', 'transformer'"):
        load_recipe("vision/v2-tiny", ["objective.decoder={kind: trnsformer}"])


@pytest.mark.parametrize("decoder", [{}, {"kind": "transformer", "layers": 1, "width": 8, "heads": 2}])
def test_a_prediction_for_each_layer_has_the_mean_of_their_losses(decoder: dict[str, Any], seen: dict[str, Tensor]) -> None:
    target = TargetSettings(top_k=2, per_layer_norms=("layer",), heads="layer")
    whole = objective2("vision", cls_loss=0.5, target=target, **({"decoder": decoder} if decoder else {}))
    given = batch2("vision")
    output = whole(given, measure=True)
    prediction, targets = (seen[name].unflatten(-1, (2, 16)) for name in ("prediction", "target"))
    torch.testing.assert_close(output.errors, (prediction - targets).square().sum(-1).mean(-1) / 4)
    features, padding = whole.student.local_encoder(given)
    layers = [F.layer_norm(state.state, (16,)) for state in whole.student.block_outputs(features, padding)][1:]
    rows = given.predicted_indices // 25 // 4
    torch.testing.assert_close(targets[:, 0], layers[0][rows, given.predicted_indices % 25])
    torch.testing.assert_close(targets[:, 1], layers[1][rows, given.predicted_indices % 25])
    averaged = objective2("vision", cls_loss=0.5, target=target.model_copy(update={"heads": "average"}))(given)
    for one in (output, averaged):  # the class token predicts the mean of the layers in any case
        assert one.loss > one.errors.sum()
    torch.testing.assert_close(output.loss - output.errors.sum(), averaged.loss - averaged.errors.sum())


def test_terms_of_a_loss_are_logged_by_their_mean_and_their_share() -> None:
    settings = {"cls_loss": 0.5, "input_target": InputTargetSettings(weight=0.25, fade_from=1, fade_to=1)}
    whole, given = objective2("vision", **settings), batch2("vision")
    whole.before_step(1)
    output = whole(given, measure=True)
    stats, loss = output.stats, output.loss.detach()
    assert {key for key in stats if key.endswith(("_loss", "_share"))} == {
        f"{term}_{what}" for term in ("regression", "input", "class_token") for what in ("loss", "share")
    }
    assert sum(float(stats[f"{term}_share"]) for term in ("regression", "input", "class_token")) == pytest.approx(1)
    count = len(given.predicted_indices)
    assert float(stats["regression_loss"]) == pytest.approx(float(output.errors.mean()))
    weights = {"regression": 0.75, "input": 0.25, "class_token": 0.5}
    for term, weight in weights.items():
        assert float(stats[f"{term}_share"] * loss) == pytest.approx(weight * count * float(stats[f"{term}_loss"]), rel=1e-4)
