"""The method, data2vec and data2vec 2.0: masking, teacher, targets and loss."""

from data2vec.nn.encoder import Encoder
from data2vec.objective.base import Objective
from data2vec.objective.data2vec import Data2Vec, Data2VecSettings
from data2vec.objective.data2vec2 import Data2Vec2, Data2Vec2Settings

__all__ = [
    "Data2Vec",
    "Data2Vec2",
    "Data2Vec2Settings",
    "Data2VecSettings",
    "Objective",
    "build_objective",
]


def build_objective(encoder: Encoder, settings: Data2VecSettings | Data2Vec2Settings) -> Objective:
    """The objective of these settings, with this encoder as the student."""
    return Data2Vec2(encoder, settings) if isinstance(settings, Data2Vec2Settings) else Data2Vec(encoder, settings)
