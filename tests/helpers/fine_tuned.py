"""Small models of every kind of head, with random weights, and labelled data for them."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.model import Model, blank_model
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.loading import load_recipe

SMALL = {"encoder.width": 16, "encoder.ffn_width": 32, "encoder.layers": 2, "encoder.heads": 2, "data.workers": 0}
SPEECH = {
    "modality.conv_layers": [[16, 10, 5], [16, 8, 8], [16, 8, 8]],
    "modality.position_groups": 2,
    "modality.position_depth": 2,
    "modality.position_kernel": 3,
}
KINDS: dict[str, tuple[str, dict[str, Any], CTCSettings | ClassifierSettings]] = {
    "classes of sounds": ("speech/v1-tiny", SPEECH, ClassifierSettings(labels=("low", "high", "none"))),
    "events": (
        "speech/v1-tiny",
        SPEECH,
        ClassifierSettings(labels=("low", "high", "none"), problem_type="multi_label_classification", pooling="linear-softmax"),
    ),
    "transcripts": ("speech/v1-tiny", SPEECH, CTCSettings(labels=("<s>", "<pad>", "</s>", "<unk>", "|", *"LOHIGW"))),
    "classes of images": (
        "vision/v2-tiny",
        {"modality.image": 32, "modality.patch": 8},
        ClassifierSettings(labels=("dark", "bright")),
    ),
    "classes of pairs": (
        "text/v1-tiny",
        {"modality.vocab_size": 300, "data.second": "sentence2"},
        ClassifierSettings(labels=("0", "1"), pooling="first", hidden_layer="tanh"),
    ),
    "numbers": (
        "text/v1-tiny",
        {"modality.vocab_size": 300},
        ClassifierSettings(labels=("score",), problem_type="regression"),
    ),
}
"""By what they predict: a recipe, its changes, and a head."""


def fine_tuned(kind: str, tokenizer: Path) -> Model:
    """A model that predicts this, with weights so large that no two outputs are nearly equal. `tokenizer`: see `make_data`."""
    name, changes, head = KINDS[kind]
    own = {"data.tokenizer": str(tokenizer)} if name.startswith("text") else {}
    torch.manual_seed(0)
    model = blank_model(load_recipe(name, SMALL | changes | own), head)
    assert model.head is not None
    for parameter in model.head.out.parameters():
        torch.nn.init.normal_(parameter, std=3)
    return model


def make_data(root: Path) -> dict[str, Path]:
    """Labelled data for each of `KINDS`, and a tokenizer."""
    rng = np.random.default_rng(0)
    (root / "sounds").mkdir(parents=True)
    rows = ["file_name,label,events,transcript"]
    for i in range(10):
        tone = 0.5 * np.sin(np.arange(3000 + 700 * i) * (0.1, 0.5)[i % 2]) + 0.05 * rng.standard_normal(3000 + 700 * i)
        soundfile.write(root / "sounds" / f"{i}.wav", tone, 16000)
        rows.append(f"{i}.wav,{('low', 'high')[i % 2]},{('low', 'high|none')[i % 2]},{('LOW', 'HIGH LOW')[i % 2]}")
    (root / "sounds" / "metadata.csv").write_text("\n".join(rows) + "\n")
    for i in range(8):
        folder = root / "images" / ("dark", "bright")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 128 + 127 * (i % 2), (32, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    lines = ["sentence1\tsentence2\tlabel\tscore"]
    words = ["fine", "poor", "a long film", "no", "yes yes", "it is"]
    for i in range(12):
        lines.append(f"the film is {words[i % 6]}\tit is {words[i % 5]}\t{i % 2}\t{i / 3:.2f}")
    (root / "texts.tsv").write_text("\n".join(lines) + "\n")
    save_tokenizer(train_tokenizer(["the film is fine", "it is poor"] * 9, 300), root)
    sounds = dict.fromkeys(("classes of sounds", "events", "transcripts"), root / "sounds")
    texts = dict.fromkeys(("classes of pairs", "numbers"), root / "texts.tsv")
    return {**sounds, **texts, "classes of images": root / "images", "tokenizer": root}
