"""The recipe: every setting of a run in one file, typed."""

import functools
import importlib
import operator
import re
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, SerializeAsAny, create_model
from pydantic.fields import FieldInfo

from data2vec.data.dataset import DataSettings
from data2vec.data.sources.library import is_in_cache
from data2vec.errors import UserError, did_you_mean, quoted
from data2vec.health.collapse import HealthSettings
from data2vec.modalities.base import Modality, ModalitySettings
from data2vec.modalities.custom_classes import trust_class, trusted_class
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
    "signal": "data2vec.modalities.signal:Signals",
    "sound": "data2vec.modalities.sound:Sound",
    "video": "data2vec.modalities.video:Video",
}


def modality_class(name: str) -> type[Modality]:
    """The class of a `modality.name`: a shipped name, or "module:Class" for a custom one that the caller has named.

    Raises UserError."""
    if name in MODALITIES:
        module, _, attribute = MODALITIES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if ":" not in name:
        raise UserError(
            f"modality.name: {quoted(name)} is not one of {', '.join(MODALITIES)}, nor 'module:Class'"
            f"{did_you_mean(name, MODALITIES)}"
        )
    found = trusted_class(name, "modality.name", "modality")
    if not (isinstance(found, type) and issubclass(found, Modality)):
        raise UserError(f"modality.name: {quoted(name)} is not a subclass of data2vec.modalities.base.Modality")
    return found


def trust_named_classes(modality: str | None, objective: str | None) -> None:
    """Import the classes outside the package that a recipe names, which the caller has written. Raises UserError."""
    for section, name in (("modality", modality), ("objective", objective)):
        if name is not None and ":" in name:
            trust_class(name, f"{section}.name")


if TYPE_CHECKING:  # which member it is depends on its name, which a type checker cannot follow
    AnyObjective = Any
else:
    SETTINGS = (*(settings for _, settings in OBJECTIVES.values()), RecognitionSettings, ClassificationSettings)
    AnyObjective = Annotated[functools.reduce(operator.or_, SETTINGS), Field(discriminator="name")]


NAMED_PATHS = (("data", "train"), ("objective", "model"))
LOCAL_PATHS = (
    *(("", "init"), ("data", "valid"), ("data", "tokenizer"), ("probe", "data"), ("probe", "valid")),
    *NAMED_PATHS,
)
"""The settings, by section, that may be paths."""


SECRETS = re.compile(r"(?<=://)[^/@]*@(?=[^/]+/)|\?.*")
"""What a URL may have besides its place: name and password, and parameters such as signatures."""


def data_name(path: str) -> str:
    """The name of a dataset or model: the last part of a path, a URL without passwords, and a name on the hub as it is."""
    if "://" in path and not path.startswith("file:"):
        return path if path.startswith("hf:") else SECRETS.sub("", path)
    return "a dataset in memory" if is_in_cache(Path(path)) else PurePath(path).name or path


class Recipe(Settings):
    """All settings of one run."""

    modality: SerializeAsAny[ModalitySettings]
    """The kind of signal: `name` is speech, vision, text, signal, sound, video, joint or "module:Class", the rest its own."""
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
    def training_data(self) -> str:
        """Where the training data is, for messages."""
        return str(self.data.train)

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

    def without_local_paths(self) -> JsonDict:
        """The settings as plain values, without the paths of this machine, for a model that others get: of the training data
        and of an encoder that codes come from only the name, of other data nothing."""
        values = self.model_dump(mode="json")
        for section, key in LOCAL_PATHS:
            part = values[section] if section else values
            if key in part and (path := part[key]) is not None:
                part[key] = data_name(path) if (section, key) in NAMED_PATHS else data_name(path) if "://" in path else None
        if isinstance(decode := values["objective"].get("decode"), dict):
            decode |= {key: None for key in ("lm", "lexicon") if key in decode}
        return values

    def to_yaml(self) -> str:
        """The recipe with every default written out; loading it gives an equal recipe."""
        return dump_yaml(self.model_dump(mode="json"))


def recipe_class(modality: str, objective: str = "data2vec2") -> type[Recipe]:
    """The recipe class of one modality, with its own `modality` and `data` sections, and with the `objective` section of a
    custom objective. Raises UserError for an unknown one."""
    return _recipe_class(modality_class(modality), objective_class(objective)[1] if ":" in objective else None)


@lru_cache
def _recipe_class(modality: type[Modality], objective: type[Settings] | None) -> type[Recipe]:
    own: dict[str, type[Settings]] = {"modality": modality.Settings, "data": modality.Data}
    if objective is not None:
        own["objective"] = objective
    sections: JsonDict = {
        name: (kind, FieldInfo(default_factory=kind, description=Recipe.model_fields[name].description))
        for name, kind in own.items()
    }
    return create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, **sections)


def _unpickle(modality: str, objective: str, values: JsonDict) -> Recipe:
    trust_named_classes(modality, objective)  # which this process's parent has used
    return recipe_class(modality, objective).model_validate(values)
