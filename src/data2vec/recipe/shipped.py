"""The shipped recipes, and the text of any recipe, without the classes of its settings, which take seconds to import."""

import json
import re
from importlib import resources
from typing import Any

from data2vec.errors import UserError, did_you_mean, quoted
from data2vec.local_path import local_path
from data2vec.untrusted import read_regular

MAX_RECIPE_BYTES = 2**18
"""Of a recipe file; the longest shipped one has 3 kB."""
GPU_FLOPS = 1e14
"""Operations a second that times on a GPU are computed with: of a data-centre GPU in bf16; not measured."""
RATES = {"tiny": ("CPU", 1e10), "small": ("CPU", 1e11)}
"""The hardware and the operations a second that times of recipes of a size are computed with, where it is no GPU: of two CPU
cores, on which tiny speech models were measured at 0.4e10 to 1.2e10, and base models at 3e11."""
SUPERVISED = ("ctc", "classify")
"""The names of the fine-tuning tasks, as `objective.name`."""


def recipe_names() -> list[str]:
    """The shipped recipes, as modality/version-size."""
    root = resources.files("data2vec") / "recipes"
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def recipe_summary(name: str) -> str:
    """What a shipped recipe is for: the first sentence of the comment at its head."""
    return re.split(r"(?<=\.)\s", head_comment(recipe_text(name)[0]), maxsplit=1)[0]


def is_supervised(name: str) -> bool:
    """Whether a shipped recipe is for fine-tuning."""
    section = recipe_text(name)[0].partition("\nobjective:\n")[2]  # a parser takes a second for all of them
    match = re.search(r"^  name: (\S+)$", section, re.MULTILINE)
    return match is not None and match[1] in SUPERVISED


def recipe_parameters() -> dict[str, int]:
    """The weights of the encoder of each shipped pre-training recipe, of which data does not decide the size: a table, as
    building all of them takes seconds."""
    table: dict[str, int] = _read_table("parameters")
    return table


def recipe_time(name: str) -> tuple[str, float] | None:
    """The hardware that a shipped pre-training recipe is for, CPU or GPU, and the seconds of all its steps at the rate of its
    size: from a table of its operations (`count_run_flops`). None if these depend on the data, and for fine-tuning."""
    table: dict[str, float] = _read_table("flops")
    if name not in table:
        return None
    hardware, rate = RATES.get(name.rpartition("-")[2], ("GPU", GPU_FLOPS))
    return hardware, table[name] / rate


def settings_of_verb(verb: str) -> list[str]:
    """The lines with which the help of a verb lists the settings that it takes: a table, as making it (`describe_settings`)
    takes seconds."""
    table: dict[str, list[str]] = _read_table("settings")
    return table.get(verb, [])


def _read_table(name: str) -> Any:
    return json.loads((resources.files("data2vec") / "recipes" / f"{name}.json").read_text("utf-8"))


def require_recipe(recipe: str) -> None:
    """Raise UserError if there is no such recipe."""
    recipe_text(recipe)


def recipe_text(recipe: str) -> tuple[str, str]:
    """The YAML text of a shipped recipe or of a file, and its name. Raises UserError if there is none that can be read."""
    path = local_path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return read_regular(path, MAX_RECIPE_BYTES).decode("utf-8"), recipe
        except UnicodeDecodeError as error:
            raise UserError(f"recipe {recipe} is not UTF-8 text (byte {error.start})") from None
        except ValueError as error:
            raise UserError(f"recipe {recipe} is too large: {error}") from None
        except OSError as error:
            raise UserError(
                f"recipe {recipe} cannot be read: {error.strerror}; 'data2vec recipes' lists the shipped ones"
            ) from None
    if recipe in recipe_names():
        return (resources.files("data2vec") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe
    raise UserError(
        f"there is no recipe {quoted(recipe)}{did_you_mean(recipe, recipe_names())} "
        "('data2vec recipes' lists them; the name of a file ends in .yaml)"
    )


def head_comment(text: str) -> str:
    """The comment at the head of a YAML file, as one line."""
    lines = text.splitlines()
    return " ".join(line.strip("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
