"""The runs that a model went through, saved with it for the model card, by names that hold on any machine."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from data2vec.errors import UserError
from data2vec.recipe.recipe import Recipe, data_name
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.settings import JsonDict, JsonMapping, Settings

if TYPE_CHECKING:
    from data2vec.model import Model


PRETRAINING = ("train.lr", "train.steps", "train.schedule", "objective.teacher", "objective.input_target")
"""The settings of a first pre-training that an adaptation takes shares of, or replaces."""


class Score(Settings):
    """Something that was measured of the saved weights."""

    name: str
    """Such as accuracy."""
    value: float | None
    """None if it was NaN or infinite."""
    data: str | None = None
    """The name of the data that it was measured on; None: the training batches."""
    note: str = ""
    """Which part of the data."""


class TrainingStage(Settings):
    """A run of training."""

    task: str
    """`objective.name` of its recipe."""
    data: str | None
    """The name of its training data."""
    step: int
    """The optimizer step whose weights were saved."""
    steps: int
    """Steps of the run."""
    shared_with: Annotated[tuple[str, ...], Field(strict=False, max_length=100)] = ()
    """The other parts of a joint run, which has trained the Transformer by turns."""
    chosen_by: str | None = None
    """The validation score by which that step was chosen; None: it was the last."""
    scores: Annotated[tuple[Score, ...], Field(strict=False, max_length=100)] = ()
    """Of the saved weights."""
    continued: bool = False
    """Whether it started from the weights of a model (`init`)."""
    pretraining: dict[str, Any] = Field(default_factory=dict)
    """The settings PRETRAINING of the run by key; {}: the run is no pre-training of new weights, or has not recorded them."""


def training_stage(recipe: Recipe, step: int, scores: Iterable[Score], chosen_by: str | None = None) -> TrainingStage:
    """The stage of a run with this recipe."""
    data = None if recipe.data.train is None else data_name(recipe.data.train)
    continued = recipe.init is not None
    return TrainingStage(
        task=recipe.objective.name,
        data=data,
        step=step,
        steps=recipe.train.steps,
        chosen_by=chosen_by,
        scores=tuple(scores),
        continued=continued,
        pretraining={} if continued else pretraining_settings(recipe),
    )


def pretraining_settings(recipe: Recipe) -> JsonDict:
    """The settings PRETRAINING that a recipe of pre-training has, by key; of fine-tuning {}."""
    if isinstance(recipe.objective, SupervisedSettings):
        return {}
    values = {section: getattr(recipe, section).model_dump(mode="json") for section in ("train", "objective")}
    parts = ((key, *key.split(".")) for key in PRETRAINING)
    return {key: values[section][name] for key, section, name in parts if name in values[section]}


def make_scores(values: Mapping[str, float], data: str | None = None, note: str = "") -> list[Score]:
    """Scores by name. `data`: where the data is that they were measured on, of which the name is kept."""
    name = None if data is None else data_name(data)
    return [
        Score(name=key, value=float(value) if math.isfinite(value) else None, data=name, note=note)
        for key, value in values.items()
    ]


def origin_of(model: "Model") -> JsonDict:
    """Where a model comes from, as JSON: its source, its licence and its training."""
    stages = [stage.model_dump(mode="json") for stage in model.training]
    return {"source": model.source, "license": model.license, "training": stages}


def read_origin(values: JsonMapping, where: str) -> JsonDict:
    """The fields of a model that `origin_of` has written, in `where`. Raises UserError if they are damaged."""
    found = {key: value if isinstance(value := values.get(key), str) else None for key in ("source", "license")}
    try:
        return found | {"training": tuple(map(TrainingStage.model_validate, values.get("training") or ()))}
    except (ValidationError, TypeError):
        raise UserError(f"{where} is damaged: its record of the training; remove the key training from it") from None
