"""Collect the pages of the documentation site in build/docs, from where Zensical builds it: python tools/build_docs.py

Pages written by people are copied: README becomes the home page, and links to source files lead to pages that show
them. The API reference, the command-line reference, the recipe tables and the examples are generated, so that they
cannot differ from the code.
"""

import contextlib
import inspect
import io
import os
import posixpath
import re
import shutil
from pathlib import Path

import yaml
from build_notebooks import split_cells

import data2vec
from data2vec.cli import main

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "docs"
# Pages outside docs/, and what they are on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "speed.md",
}
LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".html": "html"}
LINK = re.compile(r"(?<!\!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def place(path: str) -> str:
    """Where a file of the repository lies on the site: its page, or a page that shows its source."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if re.fullmatch(r"examples/\w+\.py", path):
        return path.replace(".py", ".md")
    return f"source/{path}.md"


def rewrite_links(text: str, source: str, page: str) -> tuple[str, set[str]]:
    """`text` of the repository file `source` with links as the site's `page` needs them, and the linked source files.

    A link to a folder becomes plain text: the site has no page for it."""
    shown: set[str] = set()

    def rewrite(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if re.match(r"\w+:", target) or not path:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if (ROOT / path).is_dir():
            return label
        new = place(path)
        if new.startswith("source/"):
            shown.add(path)
        return f"[{label}]({posixpath.relpath(new, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(rewrite, part) for part in parts), shown


def write(page: str, text: str) -> None:
    """Write one page of the site."""
    path = SITE / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy_pages() -> None:
    """Copy docs/ and the pages outside it, and show the source files that they link to."""
    shown: set[str] = set()
    sources = [*(path for path in PAGES if (ROOT / path).exists())]
    sources += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    for source in sources:
        text, files = rewrite_links((ROOT / source).read_text(encoding="utf-8"), source, place(source))
        write(place(source), text)
        shown |= files
    for path in sorted(shown):
        language = LANGUAGES.get(Path(path).suffix, "text")
        code = (ROOT / path).read_text(encoding="utf-8")
        write(place(path), f"# `{path}`\n\n````{language}\n{code}````\n")
    shutil.copytree(ROOT / "docs" / "pictures", SITE / "pictures")


def command_output(*arguments: str) -> str:
    """What `data2vec ARGUMENTS` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(arguments)
    return out.getvalue()


def write_cli_reference() -> None:
    """cli.md: the help of the command and of every verb, as --help prints it."""
    help_ = command_output("--help")
    verbs = re.findall(r"^    (\w+)(?:\s|$)", help_.partition("VERB\n")[2].partition("\n\n")[0], flags=re.MULTILINE)
    lines = ["# Command line", "", "What `data2vec --help` and `data2vec VERB --help` print.", ""]
    lines += ["```text", help_.rstrip(), "```"]
    for verb in verbs:
        lines += ["", f"## data2vec {verb}", "", "```text", command_output(verb, "--help").rstrip(), "```"]
    write("cli.md", "\n".join([*lines, ""]))


def write_api_reference() -> None:
    """api.md: every public name, documented from its docstring."""
    lines = ["# Python API", "", "Everything in `data2vec.__all__`; other names may change between versions."]
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Errors": []}
    for name in data2vec.__all__:
        value = getattr(data2vec, name)
        is_error = inspect.isclass(value) and issubclass(value, Exception)
        kinds["Errors" if is_error else "Classes" if inspect.isclass(value) else "Functions"].append(name)
    for kind, names in kinds.items():
        lines += ["", f"## {kind}"]
        for name in sorted(names):
            value = getattr(data2vec, name)
            lines += ["", f"::: {value.__module__}.{value.__qualname__}", "    options:", f"      heading: data2vec.{name}"]
    write("api.md", "\n".join([*lines, ""]))


def write_recipe_tables() -> None:
    """recipe-tables.md: the shipped recipes, with the settings by which one chooses."""
    lines = ["# Recipe tables", "", "Made from the shipped YAML files; `data2vec recipes NAME` prints one complete.", ""]
    tables: dict[str, list[str]] = {}
    for line in command_output("recipes").splitlines():
        name, _, about = line.partition(" ")
        if "/" not in name:
            continue
        recipe = yaml.safe_load(command_output("recipes", name))
        encoder, objective, data, train = (recipe[section] for section in ("encoder", "objective", "data", "train"))
        size = f"{encoder['layers']} × {encoder['width']}"
        batch = next(f"{data[key]:,g} {unit}" for key, unit in (("batch_seconds", "s"), ("batch_size", "")) if data.get(key))
        method = objective["name"]
        kind = "Pre-training" if method.startswith("data2vec") else "Fine-tuning"
        row = f"| `{name}` | {about.strip()} | {method} | {size} | {batch.strip()} | {train['steps']:,} | {train['lr']} |"
        tables.setdefault(f"{kind}: {recipe['modality']['name']}", []).append(row)
    for title in sorted(tables, key=lambda title: (title.startswith("Fine"), title)):
        lines += [f"## {title}", "", "| recipe | what | objective | layers × width | global batch | steps | learning rate |"]
        lines += ["|---|---|---|---|---|---|---|", *tables[title], ""]
    write("recipe-tables.md", "\n".join(lines))


def write_examples() -> None:
    """examples/*.md: the example scripts, text and code."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        cells = split_cells(path.read_text(encoding="utf-8"))
        text = "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)
        write(f"examples/{path.stem}.md", f"{text}\n")


if __name__ == "__main__":
    os.environ["COLUMNS"] = "100"
    shutil.rmtree(SITE, ignore_errors=True)
    copy_pages()
    write_cli_reference()
    write_api_reference()
    write_recipe_tables()
    write_examples()
    print(f"{len(list(SITE.rglob('*.md')))} pages in {SITE.relative_to(ROOT)}")
