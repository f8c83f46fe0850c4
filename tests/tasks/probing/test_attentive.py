"""The attentive probe: what its head computes, what it is fitted to, and what is reported."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.modalities.speech import Speech
from data2vec.model import Model
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.probing.attentive import AttentiveHead, FrozenEncoders, StandardisedStates, attentive_probe, extract_states
from data2vec.tasks.probing.dataset import ProbeSet
from data2vec.tasks.probing.head_search import search_head

SMALL = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "objective.target.top_k": 2, "data.workers": 0}


@pytest.fixture
def speech() -> Model:
    recipe = load_recipe("speech/v1-tiny", {**SMALL, "train.device": "cpu"})
    modality = recipe.build_modality()
    torch.manual_seed(0)
    return Model(build_encoder(modality, recipe.encoder).eval(), modality, recipe)


def frozen_of(model: Model) -> FrozenEncoders:
    return FrozenEncoders((model.encoder, model.encoder), model.recipe, model.modality, Process(torch.device("cpu")), None)


def test_the_head_is_multi_head_attention_of_one_query() -> None:
    """In float64, against torch's attention, with keys and values projected; two inputs of 7 and 4 positions."""
    torch.manual_seed(0)
    head, x = AttentiveHead(width=16, heads=4, classes=3).double(), torch.randn(2, 7, 16, dtype=torch.float64)
    torch.nn.init.normal_(head.query)
    padding = torch.arange(7) >= torch.tensor([[7], [4]])
    attended, _ = F.multi_head_attention_forward(
        *(head.query.view(1, 1, 16).expand(1, 2, 16), x.transpose(0, 1), x.transpose(0, 1), 16, 4, None),
        *(torch.cat([torch.zeros(32), head.value.bias]), None, None, False, 0.0, torch.eye(16, dtype=torch.float64), None),
        key_padding_mask=padding,
        use_separate_proj_weight=True,
        q_proj_weight=torch.eye(16, dtype=torch.float64),
        k_proj_weight=head.key.weight,
        v_proj_weight=head.value.weight,
    )
    torch.testing.assert_close(head(x, padding), head.out(head.norm(attended[0])), rtol=1e-12, atol=1e-12)


def test_states_are_those_of_the_model_for_every_position(
    speech: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer-normalised; also where a recording is encoded in chunks, and beside longer ones; and in one of several processes,
    which do not exchange them."""
    monkeypatch.setattr(Speech.chunks, "__defaults__", (2.0, 1.0))
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(size).astype(np.float32) for size in (80000, 9000, 16000)]
    for i, wave in enumerate(waves):
        soundfile.write(tmp_path / f"{i}.wav", wave, 16000, subtype="FLOAT")
    examples = speech.modality.labelled(speech.modality.rows(str(tmp_path)))
    one_of_two = replace(frozen_of(speech), process=Process(torch.device("cpu"), rank=1, world_size=2))
    states, kept = extract_states(
        one_of_two, speech.encoder, ProbeSet("probe.data", examples, np.arange(3), np.array(list("abc"))), [1, 2]
    )
    assert kept.classes.tolist() == list("abc")
    for wave, x in zip(waves, states, strict=True):
        expected = F.layer_norm(speech.features(wave, "all").hidden[:, 0], (16,))
        torch.testing.assert_close(x.float(), expected, atol=5e-3, rtol=0)


def test_a_fitted_head_attends_to_the_one_position_that_holds_the_class() -> None:
    """Where all others are noise, large in a feature that is the same for all classes; of examples of different lengths."""
    rng = np.random.default_rng(0)
    labels = [torch.from_numpy(rng.integers(0, 3, size)) for size in (120, 40, 60)]
    states = []
    for y in labels:
        parts = [torch.from_numpy(rng.normal(size=(int(rng.integers(5, 12)), 8)).astype(np.float32)) for _ in y]
        for x, label in zip(parts, y.tolist(), strict=True):
            x[:, 6] += 100
            x[int(rng.integers(len(x))), [label, 7]] += 6
        states.append([x.half() for x in parts])
    standardised = StandardisedStates(states, torch.device("cpu"))
    fit = search_head(
        lambda: AttentiveHead(8, 2, 3), standardised.logits, labels, np.array(list("abc")), (1e-2, 1e-4), 150, 0, "head"
    )
    assert fit.lr == 1e-2 and fit.dev_accuracy > 0.9 and fit.scores["accuracy"] > 0.9


def write_tones(folder: Path, count: int, rng: np.random.Generator) -> Path:
    for name, frequency in (("low", 300), ("high", 3000)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            seconds = np.arange(int(rng.integers(2000, 4000))) / 16000
            soundfile.write(folder / name / f"{i}.wav", 0.1 * np.sin(2 * np.pi * frequency * seconds), 16000)
    return folder


def test_attentive_probe_reports_every_layer_and_is_reproducible(speech: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = write_tones(tmp_path / "train", 10, rng), write_tones(tmp_path / "test", 3, rng)
    (data[1] / "low" / "2.wav").write_bytes(b"no audio")
    before = torch.random.get_rng_state()
    found = attentive_probe(speech, *data, steps=3, out=tmp_path / "attentive.json")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (found.train, found.dev, found.valid) == (16, 4, 5)
    assert [row.layer for row in found.rows] == [1, 2]
    assert set(found.rows[0].trained.scores) == {"accuracy", "balanced_accuracy", "kappa", "weighted_f1", "auroc"}
    assert json.loads((tmp_path / "attentive.json").read_text())["rows"][1]["untrained"]["lr"] == found.rows[1].untrained.lr
    assert "best on dev, trained: layer" in str(found)
    assert attentive_probe(speech, *data, steps=3, layer=-1).rows == found.rows[1:]
    with pytest.raises(UserError, match=r"layers: 3 does not exist; this model has blocks 1 to 2"):
        attentive_probe(speech, *data, layer=3)
