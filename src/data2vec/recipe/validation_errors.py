"""Validation errors of a recipe in plain words: the key, what is wrong, what is allowed, and the nearest valid name."""

import functools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args, get_origin

from pydantic import BaseModel

from data2vec.errors import did_you_mean, quoted
from data2vec.recipe.renamed_keys import RENAMED
from data2vec.settings import iter_settings, settings_classes

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def explain_error(error: "ErrorDetails", model: type[BaseModel]) -> tuple[str, str, str]:
    """One pydantic error of a recipe of class `model` as (dotted key, problem, hint). The key's line is problem + hint."""
    location, known, options = _resolve_location(error["loc"], model)
    key, kind, context, value = ".".join(location), error["type"], error.get("ctx", {}), error.get("input")
    tag = f"{key}.{context.get('discriminator', '').strip(chr(39))}"
    if kind == "extra_forbidden":
        if (new := RENAMED.get(key)) and (new in model.model_fields or new.rpartition(".")[2] in known):
            return key, "unknown setting", f"; {key} is now {new}"
        hint = did_you_mean(location[-1], known)
        for name in () if hint else _setting_names(model):
            if name.endswith(f".{location[-1]}") and name != key:
                hint = f"; did you mean {name!r}?"
        return key, "unknown setting", hint or f"; allowed are {', '.join(known)}"
    if kind == "missing":
        return key, "is missing", ""
    if kind == "union_tag_not_found":
        return tag, f"is missing; one of {', '.join(name for option in options for name in _tags(option))}", ""
    if kind == "union_tag_invalid":
        allowed, name = context["expected_tags"], context["tag"]
        return tag, f"{quoted(name)} is not one of {allowed}", did_you_mean(name, re.findall("'(.*?)'", allowed))
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return key, "should be a section with settings", f", not {quoted(value)}"
    if kind in ("too_short", "too_long"):
        side, limit = ("least", context["min_length"]) if kind == "too_short" else ("most", context["max_length"])
        return key, f"should have at {side} {limit} {'entry' if limit == 1 else 'entries'}, not {context['actual_length']}", ""
    if kind in ("tuple_type", "list_type"):
        return key, "should be a list in brackets", ", not empty" if value is None else f", not {quoted(value)}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    message = message[0].lower() + message[1:]
    if kind == "value_error":
        return key, message, ""
    if kind == "string_type":
        return key, explain_no_text(key, value), ""
    wrong = ", not empty" if value is None else f", not {quoted(value)}"
    if "expected" in context and isinstance(value, str):
        wrong += did_you_mean(value, re.findall("'(.*?)'", context["expected"]))
    return key, message, wrong


def explain_no_text(key: str, value: object) -> str:
    """What is wrong with a value that is no text, such as the name of a split that YAML reads as a number."""
    if value is None:
        return "is null or empty; set it to a text"
    if not isinstance(value, bool | int | float):
        return f"{quoted(value)} is no text"
    text = f'"{json.dumps(value)}"'
    example = text if key.rpartition(".")[2].isdecimal() else f"'{key}={text}'"
    return f"{quoted(value)} is no text; to name what reads as a number, quote it: {example}"


def _resolve_location(
    location: Sequence[int | str], model: type[BaseModel]
) -> tuple[list[str], list[str], list[type[BaseModel]]]:
    """The keys along pydantic's `location`, without its names for members of unions; the keys allowed beside the last one; and
    the settings classes allowed there."""
    path: list[str] = []
    known = list(model.model_fields)
    options: list[type[BaseModel]] = [model]
    entries: object = None
    """The annotation of the values of a dictionary, whose keys are names of any kind."""
    for part in location:
        if entries is not None:
            path.append(str(part))
            options, entries = settings_classes(entries), None
            continue
        holders = [option for option in options if part in option.model_fields]
        if holders:
            path.append(str(part))
            known = list(dict.fromkeys(key for option in options for key in option.model_fields))
            annotations = [holder.model_fields[str(part)].annotation for holder in holders]
            options = [kind for annotation in annotations for kind in settings_classes(annotation)]
            entries = next((get_args(annotation)[1] for annotation in annotations if get_origin(annotation) is dict), None)
        elif isinstance(part, int):
            path.append(str(part))
        elif tagged := [option for option in options if part in _tags(option)]:
            options = tagged
        elif options:  # an unknown key
            path.append(str(part))
            known = list(dict.fromkeys(key for option in options for key in option.model_fields))
    return path, known, options


@functools.lru_cache(maxsize=16)
def _setting_names(model: type[BaseModel]) -> tuple[str, ...]:
    """The dotted names of all settings."""
    return tuple(name for name, _ in iter_settings(model))


def _tags(model: type[BaseModel]) -> list[str]:
    """The names by which a member of a tagged union is chosen."""
    return [str(model.model_fields[key].default) for key in ("name", "kind") if key in model.model_fields]
