"""HEAR: a data2vec model as a HEAR module.

For heareval and what follows its interface: `load_model`, `get_scene_embeddings`, `get_timestamp_embeddings`. The path is
anything that `data2vec.load` opens: a run or model folder, an official .pt, a transformers folder, hf://owner/name.
"""

from typing import Any

import torch
from torch import Tensor, nn

import data2vec
from data2vec.nn.conv_feature_extractor import receptive_field


class Data2Vec(nn.Module):
    """A model with the attributes that HEAR asks for; its weights move with `.to(device)`."""

    def __init__(self, path: str):
        super().__init__()
        self.model = data2vec.load(path)
        if self.model.modality.kind != "audio" or self.model.modality.seconds_per_position is None:
            raise data2vec.UserError(f"{path}: is a model of {self.model.recipe.modality.name}; HEAR needs one of speech")
        self.encoder = self.model.encoder
        self.sample_rate = 16000
        self.scene_embedding_size = self.timestamp_embedding_size = self.encoder.transformer.settings.width


def load_model(model_file_path: str) -> Data2Vec:
    """The model at this path."""
    return Data2Vec(model_file_path)


def get_scene_embeddings(audio: Tensor, model: Data2Vec) -> Tensor:
    """Audio (B, S) at 16 kHz to (B, D) float32: the encoder's output, averaged over time."""
    return model.model.features(list(audio.detach().cpu()), pool=True).hidden[0].float()


def get_timestamp_embeddings(audio: Tensor, model: Data2Vec) -> tuple[Tensor, Tensor]:
    """Audio (B, S) at 16 kHz to (B, T, D) float32, and to the centre of each position's window in milliseconds, (B, T)."""
    features = model.model.features(list(audio.detach().cpu()))
    assert features.seconds is not None
    starts = 1000 * features.seconds.to(torch.float32)
    centres = starts + window_ms(model) / 2
    return features.hidden[0].float(), centres.expand(len(audio), -1)


def window_ms(model: Data2Vec) -> float:
    """The length of what the convolutions see of one position, in milliseconds."""
    settings: Any = model.model.modality.settings
    field, _ = receptive_field(settings.conv_layers)
    return 1000 * field / model.sample_rate
