"""Small objectives that data2vec is compared with."""

from typing import Any

import torch

from data2vec.nn.conv_decoder import ConvDecoderSettings
from data2vec.nn.encoder import build_encoder
from data2vec.nn.transformer import TransformerSettings
from data2vec.objective import OBJECTIVES
from data2vec.objective.masking import FixedBlockMask
from helpers.small_models import STEPS, modality

SHAPE = {"width": 16, "layers": 3, "heads": 2, "ffn_width": 32, "dropout": 0.0, "attention_dropout": 0.0}


def rival(name: str, kind: str = "speech", **changes: Any) -> Any:
    """An objective by name on a small encoder without dropout; see `helpers.small_models` for `kind` and batches."""
    torch.manual_seed(0)
    visible = changes.get("view") == "visible"
    kernel = (3, 3) if kind.startswith("vision") else (3,)
    decoder = ConvDecoderSettings(layers=2, kernel=kernel, groups=2, width=8, dropout=0.0, noise_std=0.0)
    views = {"decoder": decoder, "masks_per_sample": 4 if visible else 1, "mask": FixedBlockMask(length=2)}
    cls, settings = OBJECTIVES[name]
    student = build_encoder(modality(kind), TransformerSettings(**SHAPE))
    known = {key: value for key, value in (views | changes).items() if key in settings.model_fields}
    return cls(student, settings(**known), modality(kind), STEPS)
