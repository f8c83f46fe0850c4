"""The shipped comparisons, and the text of any comparison file, without the classes of its settings, which take seconds to
import."""

from importlib import resources
from pathlib import Path

from data2vec.errors import UserError, did_you_mean
from data2vec.recipe.shipped import head_comment, recipe_names
from data2vec.recipe.yaml_format import parse_yaml

KEYS = {"arms", "evaluations", "budget"}
"""Keys of a comparison file that no recipe has."""


def is_comparison(source: str) -> bool:
    """Whether `source` is a comparison by name or file, not a recipe."""
    if source in comparison_names():
        return True
    if source in recipe_names() or Path(source).suffix not in (".yaml", ".yml"):
        return False
    return isinstance(raw := parse_yaml(comparison_text(source), source), dict) and bool(KEYS & raw.keys())


def comparison_names() -> list[str]:
    """The shipped comparisons."""
    root = _root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def comparison_summary(name: str) -> str:
    """The description of a shipped comparison: the comment at its head."""
    return head_comment(comparison_text(name))


def comparison_text(source: str) -> str:
    """The text of a comparison, by name or file. Raises UserError if it cannot be read."""
    path = _root() / f"{source}.yaml" if source in comparison_names() else Path(source)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        hint = did_you_mean(source, comparison_names()) or "; 'data2vec compare --list' lists the shipped ones"
        raise UserError(f"comparison {source} cannot be read: {reason}{hint}") from None


def _root() -> Path:
    return Path(str(resources.files("data2vec") / "comparisons"))
