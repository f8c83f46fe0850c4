"""The recipe: everything a run depends on, in one file.

A shipped name or a YAML file, plus `key=value` overrides, becomes one checked, frozen `Recipe`. Every mistake in it is
told at once, in one line each, with what is allowed.
"""

import difflib
import importlib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, create_model
from pydantic.fields import FieldInfo

from data2vec.errors import UserError
from data2vec.modalities.base import DataSettings, Modality
from data2vec.nn.transformer import TransformerSettings
from data2vec.objective import Data2Vec2Settings
from data2vec.objective.data2vec import Data2VecSettings
from data2vec.recipe.task_settings import ClassificationSettings, ProbeSettings, RecognitionSettings
from data2vec.recipe.train_settings import LogSettings, TrainSettings
from data2vec.settings import Settings

MODALITIES = {
    "speech": "data2vec.modalities.speech:Speech",
    "vision": "data2vec.modalities.vision:Vision",
    "text": "data2vec.modalities.text:Text",
}


def modality_class(name: str) -> type[Modality]:
    """The class behind `modality.name`: a shipped name, or "module:Class" for one of your own. Raises UserError."""
    target = MODALITIES.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise UserError(
            f"modality.name: {name!r} is none of {', '.join(MODALITIES)}, nor 'module:Class'{nearest(name, MODALITIES)}"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"modality.name: {name!r} cannot be imported: {error}") from None


QUOTE = "'"


if TYPE_CHECKING:  # what is in it depends on its name, which a type checker cannot follow
    AnyObjective = Any
else:
    AnyObjective = Annotated[
        Data2VecSettings | Data2Vec2Settings | RecognitionSettings | ClassificationSettings, Field(discriminator="name")
    ]


class Recipe(Settings):
    """One run, complete."""

    modality: SerializeAsAny[Settings]
    """The kind of signal: `name` is speech, vision, text or "module:Class"; the rest depends on it."""
    encoder: TransformerSettings = TransformerSettings()
    """The Transformer."""
    objective: AnyObjective = Data2Vec2Settings()
    """The method: masks, teacher, targets, loss, health. `name` is data2vec or data2vec2, or the task of fine-tuning: ctc or
    classify; the rest depends on it."""
    data: SerializeAsAny[DataSettings]
    """What to learn from, and the batch."""
    train: TrainSettings = TrainSettings()
    """Steps, schedule, optimizer, precision."""
    probe: ProbeSettings = ProbeSettings()
    """How features are measured, while training and by `data2vec probe`."""
    log: LogSettings = LogSettings()
    """What is written while training, and how often."""
    init: str | None = None
    """A trained model to start from: the folder of a run or model, an official .pt, a folder of transformers, or its name on
    the hub. Its encoder must be of the recipe's shape."""

    def build_modality(self) -> Modality:
        """The modality this recipe names, with its settings."""
        return modality_class(self.modality.name)(self.modality, self.data)  # type: ignore[attr-defined]

    def to_yaml(self) -> str:
        """The complete recipe: reading it again gives the same run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


@lru_cache
def schema(modality: str) -> type[Recipe]:
    """The recipe of one modality, whose `modality` and `data` sections are its own. Raises UserError for an unknown one."""
    cls = modality_class(modality)
    sections: dict[str, Any] = {
        name: (kind, FieldInfo(default_factory=kind, description=Recipe.model_fields[name].description))
        for name, kind in (("modality", cls.Settings), ("data", cls.Data))
    }
    return create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, **sections)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, only true and false are booleans, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|nan))$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse(text: str, where: str) -> Any:
    """Read YAML; raises UserError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def names() -> list[str]:
    """The shipped recipes, as modality/version-size."""
    root = resources.files("data2vec") / "recipes"
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def summary(name: str) -> str:
    """What a shipped recipe says of itself: the comment at its head."""
    lines = _read(name)[0].splitlines()
    return " ".join(line.strip("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def load(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    beneath: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """A recipe by shipped name or YAML file, with `key=value` overrides ("train.lr=1e-3", or a dict of the same).

    `beneath`: sections whose values hold where the recipe says nothing.

    Raises UserError for an unknown name, an unknown key, a wrong type or a value out of range."""
    if isinstance(recipe, Recipe):
        raw, where = recipe.model_dump(mode="json"), "recipe"
    else:
        text, where = _read(str(recipe))
        raw = parse(text, where)
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a recipe is a mapping with the sections {', '.join(Recipe.model_fields)}")
    for section, values in (beneath or {}).items():
        raw[section] = {**values, **(raw.get(section) or {})}
    items = overrides.items() if isinstance(overrides, Mapping) else [_split(entry) for entry in overrides]
    for key, value in items:
        _assign(raw, key.split("."), str(value) if isinstance(value, Path) else value)
    return validate(raw, where)


def validate(raw: dict[str, Any], where: str) -> Recipe:
    """Check a raw mapping against the schema; every mistake is one line of the UserError."""
    raw = {key: {} if value is None and key != "init" else value for key, value in raw.items()}
    found: dict[str, list[tuple[str, str]]] = {}
    model: type[Recipe] = Recipe
    section = raw.get("modality")
    name = section.get("name") if isinstance(section, Mapping) else None
    try:
        if not isinstance(name, str):
            raise UserError(f"modality.name: is missing; one of {', '.join(MODALITIES)}, or 'module:Class'")
        model = schema(name)
    except UserError as unknown:
        found["modality.name"] = [(str(unknown).removeprefix("modality.name: "), "")]
    try:
        checked = model.model_validate(raw)
    except ValidationError as errors:
        for error in errors.errors():
            if model is not Recipe or error["loc"][0] not in ("modality", "data"):
                key, problem, given = _explain(error, model)
                found.setdefault(key, []).append((problem, given))
    if found:
        # A value that may be of one of several kinds has a problem with each of them.
        lines = [f"{key}: {', or '.join(problem for problem, _ in each)}{each[-1][1]}" for key, each in found.items()]
        raise UserError("\n".join(f"{where}: {line}" for line in lines))
    return checked


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a schema, dotted, with its field; the members of a union follow one another."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        for option in models(field.annotation):
            yield from settings(option, f"{prefix}{name}.")


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean …?" or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read(recipe: str) -> tuple[str, str]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return path.read_text(encoding="utf-8"), recipe
        except UnicodeDecodeError as error:
            raise UserError(f"recipe {recipe} is not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise UserError(
                f"recipe {recipe} cannot be read: {error.strerror}; 'data2vec recipes' lists the shipped ones"
            ) from None
    if recipe in names():
        return (resources.files("data2vec") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe
    raise UserError(
        f"there is no recipe {recipe!r}{nearest(recipe, names())} ('data2vec recipes' lists them; a file ends in .yaml)"
    )


def _split(entry: str) -> tuple[str, Any]:
    key, equals, value = entry.partition("=")
    if not equals or not key:
        raise UserError(f"{entry!r} is not an override: write key=value, such as train.lr=1e-3")
    return key, parse(value, key) if value else None


def _assign(raw: dict[str, Any], path: list[str], value: Any) -> None:
    for i, part in enumerate(path[:-1]):
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise UserError(f"{'.'.join(path)}: {'.'.join(path[: i + 1])} is a value, not a section")
    raw[path[-1]] = value


def _explain(error: Any, model: type[BaseModel]) -> tuple[str, str, str]:
    """For one of pydantic's errors: the key, what is wrong and what is allowed, and what was given or meant."""
    location, known, options = _walk(error["loc"], model)
    key, kind, context, given = ".".join(location), error["type"], error.get("ctx", {}), error.get("input")
    tag = f"{key}.{context.get('discriminator', '').strip(QUOTE)}"
    if kind == "extra_forbidden":
        meant = nearest(location[-1], known)
        for name, _ in () if meant else settings(model):
            if name.endswith(f".{location[-1]}") and name != key:
                meant = f"; did you mean {name!r}?"
        return key, "there is no such setting", meant or f"; here are {', '.join(known)}"
    if kind == "missing":
        return key, "is missing", ""
    if kind == "union_tag_not_found":
        return tag, f"is missing; one of {', '.join(tag for each in options for tag in _tags(each))}", ""
    if kind == "union_tag_invalid":
        tags = context["expected_tags"]
        return tag, f"{context['tag']!r} is none of {tags}", nearest(context["tag"], re.findall("'(.*?)'", tags))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return key, "should be a section with settings of its own", f", not {given!r}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    message = message[0].lower() + message[1:]
    if kind == "value_error":
        return key, message, ""
    meant = (
        nearest(given, re.findall("'(.*?)'", context["expected"])) if "expected" in context and isinstance(given, str) else ""
    )
    return key, message, (", not empty" if given is None else f", not {given!r}") + meant


def _walk(location: tuple[Any, ...], model: Any) -> tuple[list[str], list[str], list[type[BaseModel]]]:
    """The keys along pydantic's `location`, without its names for members of unions; the keys allowed at the last one; and
    the sections that may stand there."""
    path: list[str] = []
    known = list(model.model_fields)
    options: list[type[BaseModel]] = [model]
    for part in location:
        holders = [option for option in options if part in option.model_fields]
        if holders:
            path.append(str(part))
            known = list(dict.fromkeys(key for option in options for key in option.model_fields))
            options = [each for holder in holders for each in models(holder.model_fields[part].annotation)]
        elif isinstance(part, int):
            path.append(str(part))
        elif tagged := [option for option in options if part in _tags(option)]:
            options = tagged
        elif options:  # an unknown key
            path.append(str(part))
            known = list(dict.fromkeys(key for option in options for key in option.model_fields))
    return path, known, options


def models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in an annotation, which may be a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType) or hasattr(annotation, "__metadata__"):
        return [model for part in get_args(annotation) for model in models(part)]
    return []


def _tags(model: type[BaseModel]) -> list[str]:
    """What a member of a tagged union is called."""
    return [str(model.model_fields[key].default) for key in ("name", "kind") if key in model.model_fields]
