"""The base class of all settings, and the walk over their keys."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

JsonDict = dict[str, Any]
"""An object read from, or to be written to, JSON or YAML."""
JsonMapping = Mapping[str, Any]
"""The same, where it is only read."""
Fraction = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole."""


class Settings(BaseModel):
    """Frozen and validated. Settings are defined beside what they set; defaults are the paper's values; an unknown key is an
    error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def flat(self) -> dict[str, Any]:
        """Every setting as a plain value by its dotted key, such as `train.lr`."""
        return flatten(self.model_dump(mode="json"))


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested sections by dotted key."""
    return dict(_flat(tree))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def iter_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a settings class by its dotted name, with its field; the members of a union follow one another."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        for option in settings_classes(field.annotation):
            yield from iter_settings(option, f"{prefix}{name}.")


def iter_values(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every key of settings by its dotted name, with its field and value; of a union, only the member that is set."""
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        yield f"{prefix}{name}", field, value
        if isinstance(value, BaseModel):
            yield from iter_values(value, f"{prefix}{name}.")


def settings_classes(annotation: object) -> list[type[BaseModel]]:
    """The settings classes in an annotation, which may be a union of several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType) or hasattr(annotation, "__metadata__"):
        return [model for part in get_args(annotation) for model in settings_classes(part)]
    return []
