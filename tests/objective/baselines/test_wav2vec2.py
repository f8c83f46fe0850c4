"""wav2vec 2.0: contrast, diversity and quantiser against transformers and by hand."""

import pytest
import torch

from data2vec.errors import UserError
from data2vec.objective.baselines.wav2vec2 import Quantizer, Wav2Vec2Settings, contrast, draw_distractors
from data2vec.objective.masking import SpanMask
from helpers.rivals import rival
from helpers.small_models import batch2

SMALL = {"groups": 2, "entries": 5, "quantized_width": 8, "distractors": 6, "mask": SpanMask(min_spans=2)}


def test_quantizer_and_losses_equal_those_of_transformers() -> None:
    from transformers import Wav2Vec2Config
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2ForPreTraining, Wav2Vec2GumbelVectorQuantizer

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        num_codevector_groups=2,
        num_codevectors_per_group=5,
        codevector_dim=8,
        conv_dim=(4,),
        conv_kernel=(4,),
        conv_stride=(2,),
    )
    theirs = Wav2Vec2GumbelVectorQuantizer(config).eval()
    ours = Quantizer(Wav2Vec2Settings(**SMALL), 4).eval()
    theirs.weight_proj.load_state_dict(ours.logits.state_dict())
    theirs.codevectors.data = ours.codebooks.data.flatten(0, 1)[None]
    z = torch.randn(7, 4)
    quantized, probabilities, used = ours(z)
    expected, code_perplexity = theirs(z[None])
    torch.testing.assert_close(quantized, expected[0])
    ours_perplexity = sum(torch.exp(-(p * (p + 1e-7).log()).sum()) for p in used)
    torch.testing.assert_close(ours_perplexity, code_perplexity)
    torch.testing.assert_close(probabilities, theirs.weight_proj(z).view(7, 2, 5).softmax(-1).mean(0))

    prediction, distractors = torch.randn(7, 8), draw_distractors(1, 7, 6, z.device)
    logits = contrast(prediction, quantized, distractors) / 0.1
    negatives = quantized[distractors].transpose(0, 1)[:, None]  # (K, 1, N, Q)
    cosines = Wav2Vec2ForPreTraining.compute_contrastive_logits(quantized[None, None], negatives, prediction[None, None], 0.1)
    same = (quantized == negatives).all(-1)
    cosines[1:] = cosines[1:].masked_fill(same, float("-inf"))
    torch.testing.assert_close(logits, cosines[:, 0].T)


def test_loss_is_contrast_plus_weighted_diversity_and_penalty() -> None:
    whole, batch = rival("wav2vec2", **SMALL).eval(), batch2(masks=1)
    torch.manual_seed(1)
    output = whole(batch, measure=True)
    convolved, _ = whole.student.local_encoder.extract(batch)
    diversity = (10 - output.stats["prob_perplexity"]) / 10
    extra = 0.1 * diversity + 10 * convolved.square().mean()
    torch.testing.assert_close(output.loss, output.errors.sum() + len(output.errors) * extra)
    output.loss.backward()


def test_loss_without_noise_equals_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2BaseModelOutput

    whole, batch = rival("wav2vec2", **SMALL, penalty_weight=0.0).eval(), batch2(masks=1)
    config = Wav2Vec2Config(
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"conv_dim": (8,), "conv_kernel": (4,), "conv_stride": (2,), "num_conv_pos_embedding_groups": 2},
        **{"num_codevector_groups": 2, "num_codevectors_per_group": 5, "codevector_dim": 8, "proj_codevector_dim": 8},
        **{"feat_quantizer_dropout": 0.0, "diversity_loss_weight": 0.1, "contrastive_logits_temperature": 0.1},
    )
    theirs = Wav2Vec2ForPreTraining(config).train()  # in evaluation their perplexity is that of the entries used
    theirs.project_hid.load_state_dict(whole.project_context.state_dict())
    theirs.project_q.load_state_dict(whole.project_quantized.state_dict())
    theirs.quantizer.weight_proj.load_state_dict(whole.quantizer.logits.state_dict())
    theirs.quantizer.codevectors.data = whole.quantizer.codebooks.data.flatten(0, 1)[None]

    def without_noise(logits: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", without_noise)
    rows, positions = batch.mask.shape
    masked, drawn = batch.predicted_indices, draw_distractors(rows, len(batch.predicted_indices), 6, batch.input.device)
    monkeypatch.setattr("data2vec.objective.baselines.wav2vec2.draw_distractors", lambda *_: drawn)
    negatives = torch.zeros(rows * positions, 6, dtype=torch.long)
    negatives[masked] = masked[drawn]

    local_encoder = whole.student.local_encoder
    z = local_encoder.norm(local_encoder.extract(batch)[0])
    context, _ = whole.encode_masked(batch, local_encoder.project(z), None)
    theirs.wav2vec2.forward = lambda *_, **__: Wav2Vec2BaseModelOutput(last_hidden_state=context, extract_features=z)
    expected = theirs(batch.input, mask_time_indices=batch.mask, sampled_negative_indices=negatives.view(rows, positions, 6))

    output = whole(batch)
    torch.testing.assert_close(output.errors.sum(), expected.contrastive_loss)
    torch.testing.assert_close(output.loss, expected.loss)
    ours_grad, theirs_grad = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0]
        for loss, weight in ((output.loss, whole.project_context.weight), (expected.loss, theirs.project_hid.weight))
    )
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-4)


def test_straight_through_has_the_value_of_an_entry_and_a_gradient() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(Wav2Vec2Settings(**SMALL), 4).train()
    quantized, _, _ = quantizer(torch.randn(7, 4))
    nearest = torch.cdist(quantized.view(7, 2, 4).transpose(0, 1), quantizer.codebooks).amin(-1)
    assert nearest.max() < 1e-3
    quantized.square().sum().backward()
    assert quantizer.logits.weight.grad.abs().sum() > 0


def test_distractors_are_other_positions_of_the_same_row() -> None:
    torch.manual_seed(0)
    drawn = draw_distractors(3, 12, 200, torch.device("cpu"))
    for i, row in enumerate(drawn.tolist()):
        assert set(row) == set(range(i // 4 * 4, i // 4 * 4 + 4)) - {i}


def test_distractor_equal_to_the_target_is_left_out() -> None:
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits = contrast(torch.tensor([[1.0, 0.0]] * 3), target, torch.tensor([[1, 2], [0, 2], [0, 1]]))
    assert logits.tolist() == [[1, float("-inf"), 0], [1, float("-inf"), 0], [0, 1, 1]]


def test_temperature_falls_to_its_minimum() -> None:
    whole = rival("wav2vec2", **SMALL, gumbel=(2.0, 0.5, 0.5))
    values = []
    for step in (1, 2, 3, 4):
        whole.before_step(step)
        values.append(float(whole.quantizer.temperature))
    assert values == [2.0, 1.0, 0.5, 0.5]


def test_mask_that_may_leave_no_distractor_is_refused() -> None:
    with pytest.raises(UserError, match=r"^objective\.mask\.min_spans: 1 may mask a single position.*set it to 2$"):
        rival("wav2vec2", **SMALL | {"mask": SpanMask()})


def test_modality_without_convolutions_is_refused() -> None:
    with pytest.raises(UserError, match="wav2vec2 needs convolutional features"):
        rival("wav2vec2", "vision", **SMALL)
