"""The method, version 1 and version 2."""

from typing import Any

from data2vec.nn.encoder import Encoder
from data2vec.objective.base import Objective
from data2vec.objective.data2vec import Data2Vec
from data2vec.objective.data2vec2 import Data2Vec2, Data2Vec2Settings


def build(encoder: Encoder, settings: Any) -> Objective:
    """The objective that `settings.name` asks for, on this encoder."""
    return Data2Vec2(encoder, settings) if isinstance(settings, Data2Vec2Settings) else Data2Vec(encoder, settings)
