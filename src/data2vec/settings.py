"""The base of every settings class: frozen, checked, and complete."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings stand beside what they set; defaults are the paper's values; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
