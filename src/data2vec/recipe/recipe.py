"""The recipe: every setting of a run in one file, typed."""

import functools
import importlib
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, create_model
from pydantic.fields import FieldInfo

from data2vec.data.dataset import DataSettings
from data2vec.errors import UserError, did_you_mean
from data2vec.health.collapse import HealthSettings
from data2vec.modalities.base import Modality, ModalitySettings
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.nn.transformer import TransformerSettings
from data2vec.objective import OBJECTIVES, Data2Vec2Settings, Objective, build_objective, objective_class
from data2vec.recipe.task_settings import ClassificationSettings, ProbeSettings, RecognitionSettings
from data2vec.recipe.train_settings import LogSettings, TrainSettings
from data2vec.recipe.yaml_format import dump_yaml
from data2vec.settings import JsonDict, Settings

MODALITIES = {
    "speech": "data2vec.modalities.speech:Speech",
    "vision": "data2vec.modalities.vision:Vision",
    "text": "data2vec.modalities.text:Text",
}


def modality_class(name: str) -> type[Modality]:
    """The class of a `modality.name`: a shipped name, or "module:Class" for a custom one. Raises UserError."""
    target = MODALITIES.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UserError(
            f"modality.name: {name!r} is not one of {', '.join(MODALITIES)}, nor 'module:Class'{did_you_mean(name, MODALITIES)}"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"modality.name: {name!r} cannot be imported: {error}") from None


if TYPE_CHECKING:  # which member it is depends on its name, which a type checker cannot follow
    AnyObjective = Any
else:
    SETTINGS = (*(settings for _, settings in OBJECTIVES.values()), RecognitionSettings, ClassificationSettings)
    AnyObjective = Annotated[functools.reduce(operator.or_, SETTINGS), Field(discriminator="name")]


class Recipe(Settings):
    """All settings of one run."""

    modality: SerializeAsAny[ModalitySettings]
    """The kind of signal: `name` is speech, vision, text or "module:Class"; the other keys depend on it."""
    encoder: TransformerSettings = TransformerSettings()
    """The Transformer."""
    objective: AnyObjective = Data2Vec2Settings()
    """The method: masks, teacher, targets, loss. `name` is data2vec, data2vec2, or one to compare with: input_regression,
    codes, mlm or wav2vec2;
    or a fine-tuning task: ctc or classify. The other keys depend on it."""
    health: HealthSettings = HealthSettings()
    """When pre-training stops because representations have collapsed."""
    data: SerializeAsAny[DataSettings]
    """The data set, augmentation and the batch."""
    train: TrainSettings = TrainSettings()
    """Steps, schedule, optimizer, precision."""
    probe: ProbeSettings = ProbeSettings()
    """Probing of frozen features, during training and by `data2vec probe`."""
    log: LogSettings = LogSettings()
    """What is logged during training, and how often."""
    init: str | None = None
    """A trained model to start from: a run or model folder, an official .pt, a transformers folder, or hf://owner/name. Its
    encoder must have the shape of the recipe's."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The class is made by `recipe_class`, where pickle does not find it."""
        return _unpickle, (self.modality.name, self.objective.name, self.model_dump(mode="json"))

    @property
    def task(self) -> AnyObjective:
        """The `objective:` section of fine-tuning, with the label column that `data.label` names, if it names one."""
        return self.objective if self.data.label is None else self.objective.model_copy(update={"label": self.data.label})

    def build_modality(self) -> Modality:
        """The modality of this recipe, with its settings."""
        return modality_class(self.modality.name)(self.modality, self.data)

    def build_objective(self, encoder: Encoder | None = None) -> Objective:
        """The pre-training objective of this recipe, with this student; None: a new one."""
        modality = self.build_modality()
        student = encoder if encoder is not None else build_encoder(modality, self.encoder)
        return build_objective(student, self.objective, modality, self.train.steps)

    def to_yaml(self) -> str:
        """The recipe with every default written out; loading it gives an equal recipe."""
        return dump_yaml(self.model_dump(mode="json"))


@lru_cache
def recipe_class(modality: str, objective: str = "data2vec2") -> type[Recipe]:
    """The recipe class of one modality, with its own `modality` and `data` sections, and with the `objective` section of a
    custom objective. Raises UserError for an unknown one."""
    cls = modality_class(modality)
    own: dict[str, type[Settings]] = {"modality": cls.Settings, "data": cls.Data}
    if ":" in objective:
        own["objective"] = objective_class(objective)[1]
    sections: JsonDict = {
        name: (kind, FieldInfo(default_factory=kind, description=Recipe.model_fields[name].description))
        for name, kind in own.items()
    }
    return create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, **sections)


def _unpickle(modality: str, objective: str, values: JsonDict) -> Recipe:
    return recipe_class(modality, objective).model_validate(values)
