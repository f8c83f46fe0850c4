"""Objectives of pre-training: data2vec, data2vec 2.0, and the objectives that they are compared with (`baselines`)."""

from typing import Any

from data2vec.errors import UserError, did_you_mean, quoted
from data2vec.modalities.base import Modality
from data2vec.modalities.custom_classes import trusted_class
from data2vec.nn.encoder import Encoder
from data2vec.objective.base import Objective, ObjectiveOutput, ObjectiveSettings
from data2vec.objective.baselines.codes import Codes, CodesSettings
from data2vec.objective.baselines.input_regression import InputRegression, InputRegressionSettings
from data2vec.objective.baselines.mlm import MLM, MLMSettings
from data2vec.objective.baselines.wav2vec2 import Wav2Vec2, Wav2Vec2Settings
from data2vec.objective.data2vec import Data2Vec, Data2VecSettings
from data2vec.objective.data2vec2 import Data2Vec2, Data2Vec2Settings

__all__ = [
    "MLM",
    "OBJECTIVES",
    "Codes",
    "CodesSettings",
    "Data2Vec",
    "Data2Vec2",
    "Data2Vec2Settings",
    "Data2VecSettings",
    "InputRegression",
    "InputRegressionSettings",
    "MLMSettings",
    "Objective",
    "ObjectiveOutput",
    "ObjectiveSettings",
    "Wav2Vec2",
    "Wav2Vec2Settings",
    "build_objective",
    "objective_class",
]

OBJECTIVES: dict[str, tuple[type[Objective], type[ObjectiveSettings]]] = {
    "data2vec": (Data2Vec, Data2VecSettings),
    "data2vec2": (Data2Vec2, Data2Vec2Settings),
    "input_regression": (InputRegression, InputRegressionSettings),
    "codes": (Codes, CodesSettings),
    "mlm": (MLM, MLMSettings),
    "wav2vec2": (Wav2Vec2, Wav2Vec2Settings),
}
"""The shipped objectives by name, each with the class of its `objective:` section."""


def objective_class(name: str) -> tuple[type[Objective], type[ObjectiveSettings]]:
    """The classes of an `objective.name`: a shipped name, or "module:Class" for a custom one that the caller has named, whose
    `Settings` is the class of its section. Raises UserError."""
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" not in name:
        raise UserError(
            f"objective.name: {quoted(name)} is not one of {', '.join(OBJECTIVES)}, nor 'module:Class'"
            f"{did_you_mean(name, OBJECTIVES)}"
        )
    found: Any = trusted_class(name, "objective.name", "objective")
    if not (isinstance(found, type) and issubclass(found, Objective) and hasattr(found, "Settings")):
        raise UserError(f"objective.name: {quoted(name)} is not a subclass of data2vec.objective.Objective with Settings")
    return found, found.Settings


def build_objective(encoder: Encoder, settings: ObjectiveSettings, modality: Modality, steps: int) -> Objective:
    """The objective of these settings, with this encoder as the student; `steps`: the length of the run."""
    return objective_class(settings.name)[0](encoder, settings, modality, steps)
