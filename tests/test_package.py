"""The package as a whole: what importing it costs, and which part may know which."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import data2vec

ROOT = Path(data2vec.__file__).parent
HEAVY = ("datasets", "sklearn", "scipy", "matplotlib", "PIL", "soundfile", "soxr", "tokenizers", "transformers", "torchvision")

# What each part may import, beside itself and the three modules at the bottom. `recipe` is the schema of a run: it gathers
# the settings of every part, so any part above the objective may use it.
BOTTOM = {"errors", "settings"}
ALLOWED = {
    "nn": set(),
    "modalities": {"nn", "data"},
    "data": {"modalities.base"},
    "objective": {"modalities", "nn"},
    "recipe": {"modalities", "nn", "objective", "train.settings", "tasks.settings"},
    "interop": {"recipe", "objective", "modalities", "nn", "data", "model", "card"},
    "card": set(),
    "inference": {"modalities", "nn"},
    "inputs": {"modalities"},
    "model": {"card", "recipe", "inference", "inputs", "modalities", "nn"},
    "report": {
        *("recipe", "objective", "modalities", "nn", "data", "model"),
        *("train.folder", "train.checkpoint", "train.machine", "tasks.judge", "tasks.settings"),
    },
    "train": {"recipe", "objective", "modalities", "nn", "data", "model", "interop.load", "tasks", "report.page"},
    "tasks": {"recipe", "objective", "inference", "inputs", "modalities", "nn", "data", "model", "interop.load"},
}


def modules() -> dict[str, ast.Module]:
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.rglob("*.py"))}
    return {name.removesuffix(".__init__"): ast.parse(path.read_text(encoding="utf-8")) for path, name in names.items()}


def imports(tree: ast.AST, known: set[str], lazy: bool) -> set[str]:
    """The package's own modules that `tree` imports, without those only for type checking; `lazy`: also inside functions."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.FunctionDef) and not lazy:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "data2vec":
            module = node.module.partition(".")[2]
            found |= {name if (name := f"{module}.{alias.name}".lstrip(".")) in known else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("data2vec.")}
        else:
            found |= imports(node, known, lazy)
    return found - {""}


def within(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(part + ".") for part in parts)


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = f"import sys, data2vec; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part: str) -> None:
    known = modules()
    allowed = ALLOWED[part] | BOTTOM | {part}
    wrong = {
        f"{name} imports {target}"
        for name, tree in known.items()
        if within(name, {part})
        for target in imports(tree, set(known), lazy=True)
        if not within(target, allowed)
    }
    assert not wrong


def test_every_part_has_a_rule() -> None:
    top = {"cli", "demo", "usage", "__init__", "__main__"}
    assert {name.split(".")[0] for name in modules()} - top - BOTTOM <= set(ALLOWED)


def test_imports_have_no_cycle() -> None:
    known = modules()
    graph = {name: imports(tree, set(known), lazy=False) for name, tree in known.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_without_a_subject() -> None:
    assert not [name for name in modules() if name.split(".")[-1] in ("utils", "common", "helpers", "misc")]


def test_no_file_is_too_long() -> None:
    long = {str(path): n for path in ROOT.rglob("*.py") if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert not long
