"""The documentation: links and anchors lead somewhere; files, recipes and settings that it names exist."""

import re
import shlex
import string
from functools import cache
from pathlib import Path

import pytest

from data2vec import cli, cli_help
from data2vec.comparison.shipped import comparison_names
from data2vec.recipe.joint import own_key
from data2vec.recipe.loading import load_recipe

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "data2vec"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "benchmarks" / "README.md", *DOCS]
LINKED = [*PAGES, ROOT / "CHANGELOG.md"]  # the changelog also names what is gone
SECTIONS = "modality|encoder|objective|data|train|probe|log|health"
# Files of fairseq, and a name that no file may have.
FOREIGN = {"utils.py", "data2vec_vision.py", "examples/data2vec"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def code_spans(path: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", prose(path)))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings that a code host and the site's generator agree on."""
    titles = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)).strip().lower() for title in titles]
    hosted = {title.replace(" ", "-") for title in plain}
    generated = {re.sub(r"[-\s]+", "-", "".join(c for c in title if c in string.printable)) for title in plain}
    return hosted & generated


@cache
def recipe_names() -> frozenset[str]:
    recipes = PACKAGE / "recipes"
    return frozenset(str(path.relative_to(recipes).with_suffix("")) for path in recipes.rglob("*.yaml"))


@pytest.fixture(scope="module")
def settings() -> set[str]:
    """Every key of a recipe, as the help of the verbs lists them."""
    import contextlib
    import io

    out = io.StringIO()
    for verb in ("pretrain", "finetune", "probe"):
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            cli.main([verb, "--help"])
    keys = set(re.findall(rf"^  ((?:{SECTIONS})(?:\.\w+)+)", out.getvalue(), flags=re.MULTILINE))
    assert len(keys) > 100
    return keys


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_relative_links_and_their_anchors_exist(page: Path) -> None:
    dead = []
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_source_files_named_in_code_spans_exist(page: Path) -> None:
    dead = []
    for span in code_spans(page) - FOREIGN:
        if not re.fullmatch(r"[\w./-]+\.(py|sh)", span):
            continue
        exists = any((root / span).exists() for root in (ROOT, PACKAGE, ROOT / "src"))
        if not exists and not (
            "/" not in span and any(any(ROOT.joinpath(top).rglob(span)) for top in ("src", "tests", "tools"))
        ):
            dead.append(span)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_said_to_be_in_a_source_file_are_there(page: Path) -> None:
    """What is written as `Name` in `room/file.py`."""
    wrong = []
    for name, file in re.findall(r"`([\w.]+)(?:\(\))?` in\s+`([\w/]+\.py)`", prose(page)):
        source = next((root / file for root in (PACKAGE, ROOT) if (root / file).exists()), None)
        if source is None or not re.search(rf"\b{name.rpartition('.')[2]}\b", source.read_text(encoding="utf-8")):
            wrong.append(f"{name} in {file}")
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_folders_of_the_package_named_in_code_spans_exist(page: Path) -> None:
    named = [
        span
        for span in code_spans(page)
        if re.match(r"(src|tests|tools|benchmarks|examples|docs)/[\w/.-]*$", span) and span not in FOREIGN
    ]
    assert not [span for span in named if not (ROOT / span).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_recipes_named_anywhere_are_shipped(page: Path) -> None:
    kinds = "|".join(sorted({name.partition("/")[2].partition("-")[0] for name in recipe_names()}))
    named = set(re.findall(rf"(?<![\w/.])((?:speech|vision|text)/(?:{kinds})-[\w-]+)(?![\w….-])", page.read_text("utf-8")))
    assert not named - recipe_names()


def commands(text: str) -> list[list[str]]:
    """The `data2vec …` commands at the beginnings of lines, or after torchrun, as words; without what a comment says."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = (re.match(r"\s*(?:torchrun .*-m )?data2vec ([a-z]+(?: .*)?)$", line) for line in lines)
    shown = [re.split(r"  +|\t", match[1])[0] for match in found if match]
    return [shlex.split(line, comments=True) for line in shown if "[--" not in line]


def code_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"^```\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL))


COMMANDS = {name_of(page): found for page in PAGES if (found := commands(code_blocks(page)))} | {
    f"{name.lower()} --help": found
    for name, text in vars(cli_help).items()
    if isinstance(text, str) and (found := commands(text))
}


@pytest.mark.parametrize("where", COMMANDS)
def test_printed_commands_are_parsed_and_their_recipes_take_their_overrides(where: str) -> None:
    for words in COMMANDS[where]:
        arguments = cli.parse_arguments(words)
        overrides = getattr(arguments, "overrides", [])
        if words[0] in ("compare", "ablate"):
            names = {word for word in overrides if "=" not in word}
            folder = "ablations/" if words[0] == "ablate" else ""
            known = {name for name in comparison_names() if name.startswith(folder)} | recipe_names()
            assert not {name for name in names if f"{folder}{name}" not in known and not name.endswith(".yaml")}, words
        elif (name := getattr(arguments, "recipe", None)) in recipe_names():
            load_recipe(name, overrides, auto=set())
        elif name is not None:
            assert name.endswith(".yaml") or name == "RECIPE", words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_named_anywhere_exist(page: Path, settings: set[str]) -> None:
    text = page.read_text(encoding="utf-8")
    assigned = re.findall(rf"(?<![\w./\"'])((?:{SECTIONS})(?:\.[a-z]\w*)+)=", text)
    quoted = [span for span in code_spans(page) if re.fullmatch(rf"(?:{SECTIONS})(?:\.[a-z]\w*)+", span)]
    known = settings | {key.rpartition(".")[0] for key in settings}
    keys = {re.sub(r"(?<=\.)(where|exclude)\.\w+$", r"\1", own_key(key)) for key in {*assigned, *quoted}}  # of a column
    assert not {key for key in keys - known if not key.endswith((".py", ".json", ".tsv", ".txt"))}


def test_readme_lists_every_module_and_folder_at_the_top_of_the_package() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("```\nsrc/data2vec/\n")[2].partition("```")[0]
    entries = [re.split(r"  +", line.strip(), maxsplit=1)[0] for line in tree.splitlines()]
    listed = [name.rstrip("/") for entry in entries for name in entry.split(", ")]
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    modules = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert sorted(listed) == sorted(folders | modules)


def test_every_page_of_docs_is_in_the_site_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.MULTILINE))
    assert {path.name for path in DOCS} <= named


def test_tests_named_in_the_docs_exist() -> None:
    named = {span for page in PAGES for span in code_spans(page) if re.match(r"tests/.*::", span)}
    assert len(named) > 10
    for span in named:
        file, _, name = span.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), flags=re.MULTILINE), span


def test_cells_of_the_table_of_conversions_name_a_test_or_say_that_there_is_none() -> None:
    section = prose(ROOT / "docs" / "conversion.md").partition("### What was tried")[2].partition("The official code itself")[0]
    tests = set(re.findall(r"^- ([A-Z]): `tests/", section, flags=re.MULTILINE))
    cells = [cell.strip() for line in section.splitlines() if line.startswith("|") for cell in line.split("|")[3:-1]][8:]
    named = {letter for cell in cells for letter in re.findall(r"\(([A-Z])\)$", cell)}
    assert named == tests
    assert {cell for cell in cells if not cell.endswith(")")} <= {"not tried", "no such files"}
