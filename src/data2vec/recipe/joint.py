"""Joint pre-training: the recipe of several modalities that share one Transformer and nothing else.

A part has its own modality, data, objective and probe. With what the parts have in common, `encoder`, `train`, `health` and
`log`, it is the recipe of one modality, and all that is done with a part goes by that.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, Field, SerializeAsAny, create_model, model_validator

from data2vec.data.dataset import DataSettings
from data2vec.data.sources.formats import ARCHIVES, MANIFESTS, MEDIA, TABLES
from data2vec.errors import RunStopped, UserError, quoted
from data2vec.modalities.base import ModalitySettings
from data2vec.objective import Data2Vec2Settings, ObjectiveSettings
from data2vec.objective.latent import LatentSettings
from data2vec.recipe.recipe import MODALITIES, AnyObjective, Recipe, recipe_class
from data2vec.recipe.task_settings import ProbeSettings
from data2vec.settings import JsonDict, JsonMapping, Settings

JOINT = "joint"
PART_NAME = re.compile(r"[a-z][a-z0-9_]*")
PART_KEY = re.compile(r"modality\.parts\.(\w+)\.(?=(?:modality|objective|data|probe)\.)")
"""What the keys of a part have before those of a recipe of one modality."""
SECTIONS = ("modality", "objective", "data", "probe")
"""The sections of a recipe that each part has for itself."""
_FILE = "|".join(re.escape(ending) for ending in sorted({*itertools.chain(*MEDIA.values()), *TABLES, *ARCHIVES, *MANIFESTS}))
OWN_SETTING = re.compile(
    rf"(?<![\w./-])(?!modality\.parts\.)(?![\w.-]*(?:{_FILE})\b)"
    rf"(?:train\.(?=lr\b(?!/|\.\w))|(?=(?:{'|'.join(SECTIONS)})(?:\.[a-z]\w*)+(?![\w/]|\.\w)))"
)
"""Where a sentence about a recipe of one modality names a setting, not a file, that a part has for itself."""


class PartSettings(Settings):
    """A part of a joint run."""

    modality: SerializeAsAny[ModalitySettings]
    """The kind of signal, with its local encoder and positions."""
    objective: AnyObjective = Data2Vec2Settings()
    """The method: masks, targets, decoder. The teacher's Transformer is that of all parts."""
    data: SerializeAsAny[DataSettings]
    """The data set, augmentation and the batch."""
    probe: ProbeSettings = ProbeSettings()
    """Probing of frozen features; `every` counts the steps of this part."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the steps of this part; null: `train.lr`."""
    loss_weight: Annotated[float, Field(gt=0)] = 1.0
    """The gradients of this part are multiplied by this."""


class JointSettings(ModalitySettings):
    """The `modality:` section of a joint run."""

    name: Literal["joint"] = "joint"
    parts: SerializeAsAny[Settings]
    """The parts by name."""
    shares: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """The share of the steps that each part gets; they add up to 1. None: all the same."""


class JointObjectiveSettings(ObjectiveSettings):
    """The `objective:` section of a joint run: each part has its own."""

    name: Literal["joint"] = "joint"


class JointData(DataSettings):
    """The `data:` section of a joint run: each part has its own."""


class JointRecipe(Recipe):
    """All settings of a joint run. The sections `objective`, `data` and `probe` belong to the parts."""

    modality: SerializeAsAny[JointSettings]
    """The parts, and how the steps are divided among them."""
    objective: JointObjectiveSettings = JointObjectiveSettings()
    data: JointData = JointData()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (part_kinds(values := self.model_dump(mode="json")), values)

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        names = tuple(type(self.modality.parts).model_fields)
        if len(names) < 2:
            raise ValueError("modality.parts: a joint run has two parts or more; for one, use its own recipe")
        shares = self.modality.shares
        if shares and (set(shares) != set(names) or abs(sum(shares.values()) - 1) > 1e-6):
            raise ValueError(f"modality.shares: give each of {', '.join(names)} a share, such that they add up to 1")
        for section, allowed in (("objective", ()), ("data", ("allow_changes",)), ("probe", ())):
            own: Settings = getattr(self, section)
            for key in type(own).model_fields:
                if key not in allowed and getattr(own, key) != type(own).model_fields[key].get_default(
                    call_default_factory=True
                ):
                    raise ValueError(f"{section}.{key}: each part has its own: set modality.parts.{names[0]}.{section}.{key}")
        if self.init is not None:
            raise ValueError("init: a joint run starts from new weights; set it to null")
        methods = {name: part.objective for name, part in self.parts.items()}
        for name, method in methods.items():
            if not isinstance(method, LatentSettings):
                raise ValueError(
                    f"modality.parts.{name}.objective.name: {method.name} has no teacher for the parts to share; use data2vec2"
                )
        if len({method.teacher.prenet for method in methods.values()}) > 1:
            raise ValueError("objective.teacher.prenet: is not the same in all parts, which share the teacher's Transformer")
        return self

    @cached_property
    def parts(self) -> dict[str, Recipe]:
        """The recipe of each part, of a run with all steps of this one."""
        common = self.model_dump(mode="json", include={"encoder", "health", "train", "log"})
        found = {}
        for name in type(self.modality.parts).model_fields:
            part: PartSettings = getattr(self.modality.parts, name)
            own = part.model_dump(mode="json", include=set(SECTIONS))
            train = common["train"] | ({} if part.lr is None else {"lr": part.lr})
            kind = recipe_class(part.modality.name, part.objective.name)
            found[name] = kind.model_validate(common | own | {"train": train})
        return found

    def build_modality(self) -> NoReturn:
        """A joint run has the modalities of its parts. Raises UserError."""
        raise UserError(f"modality.name: joint is not one modality; use a part: {', '.join(self.parts)}")

    @property
    def training_data(self) -> str:
        """Where the training data of each part is, for messages."""
        return ", ".join(part.training_data for part in self.parts.values())

    @property
    def shares(self) -> dict[str, float]:
        """The share of the steps of each part."""
        return self.modality.shares or dict.fromkeys(self.parts, 1 / len(self.parts))

    def loss_weight(self, part: str) -> float:
        """What the gradients of a part are multiplied by."""
        return float(getattr(self.modality.parts, part).loss_weight)


Kinds = tuple[tuple[str, str, str], ...]
"""The name of each part, of its modality and of its objective."""


def part_kinds(raw: JsonMapping) -> Kinds:
    """The kinds of the parts of a raw joint recipe. A part that names no modality has the modality of its own name.

    Raises UserError for what is no mapping of parts, and for a name that no part can have."""
    modality = raw.get("modality")
    parts = modality.get("parts") if isinstance(modality, Mapping) else None
    if not isinstance(parts, Mapping):
        raise UserError(
            "modality.parts: is missing; name the parts, such as speech, with their own modality, objective and data"
        )
    kinds = []
    for name, part in parts.items():
        if not isinstance(name, str) or not PART_NAME.fullmatch(name) or hasattr(BaseModel, name) or hasattr(dict, name):
            raise UserError(f"modality.parts: {quoted(name)} cannot name a part; use a word such as speech")
        if not isinstance(part, Mapping):
            raise UserError(f"modality.parts.{name}: should be a section with settings, not {quoted(part)}")
        kind, objective = (section_name(part.get(section)) for section in ("modality", "objective"))
        if kind is None and name not in MODALITIES:
            raise UserError(
                f"modality.parts.{name}.modality.name: is missing; one of {', '.join(MODALITIES)}, or 'module:Class'"
            )
        kinds.append((name, kind or name, objective or "data2vec2"))
    return tuple(kinds)


def section_name(section: object) -> str | None:
    """The `name` of a raw section."""
    name = section.get("name") if isinstance(section, Mapping) else None
    return name if isinstance(name, str) else None


@lru_cache
def joint_recipe_class(kinds: Kinds) -> type[JointRecipe]:
    """The class of a joint recipe with parts of these kinds. Raises UserError for an unknown modality or objective."""
    parts: JsonDict = {}
    for name, modality, objective in kinds:
        fields = recipe_class(modality, objective).model_fields
        sections: JsonDict = {key: (fields[key].annotation, fields[key]) for key in ("modality", "data")}
        if ":" in objective:
            sections["objective"] = (fields["objective"].annotation, fields["objective"])
        parts[name] = (create_model("Part", __base__=PartSettings, **sections), ...)
    all_parts = create_model("Parts", __base__=Settings, **parts)
    section = create_model("Joint", __base__=JointSettings, parts=(all_parts, Field(description="The parts by name.")))
    return create_model("JointRecipe", __base__=JointRecipe, modality=(section, JointRecipe.model_fields["modality"]))


def _unpickle(kinds: Kinds, values: JsonDict) -> JointRecipe:
    return joint_recipe_class(kinds).model_validate(values)


def require_single(recipe: Recipe, what: str) -> None:
    """Raises UserError for a joint recipe, which is not supported by `what`."""
    if isinstance(recipe, JointRecipe):
        raise UserError(f"modality.name: joint, but {what} takes the recipe of one modality; use that of a part")


def own_key(key: str) -> str:
    """The key of a setting without the part that it is of: data.train of modality.parts.speech.data.train."""
    return PART_KEY.sub("", key)


def with_keys_of_part(part: str, sentence: str) -> str:
    """A sentence about the recipe of a part with the names that its settings have in the joint recipe: modality.parts.speech.lr
    for train.lr."""
    return OWN_SETTING.sub(f"modality.parts.{part}.", sentence)


@contextmanager
def errors_of_part(part: str) -> Iterator[None]:
    """A block whose errors name the part, and its settings as the joint recipe has them."""
    try:
        yield
    except (UserError, RunStopped) as error:
        first, *others = (with_keys_of_part(part, line) for line in error.args)
        error.args = (f"{part}: {first}", *others)
        raise
