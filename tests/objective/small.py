"""Small encoders on a toy signal for the tests of the method."""

import torch

from data2vec.modalities.speech import Speech, SpeechSettings
from data2vec.nn.encoder import Encoder, build
from data2vec.nn.transformer import TransformerSettings
from data2vec.objective.data2vec import Data2Vec, Data2VecSettings
from data2vec.objective.masking import SpanMask
from data2vec.objective.targets import TargetSettings


def encoder(seed: int = 0, **changes: object) -> Encoder:
    torch.manual_seed(seed)
    speech = Speech(
        SpeechSettings(conv_layers=((8, 10, 5), (8, 4, 4)), position_depth=2, position_kernel=3, position_groups=2), None
    )
    settings = {"width": 16, "layers": 3, "heads": 2, "ffn_width": 32, "dropout": 0.0, "attention_dropout": 0.0, **changes}
    return build(speech, TransformerSettings(**settings))


def objective(seed: int = 0, encoder_changes: dict[str, object] | None = None, **changes: object) -> Data2Vec:
    settings = {"mask": SpanMask(length=3), "target": TargetSettings(top_k=2), **changes}
    return Data2Vec(encoder(seed, **(encoder_changes or {})), Data2VecSettings(**settings))


def batch(seed: int = 0, rows: int = 3, positions: int = 20) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, positions, dtype=torch.bool)
    mask[:, 4:9] = True
    wave = torch.randn(rows, 20 * positions + 5, generator=generator)
    return {"input": wave, "mask": mask, "masked": mask.flatten().nonzero()[:, 0]}
