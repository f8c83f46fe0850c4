"""Masked language modelling: its head and loss, against RoBERTa of transformers, and which tokens it predicts."""

import math

import numpy as np
import pytest
import torch

from data2vec.batch import Batch
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.objective.masking import TokenMask
from helpers.rivals import rival
from helpers.small_models import batch2

CPU = Process(torch.device("cpu"))


def test_loss_equals_that_of_roberta_in_transformers() -> None:
    from transformers import RobertaConfig
    from transformers.models.roberta.modeling_roberta import RobertaLMHead

    whole, batch = rival("mlm", "text"), batch2("text", masks=1)
    torch.nn.init.normal_(whole.bias)
    torch.nn.init.normal_(whole.head[2].weight)
    theirs = RobertaLMHead(RobertaConfig(vocab_size=40, hidden_size=16, layer_norm_eps=1e-5))
    theirs.dense.load_state_dict(whole.head[0].state_dict())
    theirs.layer_norm.load_state_dict(whole.head[2].state_dict())
    theirs.decoder.weight = whole.student.local_encoder.tokens.weight
    theirs.decoder.bias = whole.bias
    labels = torch.where(batch.mask, batch.input, -100)
    context, _ = whole.encode_masked(batch, *whole.student.local_encoder(batch))
    expected = torch.nn.functional.cross_entropy(theirs(context).flatten(0, 1), labels.flatten())
    output = whole(batch)
    torch.testing.assert_close(output.loss / len(output.errors), expected)


def test_loss_of_a_new_head_is_about_the_logarithm_of_the_vocabulary() -> None:
    output = rival("mlm", "text")(batch2("text", masks=1))
    assert float(output.errors.mean()) == pytest.approx(math.log(40), abs=0.1)


def test_decoder_is_the_token_embedding_and_both_uses_give_it_gradients() -> None:
    whole, batch = rival("mlm", "text"), batch2("text", masks=1)
    whole(batch).loss.backward()
    gradient = whole.student.local_encoder.tokens.weight.grad
    assert (gradient.abs().sum(1) > 0).all()  # of tokens that are not in the input too
    assert whole.bias.grad is not None and sum(p.shape == (40, 16) for p in whole.parameters()) == 1


def test_selected_tokens_are_all_predicted_and_most_are_masked() -> None:
    drawn = TokenMask(prob=0.3, predict="selected").draw(200, (100,), np.random.default_rng(0))
    masked, predicted = drawn.masked.sum(), drawn.predicted.sum()
    assert (drawn.predicted >= drawn.masked).all() and (drawn.predicted >= drawn.replaced).all()
    assert masked / predicted == pytest.approx(0.8, abs=0.02) and drawn.replaced.sum() / predicted == pytest.approx(
        0.1, abs=0.02
    )
    alone = TokenMask(prob=0.3).draw(200, (100,), np.random.default_rng(0))
    assert (alone.predicted == alone.masked).all() and (alone.masked == drawn.masked).all()


def test_unigram_baseline_is_counted_once() -> None:
    whole = rival("mlm", "text")
    tokens = torch.tensor([[5] * 6 + [7] * 2])
    message = whole.fit_targets([Batch(tokens)], CPU)
    counts = torch.ones(40)
    counts[5], counts[7] = 7, 3
    torch.testing.assert_close(whole.token_log_frequency, (counts / 48).log())
    assert message is not None and "nats" in message
    assert whole.fit_targets(iter(()), CPU) is None  # a resumed or continued run

    batch = batch2("text", masks=1)
    stats = whole(batch, measure=True).stats
    unigram = -(counts / 48).log()[batch.input[batch.mask]].mean()
    torch.testing.assert_close(stats["nats_below_unigram"], unigram - whole(batch).errors.mean())


def test_modality_without_tokens_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.name: mlm predicts tokens"):
        rival("mlm", "speech")
