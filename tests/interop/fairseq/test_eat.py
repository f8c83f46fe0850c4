"""Files of EAT, version 2 on spectrograms: recognised, opened with the features of its architecture, converted and written."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F

import data2vec
from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.interop.fairseq.write import write_fairseq_checkpoint
from data2vec.modalities.fbank import FbankSettings, fbank
from data2vec.model import Model
from data2vec.nn.heads import ClassifierSettings
from data2vec.nn.position_encoders import sincos_positions
from helpers.official_files import Shapes, _timm_block, affine, norm, save
from helpers.released_models import small, trained

WIDTH, HEADS, MEAN, STD = 64, 4, -4.2677393, 4.5689974
IMAGE = "modality_encoders.IMAGE"
ENCODER: Shapes = {
    **affine(f"{IMAGE}.local_encoder.proj", WIDTH, 1, 16, 16), f"{IMAGE}.extra_tokens": (1, 1, WIDTH),
    **norm(f"{IMAGE}.context_encoder.norm"), **_timm_block("blocks.0"), **_timm_block("blocks.1"),
}  # fmt: skip
DECODER = affine(f"{IMAGE}.decoder.blocks.0.0", WIDTH, 4, 3, 3) | affine(f"{IMAGE}.decoder.proj", WIDTH, WIDTH)
CONFIG: dict[str, Any] = {
    "_name": "data2vec_multi", "num_heads": HEADS, "clone_batch": 16, "average_top_k_layers": 2, "cls_loss": 1,
    "ema_decay": 0.9998, "modalities": {"image": {"in_chans": 1, "mask_length": 5}},
}  # fmt: skip


def random(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pretrained(rows: int = 768) -> dict[str, Any]:
    """The content of a file: student in half precision, teacher with its own patch embedding."""
    positions = {f"{IMAGE}.fixed_positional_encoder.positions": sincos_positions((rows, 8), WIDTH)[None]}
    student = {name: value.half() for name, value in (random(ENCODER | DECODER) | positions).items()}
    student["_ema"] = random(ENCODER, seed=1) | positions  # type: ignore[assignment]
    return {"args": None, "cfg": {"model": CONFIG, "task": {"data": "."}}, "model": student, "extra_state": {}}


def fine_tuned(classes: int = 527, **outer: Any) -> dict[str, Any]:
    head = random(norm("fc_norm") | affine("head", classes, WIDTH), seed=2)
    state = {f"model.{name}": value for name, value in random(ENCODER).items()} | head
    config = {"_name": "mae_image_classification", "pretrained_model_args": {"model": CONFIG, "task": {}}, **outer}
    return {"args": None, "cfg": {"model": config, "task": {}}, "model": state}


def eat(weights: dict[str, Tensor], log_mel: Tensor) -> Tensor:
    """The output (B, 1 + T, D) of the architecture for log-mel spectrograms (B, F, 128), the class token first."""
    w = {name: value.float() for name, value in weights.items() if isinstance(value, Tensor)}
    x = F.conv2d(((log_mel - MEAN) / (2 * STD))[:, None], w[f"{IMAGE}.local_encoder.proj.weight"],
                 w[f"{IMAGE}.local_encoder.proj.bias"], stride=16)  # fmt: skip
    rows = x.shape[2]
    x = x.flatten(2).transpose(1, 2)  # (B, T, D), time first
    time, band = np.arange(rows).repeat(8), np.tile(np.arange(8), rows)
    omega = 10000.0 ** (-np.arange(WIDTH // 4) / (WIDTH // 4))
    parts = [wave(place[:, None] * omega) for place in (band, time) for wave in (np.sin, np.cos)]
    x = x + torch.from_numpy(np.concatenate(parts, 1)).float()
    x = torch.cat([w[f"{IMAGE}.extra_tokens"].expand(len(x), -1, -1), x], 1)

    def layer_norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, w[f"{name}.weight"], w[f"{name}.bias"])

    x = layer_norm(f"{IMAGE}.context_encoder.norm", x)
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(f"{block}.attn.qkv", x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        x = layer_norm(f"{block}.norm1", x + linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2)))
        x = layer_norm(f"{block}.norm2", x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", x))))
    return x


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, Tensor]:
    """A clip of 3 s, and its log-mel spectrogram filled up to 1024 frames with zeros, as EAT takes it."""
    wave = (0.1 * np.random.default_rng(0).standard_normal(48000)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", wave, 16000, subtype="FLOAT")
    log_mel = torch.from_numpy(fbank(wave, FbankSettings()))
    return tmp_path / "clip.wav", F.pad(log_mel, (0, 0, 0, 1024 - len(log_mel)))[None]


@pytest.mark.parametrize("rows", [768, 64])
def test_features_equal_those_of_the_architecture(
    rows: int, tmp_path: Path, clip: tuple[Path, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    made = pretrained(rows)
    model = data2vec.load(save(tmp_path, made))
    assert "an EAT model; its input is normalized by mean -4.26774 and std 4.569, those of AudioSet" in caplog.text
    modality = model.recipe.modality
    assert (modality.name, modality.attend_padding, modality.patch, modality.fbank.bins) == ("sound", True, (16, 16), 128)
    expected = eat(made["model"], clip[1])
    found = model.features(str(clip[0])).hidden[0]
    torch.testing.assert_close(found, expected[:, 1:], atol=2e-5, rtol=2e-5)
    extra, _ = model.encoder.encode_with_extra(*model.encoder.local_encoder(Batch(clip[1])))
    torch.testing.assert_close(extra[:, 0], expected[:, 0], atol=2e-5, rtol=2e-5)
    objective = model.recipe.objective
    assert (objective.cls_loss, objective.cls_reduction, objective.mask.length) == (1, "sum", 5)
    assert torch.equal(
        model.pretraining["teacher.ema.local_encoder.project.bias"], made["model"]["_ema"][f"{IMAGE}.local_encoder.proj.bias"]
    )


def test_pretrained_file_survives_the_way_through_our_form_and_back(tmp_path: Path) -> None:
    made = pretrained()
    model = data2vec.load(save(tmp_path, made))
    model.save_pretrained(tmp_path / "ours")
    write_fairseq_checkpoint(data2vec.load(tmp_path / "ours"), tmp_path / "again.pt")
    written = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    teachers = made["model"].pop("_ema"), written.pop("_ema")
    for before, after in ((made["model"], written), teachers):
        assert before.keys() == after.keys()
        for name, value in before.items():
            torch.testing.assert_close(after[name], value.float(), atol=1e-3 if "positional" in name else 0, rtol=0)


def test_fine_tuned_file_has_a_head_on_the_class_token(tmp_path: Path, clip: tuple[Path, Tensor]) -> None:
    made = fine_tuned()
    model = data2vec.load(save(tmp_path, made))
    assert model.head is not None and model.head.settings.problem_type == "multi_label_classification"
    state = {name.removeprefix("model."): value for name, value in made["model"].items()}
    pooled = F.layer_norm(eat(state, clip[1])[:, 0], (WIDTH,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    logits = F.linear(pooled, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model.logits(str(clip[0])).logits, logits, atol=1e-4, rtol=1e-4)
    write_fairseq_checkpoint(model, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert {*again["model"]} - {f"model.{IMAGE}.fixed_positional_encoder.positions"} == {*made["model"]}
    assert data2vec.load(tmp_path / "again.pt").head.settings == model.head.settings  # type: ignore[union-attr]


def test_head_of_another_kind_is_asked_about_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head = data2vec.load(save(tmp_path, fine_tuned(50, prediction_mode="MEAN_POOLING"))).head
    assert head is not None and head.settings.pooling == "mean" and "its 50 classes are taken as exclusive" in caplog.text
    with pytest.raises(UserError, match="prediction_mode LIN_SOFTMAX is not supported"):
        data2vec.load(save(tmp_path, fine_tuned(50, prediction_mode="LIN_SOFTMAX")))


def test_positions_that_are_not_sines_are_refused(tmp_path: Path) -> None:
    made = pretrained()
    made["model"][f"{IMAGE}.fixed_positional_encoder.positions"][0, 9] += 0.1
    with pytest.raises(UserError, match="not sine-cosine positions"):
        data2vec.load(save(tmp_path, made))


@pytest.mark.parametrize("side", [14, 16])  # 16 x 16 positions are as many as 32 rows of EAT
def test_images_of_one_channel_are_not_taken_for_eat(side: int, tmp_path: Path) -> None:
    made = pretrained()
    made["model"][f"{IMAGE}.fixed_positional_encoder.positions"] = sincos_positions((side, side), WIDTH)[None]
    with pytest.raises(UserError, match=r"not sine-cosine positions of EAT, .*; images of one channel are not supported"):
        data2vec.load(save(tmp_path, made))
    without_positions = fine_tuned()
    without_positions["model"] |= {f"model.{IMAGE}.local_encoder.proj.weight": torch.zeros(WIDTH, 1, 8, 8)}
    with pytest.raises(UserError, match=r"16 patches of one channel in frequency, .*; images of one channel are not supported"):
        data2vec.load(save(tmp_path, without_positions))


def test_our_model_in_their_form_keeps_normalization_and_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"modality.mean": -6.0, "modality.std": 5.0, "modality.frames": 512, "modality.attend_padding": False}
    settings |= {"modality.position_scale": 0.2}
    recipe = small("sound/v2-eat-base", **{key.replace(".", "__"): value for key, value in settings.items()})
    head = ClassifierSettings(labels=("dog", "rain"), pooling="class-token", norm_eps=1e-6)
    ours = replace(trained(recipe, head), pretraining={})
    write_fairseq_checkpoint(ours, tmp_path / "model.pt")
    with caplog.at_level(logging.WARNING):
        again: Model = data2vec.load(tmp_path / "model.pt")
    assert "normalized" not in caplog.text and again.recipe.modality == ours.recipe.modality
    assert again.head is not None and again.head.settings == head
    given = Batch(torch.randn(1, 64, 128) - 6)
    torch.testing.assert_close(again.encoder(given)[0], ours.encoder(given)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modality__fbank__bins": 64}, "modality.fbank.bins: 4 patches in frequency are not supported"),
        ({"modality__patch": [32, 16]}, r"modality.patch: .* is not supported"),
        (
            {"encoder__norm": "pre", "encoder__input_norm": False},
            "encoder.norm: 'pre' is not supported by the official EAT model",
        ),
    ],
)
def test_what_eat_has_not_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = trained(small("sound/v2-eat-base", **change), pretraining=False)
    with pytest.raises((UserError, ValueError), match=message):
        write_fairseq_checkpoint(model, tmp_path / "model.pt")
