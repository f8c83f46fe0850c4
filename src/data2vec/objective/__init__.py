"""The method, version 1 and version 2."""

from typing import Annotated

from pydantic import Field

from data2vec.nn.encoder import Encoder
from data2vec.objective.base import Objective
from data2vec.objective.data2vec import Data2Vec, Data2VecSettings
from data2vec.objective.data2vec2 import Data2Vec2, Data2Vec2Settings

AnyObjectiveSettings = Annotated[Data2VecSettings | Data2Vec2Settings, Field(discriminator="name")]


def build(encoder: Encoder, settings: Data2VecSettings | Data2Vec2Settings) -> Objective:
    """The objective that `settings.name` asks for, on this encoder."""
    return Data2Vec2(encoder, settings) if isinstance(settings, Data2Vec2Settings) else Data2Vec(encoder, settings)
