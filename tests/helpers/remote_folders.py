"""Small models of every kind that is written with its own code for transformers, and their inputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data2vec.batch import Batch
from data2vec.model import Model, blank_model
from data2vec.nn.heads import ClassifierSettings, CTCSettings
from data2vec.recipe.loading import load_recipe, validate_recipe

ENCODER = {"width": 32, "layers": 3, "heads": 4, "ffn_width": 64, "dropout": 0, "attention_dropout": 0, "layerdrop": 0}
CONV = [[16, 10, 5], [16, 3, 2], [16, 2, 2]]
SPEECH: dict[str, Any] = {"conv_layers": CONV, "position_depth": 2, "position_kernel": 4, "position_groups": 4}
SPEECH["position_padding"] = "zero_every_layer"
PRE = {"norm": "pre", "input_norm": False, "final_norm": True, "activation": "relu"}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "speech": ("speech/v2-large", SPEECH, {"prenet_layers": 1}),
    "speech-wav2vec2": ("speech/v2-base", {**SPEECH, "conv_norm": "group", "conv_bias": True, "alibi": False}, PRE),
    "speech-tokens": ("speech/v2-base", {**SPEECH, "mask_vector": True}, {"extra_tokens": 2, "heads": 2, "layer_scale": 0.5}),
    "vision": ("vision/v2-base", {"image": 16, "patch": 4}, {"prenet_layers": 1}),
    "vision-tiny": ("vision/v2-tiny", {"image": 16, "patch": 4}, {}),
    "vision-relative": ("vision/v2-tiny", {"image": 12, "patch": 4, "positions": "relative"}, {}),
    "vision-tables": ("vision/v2-tiny", {"image": 12, "patch": 4, "positions": "relative", "position_tables": 3}, {}),
    "text": ("text/v2-base", {"vocab_size": 60, "max_length": 24}, {"prenet_layers": 1}),
    "text-pre": (
        "text/v2-tiny",
        {"positions": "learned", "vocab_size": 60, "max_length": 24, "embedding_norm": False, "scale_embedding": True},
        PRE,
    ),
    "text-conv": (
        "text/v2-tiny",
        {
            "positions": "conv",
            "position_kernel": 4,
            "position_groups": 4,
            "vocab_size": 60,
            "position_padding": "zero_every_layer",
        },
        {},
    ),
    "sound": (
        "sound/v2-eat-base",
        {"mean": 0.0, "std": 0.5, "frames": 64, "position_scale": 0.3},  # log-mel values are normalized already
        {},
    ),
    "text-alibi": ("text/v2-base", {"positions": "alibi", "vocab_size": 60}, {"extra_tokens": 1}),
}
HEADS = {
    "ctc": ("speech", CTCSettings(labels=("<pad>", "|", "E", "T", "A"))),
    "audio": ("speech", ClassifierSettings(labels=("yes", "no", "up"), pooling="mean", hidden_layer="linear", hidden_width=8)),
    "first": ("speech-tokens", ClassifierSettings(labels=("yes", "no", "up"), pooling="first")),
    "image": ("vision", ClassifierSettings(labels=("cat", "dog"), norm_eps=1e-6)),
    "text": ("text", ClassifierSettings(labels=("score",), pooling="first", hidden_layer="tanh", problem_type="regression")),
    "attended": ("text-conv", ClassifierSettings(labels=("a", "b", "c"), pooling="attention", weighted_layers=3)),
    "events": (
        "speech",
        ClassifierSettings(labels=("a", "b"), pooling="linear-softmax", problem_type="multi_label_classification"),
    ),
    "class-token": ("sound", ClassifierSettings(labels=("dog", "rain"), pooling="class-token", norm_eps=1e-6)),
    "ctc-mixed": ("speech-tokens", CTCSettings(labels=("<pad>", "|", "E", "T", "A"), weighted_layers=3)),
    "many": ("text-pre", ClassifierSettings(labels=("a", "b"), problem_type="multi_label_classification")),
}
AUTO = {"ctc": "CTC", "audio": "AudioClassification", "first": "AudioClassification", "image": "ImageClassification"}
AUTO |= {"attended": "SequenceClassification", "events": "AudioClassification", "ctc-mixed": "CTC"}
AUTO |= {"class-token": "AudioClassification"}
AUTO |= {"text": "SequenceClassification", "many": "SequenceClassification"}


def made(kind: str, head: Any = None, data: dict[str, Any] | None = None) -> Model:
    """A small model whose every weight is random, norms and tables included, so that no mix-up goes unseen."""
    name, modality, encoder = KINDS[kind]
    raw = load_recipe(name).model_dump(mode="json")
    raw["modality"] |= modality
    raw["encoder"] |= ENCODER | encoder
    raw["data"] |= data or {}
    model = blank_model(validate_recipe(raw, kind), head)
    generator = torch.Generator().manual_seed(0)
    for part in (model.encoder, model.head) if model.head is not None else (model.encoder,):
        for parameter in part.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return replace(model, source="a test", license="mit", pretraining={"teacher.x": torch.ones(1), "decoder.y": torch.ones(1)})


def batch(kind: str, padded: bool = False) -> tuple[Batch, dict[str, Tensor]]:
    """The same inputs for us and for transformers; with padding, the second row is shorter."""
    generator = torch.Generator().manual_seed(1)
    if kind.startswith("vision"):
        images = torch.randn(2, 3, *[KINDS[kind][1]["image"]] * 2, generator=generator)
        return Batch(images), {"pixel_values": images}
    if kind == "sound":
        spectrograms = torch.randn(2, 64, 128, generator=generator)
        if not padded:
            return Batch(spectrograms), {"input_values": spectrograms}
        absent = torch.arange(64) >= torch.tensor([64, 32])[:, None]
        spectrograms = spectrograms.masked_fill(absent[..., None], 0)
        return Batch(spectrograms, absent), {"input_values": spectrograms, "attention_mask": (~absent).long()}
    if kind.startswith("speech"):
        name, inputs, lengths = "input_values", torch.randn(2, 1000, generator=generator), torch.tensor([1000, 700])
    else:
        name, inputs, lengths = "input_ids", torch.randint(4, 59, (2, 20), generator=generator), torch.tensor([20, 13])
    if not padded:
        return Batch(inputs), {name: inputs}
    padding = torch.arange(inputs.shape[1]) >= lengths[:, None]
    inputs = inputs.masked_fill(padding, 0 if name == "input_values" else 1)
    return Batch(inputs, padding=padding), {name: inputs, "attention_mask": (~padding).long()}


def opened(folder: Path, auto: str = "AutoModel", **settings: Any) -> Any:
    """By transformers, and with nothing missing and nothing left over."""
    import transformers

    model, info = getattr(transformers, auto).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **settings
    )
    assert not any(info.values()), info
    return model
