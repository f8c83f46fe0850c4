"""Loading recipes: a shipped name or a YAML file, plus `key=value` overrides, becomes one validated `Recipe`.

All errors of a recipe are reported at once, a line each.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data2vec.errors import UserError, quoted
from data2vec.local_path import absolute_path
from data2vec.modalities.custom_classes import CustomClass, trust_class
from data2vec.objective.teacher import DECAYS, HALF_LIVES
from data2vec.recipe.joint import JOINT, joint_recipe_class, own_key, part_kinds, section_name
from data2vec.recipe.recipe import MODALITIES, Recipe, recipe_class, trust_named_classes
from data2vec.recipe.shipped import recipe_text
from data2vec.recipe.validation_errors import explain_error
from data2vec.recipe.value_limits import impossible_values
from data2vec.recipe.yaml_format import parse_yaml
from data2vec.settings import JsonDict, JsonMapping

MAX_PROBLEMS = 50
"""Of a recipe that are reported."""

AUTO = ("train.steps", "data.micro_batch_size", "data.micro_batch_seconds")
"""Settings that may be `auto`: a number is chosen before the run starts (`data2vec.train.planning.auto`)."""
PATHS = (
    *("data.valid", "data.valid_rows", "data.follow_links", "probe.data", "probe.valid", "probe.data_rows", "probe.valid_rows"),
    *("objective.model", "objective.decode", "init"),
)
"""Settings that name files to read, or which files; those of a model folder are not used."""
PATHS_TO_READ = (
    *("init", "data.train", "data.valid", "data.tokenizer", "probe.data", "probe.valid"),
    *("objective.model", "objective.decode.lm", "objective.decode.lexicon"),
)
"""Settings that may be a path."""
_MAPPING = re.compile(r"(.*?(?:\bmodality\.aliases|_rows\.(?:where|exclude)))\.(.+)")
"""The keys of settings that map names, as of channels or columns, which may have dots."""


def load_recipe(
    recipe: str | Path | Recipe,
    overrides: Iterable[str] | JsonMapping = (),
    defaults: Mapping[str, JsonMapping] | None = None,
    modality: CustomClass | None = None,
    trusted: bool = True,
    auto: set[str] | None = None,
) -> Recipe:
    """A recipe by shipped name or YAML file, with `key=value` overrides ("train.lr=1e-3", or a dict of the same).

    `defaults`: values by section for what the recipe leaves out. An override with another `kind` starts a section anew, in any
    order of the overrides, since the recipe's other settings are those of the old kind.

    `modality`: the class of a custom modality, or its name "package.module:Class"; a recipe may also name it itself, as
    `modality.name`. `trusted`: whether it may, as in a file that the user wrote; in the recipe.yaml of a run folder it never
    may. `auto`: gets the names of the settings that are `auto`, which have preliminary numbers in the recipe; None: that is an
    error.

    Raises UserError for an unknown name, an unknown key, a wrong type or a value out of range."""
    raw, where = read_recipe(recipe), name_of(recipe)
    for section, values in (defaults or {}).items():
        raw[section] = {**values, **(raw.get(section) or {})}
    if modality is not None:
        name = trust_class(modality, "modality")
        own = section_name(raw.get("modality"))
        if own not in (None, name, JOINT):
            raise UserError(f"modality: {name}, but modality.name is {quoted(own)} in {where}; name the same")
        if own != JOINT and isinstance(raw.get("modality") or {}, dict):
            raw["modality"] = {**(raw.get("modality") or {}), "name": name}
    items = list(overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides))
    for key, value in sorted(_replaced_schedule(raw, dict(items)) + items, key=lambda item: not item[0].endswith(".kind")):
        _set_by_key(raw, _path_of_key(key), str(value) if isinstance(value, Path) else value)
        if key in ("modality.name", "objective.name") and isinstance(value, str) and ":" in value:
            try:
                trust_class(value, key)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    _take_auto(raw, where, auto)
    return validate_recipe(raw, where, trusted and not is_of_run(recipe))


def name_of(recipe: str | Path | Recipe) -> str:
    """What messages call a recipe: its name or file, or just "recipe"."""
    return "recipe" if isinstance(recipe, Recipe) else str(recipe)


def _take_auto(raw: JsonDict, where: str, auto: set[str] | None) -> None:
    """Put preliminary numbers where the raw recipe has `auto`, whose keys are added to `auto`: the default for steps, and one
    micro-batch for all of the batch."""
    for key in AUTO:
        section, _, name = key.partition(".")
        settings = raw.get(section)
        if not isinstance(settings, dict) or settings.get(name) != "auto":
            continue
        if auto is None:
            raise UserError(f"{where}: {key}: auto is a choice of plan, pretrain and finetune alone; set a number")
        auto.add(key)
        del settings[name]
        sizes = [settings.get(other) for other in (name.removeprefix("micro_"), "max_seconds")] if section == "data" else []
        if numbers := [size for size in sizes if isinstance(size, int | float)]:
            settings[name] = max(numbers)


def read_recipe(recipe: str | Path | Recipe) -> JsonDict:
    """A recipe as it is written, without defaults and not validated. Raises UserError if it cannot be read."""
    if isinstance(recipe, Recipe):
        return recipe.model_dump(mode="json")
    text, where = recipe_text(str(recipe))
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a recipe is a mapping with the sections {', '.join(Recipe.model_fields)}")
    return raw


def trust_recipe_classes(recipe: str | Path | Recipe | None, overrides: JsonMapping) -> None:
    """Import the classes outside the package that a recipe, unless it is of a run folder, and overrides of it name.

    Raises UserError."""
    raw: JsonDict = {} if recipe is None or is_of_run(recipe) else read_recipe(recipe)
    trust_named_classes(section_name(raw.get("modality")), section_name(raw.get("objective")))
    trust_named_classes(*(section_name({"name": overrides.get(f"{section}.name")}) for section in ("modality", "objective")))


def with_absolute_paths(recipe: Recipe, base: Recipe | None = None) -> Recipe:
    """The recipe with the paths of what exists made absolute, so that it means the same in any folder.

    `base`: the recipe that it was made of by overrides; paths that are the same in it are left alone."""
    values, known = recipe.flat(), {} if base is None else base.flat()
    named = {key: value for key, value in values.items() if own_key(key) in PATHS_TO_READ and value != known.get(key)}
    paths = {key: value for key, value in named.items() if isinstance(value, str)}
    return load_recipe(recipe, {key: absolute for key, path in paths.items() if (absolute := absolute_path(path)) != path})


def is_of_run(recipe: str | Path | Recipe) -> bool:
    """Whether a recipe is the file that a run has written, maybe on a stranger's machine."""
    if isinstance(recipe, Recipe) or Path(recipe).name != "recipe.yaml":
        return False
    return any((Path(recipe).parent / name).exists() for name in ("metrics.jsonl", "machine.json", "checkpoints", "model"))


def _replaced_schedule(raw: JsonDict, overrides: JsonMapping) -> list[tuple[str, None]]:
    """The settings of the recipe's teacher schedule that become null because overrides set the other kind of schedule."""
    prefix = "objective.teacher."
    if overrides.get(f"{prefix}half_life") is not None:
        return [(prefix + key, None) for key in DECAYS]
    teacher = (raw.get("objective") or {}).get("teacher") or {}
    given = [key for key in DECAYS if overrides.get(prefix + key) is not None]
    if teacher.get("half_life") is None or not given:
        return []
    if missing := [prefix + key for key in DECAYS if key not in given]:
        raise UserError(
            f"{prefix}{given[0]}: replaces the recipe's half_life, so all of {', '.join(DECAYS)} must be set: "
            f"also set {' and '.join(missing)}"
        )
    return [(prefix + key, None) for key in (*HALF_LIVES, *DECAYS)]


def validate_recipe(raw: JsonDict, where: str, trusted: bool = False) -> Recipe:
    """The recipe of a raw mapping. `where` names its source in errors. `trusted`: whether it may name classes to import.

    Raises UserError with a line for each error."""
    if impossible := list(islice(impossible_values(raw), MAX_PROBLEMS)):
        raise UserError(*(f"{where}: {key}: {problem}" for key, problem in impossible))
    raw = {key: {} if value is None and key != "init" else value for key, value in raw.items()}
    problems: dict[str, list[tuple[str, str]]] = {}
    model: type[Recipe] = Recipe
    name, objective = (section_name(raw.get(section)) for section in ("modality", "objective"))
    if name == JOINT:
        return _validate_joint(raw, where, trusted)
    try:
        if name is None:
            raise UserError(f"modality.name: is missing; one of {', '.join(MODALITIES)}, or 'module:Class'")
        if trusted:
            trust_named_classes(name, objective)
        model = recipe_class(name)
        model = recipe_class(name, objective or "data2vec2")
    except UserError as unknown:
        key, _, problem = str(unknown).partition(": ")
        problems[key] = [(problem, "")]
    try:
        recipe = model.model_validate(raw)
    except ValidationError as errors:
        for error in errors.errors():
            if f"{error['loc'][0]}.name" not in problems and (model is not Recipe or error["loc"][0] != "data"):
                key, problem, hint = explain_error(error, model)
                problems.setdefault(key, []).append((problem, hint))
    if problems:
        raise _invalid(problems, where)
    return recipe


def _validate_joint(raw: JsonDict, where: str, trusted: bool) -> Recipe:
    """The joint recipe of a raw mapping; see `validate_recipe`. A part that is null is left out."""
    modality = raw["modality"]
    if isinstance(parts := modality.get("parts"), Mapping):
        raw = raw | {"modality": modality | {"parts": {name: part for name, part in parts.items() if part is not None}}}
    try:
        kinds = part_kinds(raw)
        for _, modality, objective in kinds if trusted else ():
            trust_named_classes(modality, objective)
        model = joint_recipe_class(kinds)
        return model.model_validate(raw)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValidationError as errors:
        problems: dict[str, list[tuple[str, str]]] = {}
        for found in errors.errors():
            if found["loc"]:
                key, problem, hint = explain_error(found, model)
            else:  # of the parts together, which names its key itself
                key, _, problem = found["msg"].removeprefix("Value error, ").partition(": ")
                hint = ""
            problems.setdefault(key, []).append((problem, hint))
        raise _invalid(problems, where) from None


def _invalid(problems: Mapping[str, list[tuple[str, str]]], where: str) -> UserError:
    """The error for these problems, by key, each with a hint. A value of a union has a problem with each member of it."""
    lines = [f"{key}: {', or '.join(problem for problem, _ in several)}{several[-1][1]}" for key, several in problems.items()]
    more = [f"and {len(lines) - MAX_PROBLEMS} more"] if len(lines) > MAX_PROBLEMS else []
    return UserError(*(f"{where}: {line}" for line in lines[:MAX_PROBLEMS] + more))


def untrusted_recipe(raw: Any, where: str) -> Recipe:
    """The recipe in a model folder, which may be a stranger's: it names no class to import, and no file to read. `where` names
    its source in errors.

    What it was trained on stays as a description. Raises UserError with a line for each error."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: the recipe is not a mapping of sections")
    sections = {name: dict(section) if isinstance(section, dict) else section for name, section in raw.items()}
    for key in PATHS:
        section, _, name = key.rpartition(".")
        settings = sections.get(section) if section else sections
        if isinstance(settings, dict):
            settings.pop(name, None)
    return validate_recipe(sections, where)


def list_overrides(overrides: Iterable[str] | JsonMapping) -> JsonDict:
    """Overrides, as `load_recipe` takes them, by key, with paths as text; of several with one key, the last."""
    items = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
    return {key: str(value) if isinstance(value, Path) else value for key, value in items}


def parse_override(entry: str, example: str = "train.lr=1e-3") -> tuple[str, Any]:
    """Key and value of "key=value". Raises UserError, with an `example`, for anything else."""
    key, equals, value = entry.partition("=")
    if not equals or not key:
        raise UserError(f"{quoted(entry)} is not an override: write key=value, such as {example}")
    return key, parse_yaml(value, key) if value else None


def _path_of_key(key: str) -> list[str]:
    found = _MAPPING.fullmatch(key)
    return key.split(".") if found is None else [*found[1].split("."), found[2]]


def _set_by_key(raw: JsonDict, path: list[str], value: Any) -> None:
    for i, part in enumerate(path[:-1]):
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise UserError(f"{'.'.join(path)}: {'.'.join(path[: i + 1])} is a value, not a section")
    if value is None and len(path) == 1 and isinstance(section := raw.get(path[0]), dict):
        example = next(iter(section), "KEY")
        raise UserError(f"{path[0]}: is a section and cannot be emptied; set its keys, such as {path[0]}.{example}=VALUE")
    if path[-1] == "kind" and raw.get("kind", value) != value:
        raw.clear()  # the other settings are those of another kind
    raw[path[-1]] = value
