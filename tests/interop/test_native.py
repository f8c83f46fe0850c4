"""Version 1 as folders of transformers: the same numbers there and here, both ways, and nothing lost on the way."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import data2vec
from data2vec import model as models
from data2vec import recipe as recipes
from data2vec.data.text import save_tokenizer, train_tokenizer
from data2vec.errors import UserError
from data2vec.interop.transformers import write
from data2vec.model import Model
from data2vec.nn.heads import AnyHeadSettings, ClassifierSettings, CTCSettings

SMALL = {"encoder.width": 32, "encoder.heads": 4, "encoder.ffn_width": 64, "encoder.layers": 3}
OWN = {
    "speech": {"modality.conv_layers": [[16, 10, 5], [16, 3, 2], [16, 2, 2]], "modality.position_depth": 2,
               "modality.position_kernel": 4, "modality.position_groups": 4, "modality.conv_bias": True},
    "vision": {"modality.image": 40, "modality.patch": 8},
    "text": {"modality.vocab_size": 300, "modality.max_length": 40, "encoder.activation": "relu"},
}  # fmt: skip
THREE = ("no", "yes", "perhaps")
POOLED = {"encoder.final_norm": False}
HEADS: dict[str, tuple[str, str, dict[str, Any], Any]] = {
    "speech": ("speech", "Data2VecAudioModel", {}, None),
    "ctc": ("speech", "Data2VecAudioForCTC", {}, CTCSettings(labels=("<pad>", "<s>", "</s>", "<unk>", "|", "A"))),
    "plain": ("speech", "Data2VecAudioForSequenceClassification", {}, ClassifierSettings(labels=THREE)),
    "projected": (
        "speech",
        "Data2VecAudioForSequenceClassification",
        {"modality.mask_vector": False},
        ClassifierSettings(labels=THREE, inner="linear", inner_width=24),
    ),
    "vision": ("vision", "Data2VecVisionModel", {}, None),
    "unnormed": ("vision", "Data2VecVisionModel", {**POOLED, "encoder.layer_scale": None, "modality.mask_vector": False}, None),
    "pictures": ("vision", "Data2VecVisionForImageClassification", POOLED, ClassifierSettings(labels=THREE, norm_eps=1e-6)),
    "tables": (
        "vision",
        "Data2VecVisionForImageClassification",
        {**POOLED, "modality.position_tables": 3},
        ClassifierSettings(labels=THREE, norm_eps=1e-6, problem="multi_label_classification"),
    ),
    "text": ("text", "Data2VecTextModel", {}, None),
    "sentences": (
        "text",
        "Data2VecTextForSequenceClassification",
        {},
        ClassifierSettings(labels=THREE, pool="first", inner="tanh"),
    ),
    "score": (
        "text",
        "Data2VecTextForSequenceClassification",
        {},
        ClassifierSettings(labels=("likeness",), pool="first", inner="tanh", problem="regression"),
    ),
}
EVERY = pytest.mark.parametrize("which", HEADS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["a small text about nothing"] * 5, 300), folder)
    return folder


def jolt(module: Any) -> Any:
    """Random values everywhere, norms and tables included, so that no mix-up goes unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make(which: str, tokenizer: Path, more: dict[str, Any] | None = None) -> Model:
    modality, _, changes, head = HEADS[which]
    text = {"data.tokenizer": str(tokenizer)} if modality == "text" else {}
    return built(modality, {**changes, **text, **(more or {})}, head)


def built(modality: str, changes: dict[str, Any], head: CTCSettings | ClassifierSettings | None = None) -> Model:
    model = models.blank(recipes.load(f"{modality}/v1-base", SMALL | OWN[modality] | changes), head)
    jolt(model.encoder)
    if model.head is not None:
        jolt(model.head)
    return replace(model, source="a test", license="mit")


def inputs(modality: str, padded: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch of ours and the same as theirs."""
    generator = torch.Generator().manual_seed(1)
    if modality == "vision":
        image = torch.randn(2, 3, 40, 40, generator=generator)
        return {"input": image}, {"pixel_values": image}
    length, there = (1000, (1000, 700)) if modality == "speech" else (20, (20, 13))
    padding = torch.arange(length) >= torch.tensor(there if padded else (length, length))[:, None]
    if modality == "speech":
        given, name = torch.randn(2, length, generator=generator).masked_fill(padding, 0), "input_values"
    else:
        given, name = torch.randint(4, 299, (2, length), generator=generator).masked_fill(padding, 1), "input_ids"
    ours = {"input": given} | ({"padding": padding} if padded else {})
    return ours, {name: given, **({"attention_mask": (~padding).long()} if padded else {})}


@torch.no_grad()
def agree(model: Model, theirs: Any, padded: bool) -> None:
    """Hidden states where something is, and logits."""
    ours, given = inputs(model.recipe.modality.name, padded)  # type: ignore[attr-defined]
    hidden, padding = model.encoder(ours)
    out = theirs(**given, output_hidden_states=True)
    if model.head is None:
        other = out.last_hidden_state
    else:
        logits = model.head(hidden, padding)
        if logits.ndim == 3 and padding is not None:
            torch.testing.assert_close(logits[~padding], out.logits[~padding], atol=1e-5, rtol=1e-5)
        else:
            torch.testing.assert_close(logits, out.logits, atol=1e-5, rtol=1e-5)
        other = out.hidden_states[-1]
    other = other[:, model.recipe.encoder.extra_tokens :]
    there = torch.ones(hidden.shape[:2], dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(hidden[there], other[there], atol=1e-5, rtol=1e-5)


def opened(folder: Path, name: str) -> Any:
    """Theirs, all of whose weights must have come from the folder, and all of the folder's be used."""
    more = {"add_pooling_layer": False} if name == "Data2VecTextModel" else {}
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **more)
    assert not any(info.values()), info
    return model.eval()


def same(ours: Model, other: Model) -> None:
    """Bit for bit."""
    for part in ("encoder", "head"):
        mine, theirs = getattr(ours, part), getattr(other, part)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            mine, theirs = dict(mine.named_parameters()), dict(theirs.named_parameters())
            assert mine.keys() == theirs.keys()
            assert all(mine[name].equal(theirs[name]) for name in mine)
    without = {"data.tokenizer": None}
    assert ours.recipe.flat() | without == other.recipe.flat() | without
    assert (ours.source, ours.license) == (other.source, other.license)
    if ours.head is not None and other.head is not None:
        assert ours.head.settings == other.head.settings


@pytest.mark.parametrize("padded", [False, True])
@EVERY
def test_transformers_computes_what_we_compute(which: str, padded: bool, tokenizer: Path, tmp_path: Path) -> None:
    model = make(which, tokenizer)
    assert write(model, tmp_path / "theirs") == []
    theirs = opened(tmp_path / "theirs", HEADS[which][1])
    agree(model, theirs, padded)


@EVERY
def test_nothing_is_lost_there_and_back(which: str, tokenizer: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make(which, tokenizer, {"train.lr": 0.123, "encoder.dropout": 0.07, "encoder.attention_dropout": 0.03})
    write(model, tmp_path / "theirs")
    same(model, data2vec.load(tmp_path / "theirs"))
    assert caplog.records == []
    assert "library_name: transformers" in (tmp_path / "theirs" / "README.md").read_text()
