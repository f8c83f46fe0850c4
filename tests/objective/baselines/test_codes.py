"""Codes: the codebook, the cosine head and the loss, against the formulas of HuBERT and the loss of BEiT in transformers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.objective.baselines.codes import CodesSettings, CosineHead, fit_k_means, nearest_code, perplexity
from helpers.rivals import rival
from helpers.small_models import batch2

CPU = Process(torch.device("cpu"))


def fitted(kind: str = "speech", **changes: object) -> tuple:
    whole, batch = rival("codes", kind, clusters=4, fit_positions=60, **changes), batch2(kind, masks=1)
    message = whole.fit_targets(iter([batch]), CPU)
    assert message is not None and message.startswith("codes: 4 clusters of")
    return whole, batch


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("speech", {}),
        ("vision", {"features": "hog", "head": "linear"}),
        ("vision", {"features": "raw", "normalize": "position"}),
    ],
)
def test_loss_is_the_cross_entropy_of_the_nearest_cluster(kind: str, changes: dict[str, object]) -> None:
    whole, batch = fitted(kind, **changes)
    x = whole.features.compute(batch)
    if changes.get("normalize"):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
    labels = torch.cdist(x.double(), whole.codebook.double()).argmin(-1)[batch.mask]
    _, predicted = whole.encode_masked(batch, *whole.student.local_encoder(batch))
    if changes.get("head") == "linear":
        logits = whole.head(predicted)
    else:
        projected = whole.head.project(predicted)[:, None]
        logits = F.cosine_similarity(projected, whole.head.codes[None], dim=-1) / 0.1
    torch.testing.assert_close(whole(batch).loss, F.cross_entropy(logits, labels, reduction="sum"))


def test_cosine_head_on_a_worked_case() -> None:
    head = CosineHead(2, 2, 2, temperature=0.1)
    with torch.no_grad():
        head.project.weight.copy_(torch.eye(2))
        head.project.bias.zero_()
        head.codes.copy_(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    logits = head(torch.tensor([[3.0, 4.0]]))
    assert torch.allclose(logits, torch.tensor([[6.0, 7.0 / 5 / 2**0.5 * 10]]))


def test_loss_of_linear_codes_equals_that_of_beit_in_transformers() -> None:
    from transformers import BeitConfig, BeitForMaskedImageModeling

    torch.manual_seed(0)
    config = BeitConfig(
        **{"image_size": 20, "patch_size": 4, "vocab_size": 4, "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 16, "use_mask_token": True},
    )
    beit = BeitForMaskedImageModeling(config).eval()
    whole, batch = fitted("vision", features="raw", head="linear")
    labels = nearest_code(whole.features.compute(batch).flatten(0, 1), whole.codebook)[batch.predicted_indices]
    theirs = beit(batch.input, bool_masked_pos=batch.mask, labels=labels)
    whole.head.load_state_dict(beit.lm_head.state_dict())
    states = theirs.hidden_states or beit.beit(batch.input, bool_masked_pos=batch.mask).last_hidden_state
    predicted = beit.layernorm(states)[:, 1:][batch.mask]
    torch.testing.assert_close(F.cross_entropy(whole.head(predicted), labels), theirs.loss)


def test_k_means_finds_separate_clusters() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    sample = (centres[np.arange(300) % 3] + 0.1 * rng.standard_normal((300, 2))).astype(np.float32)
    codebook = fit_k_means(sample, 3)
    labels = nearest_code(torch.from_numpy(sample), codebook).view(100, 3)
    assert len(set(labels[0].tolist())) == 3 and (labels == labels[0]).all()
    assert torch.cdist(codebook, torch.from_numpy(centres).float()).amin(1).max() < 0.1


def test_too_few_positions_for_the_clusters_are_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.clusters: 5 is more than the distinct positions in a sample of 3"):
        fit_k_means(np.eye(3, dtype=np.float32), 5)
    with pytest.raises(UserError, match=r"objective\.clusters: 5 is more than the distinct positions in a sample of 30"):
        fit_k_means(np.repeat(np.eye(3, dtype=np.float32), 10, 0), 5)


def test_codebook_is_kept_where_it_was_loaded() -> None:
    whole, _ = fitted()
    before = whole.codebook.clone()
    message = whole.fit_targets(iter(()), CPU)
    assert message is not None and "is kept" in message and torch.equal(whole.codebook, before)
    assert "codebook" in whole.state_dict()


def test_layer_targets_are_the_output_of_a_frozen_encoder() -> None:
    whole, batch = fitted(features="layer", layer=2, model="somewhere")
    with torch.no_grad():
        for p in whole.student.parameters():
            p.add_(0.1)
    target, _ = whole.target_encoder, whole.train()
    assert not target.training and not any(p.requires_grad for p in target.parameters())
    assert whole.trained_encoders() == {"somewhere": target}
    features, padding = target.local_encoder(batch)
    expected = list(target.block_outputs(features, padding))[1].block
    torch.testing.assert_close(whole.features.compute(batch), expected)


def test_settings_of_a_layer_need_a_model_and_only_they() -> None:
    for wrong in ({"features": "layer"}, {"model": "somewhere"}):
        with pytest.raises(ValueError, match="set a model for features: layer, and only then"):
            CodesSettings(**wrong)
    with pytest.raises(UserError, match=r"objective\.layer: 4 is more than encoder\.layers, 3"):
        rival("codes", features="layer", layer=4, model="somewhere")


def test_perplexity_is_the_number_of_equally_used_codes() -> None:
    assert float(perplexity(torch.tensor([0.25] * 4 + [0.0] * 4))) == pytest.approx(4)


def test_statistics_are_finite_and_within_their_range() -> None:
    whole, batch = fitted()
    stats = whole(batch, measure=True).stats
    assert 1 <= stats["code_perplexity"] <= 4 and 1 <= stats["prediction_perplexity"] <= 4.001 and 0 <= stats["accuracy"] <= 1
