"""The package as a whole: what importing it costs, and which part may know which."""

import ast
import functools
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import data2vec
from data2vec.recipe.describe import describe_settings

ROOT = Path(data2vec.__file__).parent
HEAVY = ("datasets", "sklearn", "scipy", "matplotlib", "PIL", "soundfile", "soxr", "tokenizers", "transformers", "torchvision")

# Imports go one way: a room may import those before it in this list, and itself. Rooms of one line do not know each other.
ROOMS = (
    ("errors", "settings", "batch", "console"),
    ("distributed", "atomic_io", "untrusted", "local_path"),
    ("nn", "data"),
    ("modalities",),
    ("objective",),
    ("health",),
    ("recipe",),
    ("run_dir", "model_card", "feature_extraction", "inputs"),
    ("model",),
    ("interop",),
    ("tasks",),
    ("report",),
    ("train",),
    ("comparison", "conformance"),
    ("demo",),
    ("cli_help",),
    ("cli",),
)


@functools.cache
def paths() -> dict[str, Path]:
    found = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths().items()}


def imports(tree: ast.AST, known: set[str], lazy: bool) -> set[str]:
    """The package's own modules that `tree` imports, without those only for type checking; `lazy`: also inside functions."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if is_for_type_checking(node):
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


@functools.cache
def imports_of(name: str, lazy: bool) -> set[str]:
    """Those of the module of this name."""
    return imports(modules()[name], set(modules()), lazy)


def is_for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(module: str, parts: set[str]) -> bool:
    return any(module == part or module.startswith(part + ".") for part in parts)


def test_importing_the_package_loads_no_heavy_library() -> None:
    code = f"import sys, data2vec; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_help_lists_and_wrong_arguments_need_no_torch(tmp_path: Path) -> None:
    verbs = sorted(set(re.findall(r'_add_verb\(\s*verbs, "([a-z-]+)"', (ROOT / "cli.py").read_text(encoding="utf-8"))))
    assert len(verbs) > 15
    refused = [
        "plan nowhere",
        "check /nowhere",
        f"check {tmp_path}",
        "pretrain",
        "features",
        "predict x --top-k 0",
        "pretrain text/v1-tny --out x",
    ]
    lists = ["recipes", "compare --list", "ablate --list"]
    lines = ["--version", "--help", *lists, *refused, *(f"{verb} --help" for verb in (*verbs, "compare", "ablate"))]
    code = """import contextlib, sys
from data2vec import cli
for line in sys.argv[1:]:
    with contextlib.suppress(SystemExit):
        cli.main(line.split())
    assert "torch" not in sys.modules, line
"""
    result = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "vision/v2-tiny" in result.stdout
    assert "train.layer_decay" in result.stdout
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == len(refused), errors


def test_stored_settings_of_the_help_are_current() -> None:
    stored = json.loads((ROOT / "recipes" / "settings.json").read_text(encoding="utf-8"))
    assert stored == describe_settings(), "run: python tools/build_help.py"


@pytest.mark.parametrize("rank", range(len(ROOMS)), ids=["+".join(rooms) for rooms in ROOMS])
def test_a_room_imports_only_rooms_before_it(rank: int) -> None:
    before = {room for rooms in ROOMS[:rank] for room in rooms}
    wrong = {
        f"{name} imports {target}"
        for room in ROOMS[rank]
        for name in modules()
        if within(name, {room})
        for target in imports_of(name, lazy=True)
        if not within(target, before | {room})
    }
    assert not wrong


def test_every_module_is_in_a_room() -> None:
    rooms = {room for rooms in ROOMS for room in rooms} | {"__init__", "__main__"}
    assert {name.split(".")[0] for name in modules()} <= rooms


def test_sub_packages_do_not_import_each_other_in_a_circle() -> None:
    folders = {name: ".".join(path.parent.relative_to(ROOT).parts) for name, path in paths().items()}
    graph: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    for name, folder in folders.items():
        others = {folders[target] for target in imports_of(name, lazy=True) if target in folders}
        graph[folder] |= {other for other in others if not within(other, {folder}) and not within(folder, {other}) and other}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_folder_holds_more_than_a_dozen_modules() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) - 1 for folder in {path.parent for path in ROOT.rglob("*.py")}}
    assert not {str(folder): n for folder, n in counts.items() if n > 15}


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[\[<>=;, ]", line)[0].lower().replace("-", "_") for line in requirements}
    names = {"PIL": "pillow", "sklearn": "scikit_learn", "ruamel": "ruamel.yaml", "flashlight": "flashlight_text"}
    imported = {name for tree in modules().values() for name in third_party_imports(tree)}
    assert {names.get(name, name) for name in imported} <= declared


def third_party_imports(tree: ast.AST) -> set[str]:
    """The top-level names of other packages that `tree` imports, in functions too, without those only for type checking."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if is_for_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        else:
            found |= third_party_imports(node)
    return found - sys.stdlib_module_names - {"data2vec"}


def test_every_public_name_can_be_imported() -> None:
    assert data2vec.__all__ == sorted(data2vec.__all__)
    assert all(getattr(data2vec, name) is not None for name in data2vec.__all__)
    assert dir(data2vec) == sorted([*data2vec.__all__, "__version__"])


def test_the_package_declares_its_types() -> None:
    assert (ROOT / "py.typed").is_file()


def test_imports_have_no_cycle() -> None:
    graph = {name: imports_of(name, lazy=False) for name in modules()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_without_a_subject() -> None:
    assert not [name for name in modules() if name.split(".")[-1] in ("utils", "common", "helpers", "misc")]
