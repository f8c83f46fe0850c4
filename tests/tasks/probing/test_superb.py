"""SUPERB's utterance-level head on states that are averaged over time beforehand."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data2vec.model import Model
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.probing.superb import LEARNING_RATES, UtteranceHead, fit_superb, superb_probe


def test_averaging_states_over_time_first_gives_the_logits_of_averaging_projections() -> None:
    """In float64; two inputs of 7 and 4 positions, the second one padded."""
    torch.manual_seed(0)
    head = UtteranceHead(layers=5, width=16, classes=3).double()
    torch.nn.init.normal_(head.mix)
    states, valid = torch.randn(5, 2, 7, 16, dtype=torch.float64), torch.ones(2, 7, 1, dtype=torch.float64)
    valid[1, 4:] = 0
    mixed = (head.mix.softmax(0)[:, None, None, None] * states).sum(0)
    averaged = (head.project(mixed) * valid).sum(1) / valid.sum(1)
    expected = head.classify(averaged)
    pooled = (states * valid).sum(2) / valid.sum(1)
    torch.testing.assert_close(head(pooled), expected, rtol=1e-12, atol=1e-12)


def test_the_search_finds_the_layer_that_holds_the_classes_and_keeps_the_best_head_on_dev() -> None:
    rng, names = np.random.default_rng(0), np.array(["a", "b", "c"])
    labels = [torch.from_numpy(rng.integers(0, 3, size)) for size in (200, 60, 60)]
    features = [torch.from_numpy(rng.normal(size=(4, len(y), 8)).astype(np.float32)) for y in labels]
    for x, y in zip(features, labels, strict=True):
        x[2, torch.arange(len(y)), y] += 3
    head = fit_superb(features, labels, names, 300, 0)
    assert head.scores["accuracy"] > 0.85 and head.dev_accuracy > 0.85
    assert head.lr in LEARNING_RATES
    assert int(np.argmax(head.layer_weights)) == 2 and sum(head.layer_weights) == pytest.approx(1)


def test_superb_probe_reads_all_states_and_writes_its_result(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 4)):
        for name, frequency in (("low", 200), ("high", 3000)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                seconds = np.arange(int(16000 * rng.uniform(0.2, 0.4))) / 16000
                wave = 0.1 * np.sin(2 * np.pi * frequency * seconds) + rng.normal(0, 0.01, len(seconds))
                soundfile.write(tmp_path / split / name / f"{i}.wav", wave, 16000)
    small = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "objective.target.top_k": 2, "data.workers": 0}
    recipe = load_recipe("speech/v1-tiny", {**small, "train.device": "cpu"})
    modality = recipe.build_modality()
    torch.manual_seed(0)
    model = Model(build_encoder(modality, recipe.encoder).eval(), modality, recipe)
    before = torch.random.get_rng_state()
    found = superb_probe(model, tmp_path / "train", tmp_path / "test", steps=20, out=tmp_path / "superb.json")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (found.train, found.dev, found.valid) == (16, 4, 8)
    assert len(found.trained.layer_weights) == 3
    assert found.trained.scores["accuracy"] > 0.9
    assert json.loads((tmp_path / "superb.json").read_text())["trained"]["lr"] == found.trained.lr
    assert "learning rate and step chosen on 4 dev examples" in str(found)
