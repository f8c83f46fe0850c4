import math

import pytest
import torch

from data2vec.batch import LabelledBatch
from data2vec.errors import UserError
from data2vec.feature_extraction import head_logits
from data2vec.nn import heads
from data2vec.nn.encoder import build_encoder
from data2vec.nn.heads import ClassifierSettings, CTCSettings, build_head
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings
from data2vec.tasks.finetuning.supervised import SupervisedObjective, classification_loss, recognition_loss

SMALL = {"encoder.width": 32, "encoder.ffn_width": 64, "encoder.layers": 2}
SPANS = {"kind": "span", "prob": 0.5, "length": 2}


def model(settings: RecognitionSettings | ClassificationSettings, name: str = "speech/v1-tiny") -> SupervisedObjective:
    torch.manual_seed(0)
    recipe = load_recipe(name, SMALL)
    encoder = build_encoder(recipe.build_modality(), recipe.encoder)
    head = (
        CTCSettings(labels=("-", "a", "b"))
        if isinstance(settings, RecognitionSettings)
        else ClassifierSettings(labels=("a", "b"))
    )
    return SupervisedObjective(encoder, build_head(head, 32), settings)


def test_ctc_loss_matches_a_manual_computation() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]]))
    # "a" over two frames: a-, -a, aa
    expected = -math.log(0.3 * 0.1 + 0.5 * 0.6 + 0.3 * 0.6)
    assert recognition_loss(logits, None, torch.tensor([[1]])).item() == pytest.approx(expected, rel=1e-5)


def test_ctc_loss_ignores_padding() -> None:
    torch.manual_seed(0)
    logits, padding = torch.randn(2, 6, 3), torch.arange(6) >= torch.tensor([6, 4])[:, None]
    together = recognition_loss(logits, padding, torch.tensor([[1, 2, 1], [2, -1, -1]]))
    alone = recognition_loss(logits[1:, :4], None, torch.tensor([[2]]))
    assert together[1].item() == pytest.approx(alone.item(), rel=1e-5)


def test_ctc_loss_of_empty_and_too_long_transcripts() -> None:
    logits = torch.zeros(1, 2, 3)
    assert recognition_loss(logits, None, torch.full((1, 0), -1)).item() == pytest.approx(2 * math.log(3), rel=1e-5)
    assert recognition_loss(logits, None, torch.tensor([[1, 2, 1, 2]])).item() == 0


def test_classification_losses_match_manual_computations() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    one = classification_loss(logits, torch.tensor([0]), ClassificationSettings())
    assert one.item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-5)
    many = ClassificationSettings(problem_type="multi_label_classification")
    both = classification_loss(logits, torch.tensor([[1.0, 1.0]]), many)
    assert both.item() == pytest.approx(math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1)), rel=1e-5)
    number = ClassificationSettings(problem_type="regression", label_scale=5)
    assert classification_loss(logits[:, :1], torch.tensor([5.0]), number).item() == pytest.approx(1)
    mixed = classification_loss(logits, torch.tensor([[0.25, 0.75]]), ClassificationSettings())
    assert mixed.item() == pytest.approx(one.item() + 0.75 * 3, rel=1e-5)


def test_frozen_encoder_gets_no_gradients() -> None:
    this = model(RecognitionSettings(freeze_steps=2))
    batch = LabelledBatch(torch.randn(2, 4000), labels=torch.tensor([[1], [2]]))
    for step, learns in ((2, False), (3, True)):
        this.zero_grad()
        this.before_step(step)
        this(batch).loss.backward()
        assert any(p.grad is not None for p in this.student.parameters()) is learns
        assert all(p.grad is not None for p in this.head.parameters())


@pytest.mark.parametrize("fill", ["vector", "noise", "zero"])
def test_masked_positions_and_channels_get_no_gradients(fill: str) -> None:
    this = model(RecognitionSettings.model_validate({"mask": SPANS, "channel_mask": SPANS, "mask_fill": fill}))
    x = torch.randn(2, 8, 32, requires_grad=True)
    mask, channels = torch.rand(2, 8) < 0.5, torch.rand(2, 32) < 0.3
    y = this._apply_masks(x, LabelledBatch(x, labels=torch.zeros(len(x)), mask=mask, channel_mask=channels))
    y.sum().backward()
    assert x.grad is not None
    masked = mask[..., None] | channels[:, None]
    assert not x.grad[masked.expand_as(x)].any() and (x.grad[~masked.expand_as(x)] == 1).all()
    assert not y[channels[:, None].expand_as(y)].any()


def test_mask_fill_vector_without_a_mask_vector_raises() -> None:
    settings = RecognitionSettings.model_validate({"mask": SPANS})
    with pytest.raises(UserError, match=r"objective\.mask_fill"):
        model(settings, "speech/v2-tiny")


def test_frozen_encoder_with_weighted_layers_trains_the_weights() -> None:
    settings = ClassificationSettings(freeze_encoder=True, weighted_layers=True)
    recipe = load_recipe("speech/v1-tiny", SMALL)
    encoder = build_encoder(recipe.build_modality(), recipe.encoder)
    this = SupervisedObjective(encoder, build_head(ClassifierSettings(labels=("a", "b"), weighted_layers=2), 32), settings)
    batch = LabelledBatch(torch.randn(2, 4000), labels=torch.tensor([0, 1]))
    this(batch).loss.backward()
    assert all(p.grad is None for p in this.student.parameters())
    assert this.head.mix is not None and this.head.mix.grad is not None and this.head.mix.grad.any()
    found, _ = head_logits(encoder.eval(), this.head, batch)
    outputs = encoder.block_outputs(*encoder.local_encoder(batch))
    normed = [torch.nn.functional.layer_norm(output.block, output.block.shape[-1:]) for output in outputs]
    torch.testing.assert_close(found, this.head((normed[0] + normed[1]) / 2))


def test_weight_average_follows_with_warmed_up_decay() -> None:
    this = model(RecognitionSettings(ema_decay=0.9))
    assert this.average is not None and this.best_weights_prefix == "average."
    weight, mean = this.head.out.weight, this.average["head"].out.weight
    start = weight.detach().clone()
    weight.data += 1
    this.after_step(1)
    torch.testing.assert_close(mean, start + (1 - 2 / 11))
    this.after_step(1000)
    torch.testing.assert_close(mean, start + 1 - 0.1 * 0 - (2 / 11) * 0.9)
    assert not any(p.requires_grad for p in this.average.parameters()) and not this.train().average.training  # type: ignore[union-attr]


def test_pooling_ignores_padding() -> None:
    torch.manual_seed(0)
    for pool in ("attention", "linear-softmax", "mean"):
        head = build_head(ClassifierSettings.model_validate({"labels": ["a", "b"], "pooling": pool}), 8)
        x = torch.randn(1, 6, 8)
        padding = torch.arange(6)[None] >= 4
        torch.testing.assert_close(head(x, padding), head(x[:, :4]))


def test_linear_softmax_matches_a_manual_computation() -> None:
    p = torch.tensor([0.2, 0.6])
    found = heads.linear_softmax(torch.logit(p)[None, :, None])
    assert torch.sigmoid(found).item() == pytest.approx((0.04 + 0.36) / 0.8, rel=1e-5)
