"""`check_modality()`: whether a modality keeps its contract, check by check."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from data2vec.conformance.case import Case, CheckFailed, CheckSkipped, small_recipe
from data2vec.conformance.checks import CHECKS
from data2vec.console.progress import set_level, shown_level
from data2vec.errors import UserError, only_errors, printable
from data2vec.modalities.custom_classes import CustomClass
from data2vec.recipe.loading import list_overrides
from data2vec.recipe.recipe import MODALITIES, Recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.settings import JsonMapping
from data2vec.train.pretrain import resolve_recipe


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    text: str
    """What was seen; what to fix; or why the check does not apply."""

    def __str__(self) -> str:
        return f"{self.status:8}{self.name:16}{printable(self.text)}"


@dataclass(frozen=True)
class ModalityReport:
    """The results of all checks of a modality; `str()` is a line for each."""

    modality: str
    results: tuple[CheckResult, ...]

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed; empty if the modality keeps its contract."""
        return [result.name for result in self.results if result.status == "failed"]

    def __str__(self) -> str:
        counts = [f"{sum(each.status == status for each in self.results)} {status}" for status in ("ok", "failed", "skipped")]
        return "\n".join([*map(str, self.results), f"{self.modality}: {', '.join(counts)}"])


def check_modality(
    modality: CustomClass,
    data: Any,
    overrides: Iterable[str] | JsonMapping = (),
    recipe: str | Path | Recipe | None = None,
) -> ModalityReport:
    """Check that a modality keeps the contract that training, features and saved models rely on (docs/modalities.md).

    `modality`: the class, its name "package.module:Class", or a built-in one such as "speech". `data`: as of
    `data2vec.pretrain`; some examples of different lengths, enough for a batch. `overrides`: settings, such as
    {"modality.window": 8}. `recipe`: the recipe to check it with; by default a small encoder with the default settings of the
    class, of a built-in modality its recipe v1-tiny if it has one. Runs are made in a temporary folder, of 4 steps.

    A modality that breaks the contract is a failed check, not an error. Raises UserError for an unknown class or setting, and
    if the data cannot be opened."""
    built_in = isinstance(modality, str) and modality in MODALITIES
    with tempfile.TemporaryDirectory(prefix="data2vec-check-") as folder, _undisturbed():
        if recipe is None:
            own = f"{modality}/v1-tiny"
            recipe = own if built_in and own in recipe_names() else small_recipe(Path(folder))
        named = {"modality.name": modality} if built_in and recipe != own else {}
        resolved = resolve_recipe(recipe, data, {**named, **list_overrides(overrides)}, None if built_in else modality)
        case = Case(resolved, Path(folder))
        return ModalityReport(resolved.modality.name, tuple(_run(name, case) for name in CHECKS))


def _run(name: str, case: Case) -> CheckResult:
    try:
        return CheckResult(name, "ok", CHECKS[name](case))
    except CheckSkipped as skipped:
        return CheckResult(name, "skipped", str(skipped))
    except CheckFailed as failed:
        return CheckResult(name, "failed", str(failed))
    except UserError as error:
        return CheckResult(name, "failed", " ".join(str(error).split()))
    except Exception as error:  # a modality may raise anything
        return CheckResult(name, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without messages of the runs, and with the random state of the process as before."""
    level, state = shown_level(), torch.get_rng_state()
    set_level("warning")
    try:
        with only_errors("data2vec"):
            yield
    finally:
        set_level(level)
        torch.set_rng_state(state)
