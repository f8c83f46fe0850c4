"""The base of every settings class: frozen, checked, and complete."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings stand beside what they set; defaults are the paper's values; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def flat(self) -> dict[str, Any]:
        """Every setting as a plain value by its dotted key, such as `train.lr`."""
        return dict(_flat(self.model_dump(mode="json")))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
