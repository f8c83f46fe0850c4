"""Lists of settings for the help of the command: each with its key, its default or value, and its description."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from pydantic.fields import FieldInfo

from data2vec.recipe.joint import SECTIONS, JointSettings, PartSettings
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import MODALITIES, Recipe, recipe_class
from data2vec.recipe.task_settings import ClassificationSettings, ProbeSettings, RecognitionSettings
from data2vec.settings import Settings, iter_settings, iter_values, settings_classes


def describe_settings() -> dict[str, list[str]]:
    """The lines of the settings that a verb takes, by its name."""
    probe = _format_settings("probe", iter_settings(ProbeSettings, "probe."))
    return {"pretrain": list(_of_pretraining()), "finetune": list(_of_finetuning()), "probe": list(probe)}


def describe_recipe(name: str, overrides: Sequence[str], modality: str | None) -> Iterator[str]:
    """The lines of every setting that a recipe has, with its value. Raises UserError."""
    recipe = load_recipe(name, overrides, modality=modality, auto=set())
    yield from ("", f"settings of {name}, given as key=value (its values in parentheses):")
    for section, field in type(recipe).model_fields.items():
        value = getattr(recipe, section)
        inside = isinstance(value, Settings)
        settings = iter_values(value, f"{section}.") if inside else [(section, field, value)]
        yield from ("", *textwrap.wrap(f"{section}: {field.description}", 118)) if inside else ("",)
        for key, setting, current in settings:
            yield from _format_setting(key, setting, current)


def _of_pretraining() -> Iterator[str]:
    for modality in MODALITIES:
        sections = recipe_class(modality).model_fields
        for name in ("modality", "data"):
            kind = sections[name].annotation
            yield from _format_settings(f"{name} ({modality}): {sections[name].description}", iter_settings(kind, f"{name}."))  # type: ignore[arg-type]
    own = f"modality (joint): the parts of a joint run, each with the sections {', '.join(SECTIONS)} of its own"
    of_part = [(f"modality.parts.NAME.{key}", PartSettings.model_fields[key]) for key in ("lr", "loss_weight")]
    yield from _format_settings(own, [("modality.shares", JointSettings.model_fields["shares"]), *of_part])
    for name, section in Recipe.model_fields.items():
        if name in ("modality", "data"):
            continue
        if not settings_classes(section.annotation):
            yield from _format_settings("", [(name, section)])
            continue
        listed: set[str] = set()  # settings that several objectives share are listed once
        for kind in settings_classes(section.annotation):
            settings = [(key, field) for key, field in iter_settings(kind, f"{name}.") if key not in listed]
            title = f"{name}: {section.description}" if not listed else f"{name} ({kind.model_fields['name'].default})"
            listed.update(key for key, _ in settings)
            yield from _format_settings(title, settings)


def _of_finetuning() -> Iterator[str]:
    for kind in (RecognitionSettings, ClassificationSettings):
        title = f"objective ({kind.model_fields['name'].default})"
        yield from _format_settings(title, iter_settings(kind, "objective."))


def _format_settings(title: str, settings: Iterable[tuple[str, FieldInfo]]) -> Iterator[str]:
    """The lines of a section: each setting with its key, its default and its description."""
    yield from ("", title)
    for key, field in settings:
        yield from _format_setting(key, field, field.get_default(call_default_factory=True))


def _format_setting(key: str, field: FieldInfo, value: object) -> Iterator[str]:
    """The lines of a setting, with its default or value in parentheses."""
    plain = str(value).lower() if isinstance(value, bool | None) else value
    shown = "" if isinstance(value, Settings) else f" ({plain})"
    line = f"{key}{shown}  {field.description or ''}"
    yield from textwrap.wrap(line, 118, initial_indent="  ", subsequent_indent=" " * 8)
