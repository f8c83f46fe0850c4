"""Classes outside the package, such as a custom modality: used only if the caller names them, never because a file does."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from data2vec.errors import UserError, quoted

CustomClass = str | type
"""A class outside the package: itself, or its name "package.module:Class"."""
_TRUSTED: dict[str, Any] = {}
"""By name."""


def trust_class(custom: CustomClass, setting: str) -> str:
    """Let recipes and models of this process name this class; importing it runs its module, which is on the Python path or in
    the current folder. Returns its name.

    `setting`: the key that errors mention. Raises UserError if there is no such class."""
    if not isinstance(custom, str):
        name = f"{custom.__module__}:{custom.__qualname__}"
        _TRUSTED[name] = custom
        return name
    if custom not in _TRUSTED:
        module, _, attribute = custom.partition(":")
        try:
            found = _import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:  # importing a module runs it
            raise UserError(
                f"{setting}: {quoted(custom)} cannot be imported: {' '.join(str(error).split())[:300] or type(error).__name__}"
            ) from None
        _TRUSTED[custom] = found
    return custom


def _import_module(name: str) -> ModuleType:
    """A module on the Python path; if there is none, of the current folder, which is then put at the end of the path."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        here = os.getcwd()
        if missing.name is None or missing.name != name.partition(".")[0] or here in sys.path:
            raise
        sys.path.append(here)
        try:
            importlib.invalidate_caches()
            return importlib.import_module(name)
        except BaseException:
            sys.path.remove(here)
            raise


def trusted_class(name: str, setting: str, option: str) -> Any:
    """The class that the caller has named so. `setting` and `option`: where it is named, and how to name it.

    Raises UserError for any other: a file that is opened must not import anything."""
    if name not in _TRUSTED:
        shown = quoted(name)
        raise UserError(
            f"{setting}: {shown} is a class outside the package, which is never imported because a file names it; if you trust "
            f"it, name it yourself by --{option} {name}, in Python {option}={shown}"
        )
    return _TRUSTED[name]
