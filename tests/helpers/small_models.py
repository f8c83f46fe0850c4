"""Small encoders on a toy signal for the tests of the method."""

from typing import Any

import numpy as np
import torch

from data2vec.batch import MaskedBatch
from data2vec.modalities.speech import Speech, SpeechSettings
from data2vec.modalities.text import Text, TextSettings
from data2vec.modalities.vision import Vision, VisionSettings
from data2vec.nn.conv_decoder import ConvDecoderSettings
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.nn.transformer import TransformerSettings
from data2vec.objective.data2vec import Data2Vec, Data2VecSettings
from data2vec.objective.data2vec2 import Data2Vec2, Data2Vec2Settings
from data2vec.objective.latent import LatentObjective
from data2vec.objective.masking import FixedBlockMask, SpanMask
from data2vec.objective.targets import TargetSettings, average_top_k

STEPS = 100
LATENT_STATS = {
    *(f"{stage}_{what}" for stage in ("local_encoder", "student", "target", "prediction") for what in ("std", "rank")),
    *(f"target_{part}_variance" for part in ("position", "input", "within")),
    *("r2", "content_r2"),
}
"""The statistics of a step of an objective with latent targets."""


def plain_speech() -> Speech:
    return Speech(SpeechSettings(**CONV), None)


def encoder(seed: int = 0, **changes: object) -> Encoder:
    torch.manual_seed(seed)
    settings = {"width": 16, "layers": 3, "heads": 2, "ffn_width": 32, "dropout": 0.0, "attention_dropout": 0.0, **changes}
    return build_encoder(plain_speech(), TransformerSettings(**settings))


def objective(seed: int = 0, encoder_changes: dict[str, object] | None = None, **changes: object) -> Data2Vec:
    settings = {"mask": SpanMask(length=3), "target": TargetSettings(top_k=2), **changes}
    return Data2Vec(encoder(seed, **(encoder_changes or {})), Data2VecSettings(**settings), plain_speech(), STEPS)


def batch(seed: int = 0, rows: int = 3, positions: int = 20) -> MaskedBatch:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, positions, dtype=torch.bool)
    mask[:, 4:9] = True
    wave = torch.randn(rows, 20 * positions + 5, generator=generator)
    return MaskedBatch(wave, mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0])


KINDS = ("speech", "vision", "vision-relative", "text")
CONV = {"conv_layers": ((8, 10, 5), (8, 4, 4)), "position_depth": 2, "position_kernel": 3, "position_groups": 2}


def modality(kind: str) -> Any:
    if kind == "speech":
        return Speech(SpeechSettings(**CONV, alibi=True), None)
    if kind == "text":
        return Text(TextSettings(vocab_size=40, max_length=20), None)
    return Vision(VisionSettings(image=20, patch=4, positions="relative" if kind == "vision-relative" else "sincos"), None)


def objective2(kind: str = "speech", encoder_changes: dict[str, Any] | None = None, **changes: Any) -> Data2Vec2:
    """Version 2 without dropout and noise; images with an extra token."""
    torch.manual_seed(0)
    still = {"dropout": 0.0, "attention_dropout": 0.0, "extra_tokens": int(kind.startswith("vision"))}
    shape = {"width": 16, "layers": 3, "heads": 2, "ffn_width": 32, **still, **(encoder_changes or {})}
    kernel = (3, 3) if kind.startswith("vision") else (3,)
    decoder = ConvDecoderSettings(layers=2, kernel=kernel, groups=2, width=8, dropout=0.0, noise_std=0.0)
    settings = {"target": TargetSettings(top_k=2), "decoder": decoder, **changes}
    student = build_encoder(modality(kind), TransformerSettings(**shape))
    return Data2Vec2(student, Data2Vec2Settings(**settings), modality(kind), STEPS)


def batch2(kind: str = "speech", rows: int = 3, masks: int = 4, seed: int = 0) -> MaskedBatch:
    """20 positions, 25 of an image; half of them masked in each view."""
    generator = torch.Generator().manual_seed(seed)
    given = {
        "speech": torch.randn(rows, 405, generator=generator),
        "vision": torch.randn(rows, 3, 20, 20, generator=generator),
        "text": torch.randint(4, 39, (rows, 20), generator=generator),
    }[kind.split("-")[0]]
    grid = (5, 5) if kind.startswith("vision") else (20,)
    masked = FixedBlockMask(length=2).draw(rows * masks, grid, np.random.default_rng(seed)).masked
    return with_masks(given, torch.from_numpy(masked))


def targets_of(
    objective: LatentObjective, batch: MaskedBatch, features: torch.Tensor, padding: torch.Tensor | None = None
) -> torch.Tensor:
    """The training targets at every position, (B, T, D), from local features (B, T, D)."""
    layers = objective.teacher.block_outputs(objective.student, batch, features, padding, objective.settings.target.source)
    return average_top_k(layers, objective.student.transformer.settings.layers, objective.settings.target)


def with_masks(given: torch.Tensor, mask: torch.Tensor) -> MaskedBatch:
    return MaskedBatch(given, mask=mask, predicted_indices=mask.flatten().nonzero()[:, 0])
