"""RUN/report.html: how a run went, on one page that needs nothing but a browser.

It is made of the run folder alone, so it can be made again at any time; what is not there is left out, and named.
"""

import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.report import curves
from data2vec.report import style as figure
from data2vec.report.figures import Look, looks
from data2vec.run_dir import Run
from data2vec.tasks.finetuning.verdict import judge_run
from data2vec.train import provenance as machine

FILES = 200
"""Bad files that the page names."""
STATES = {
    "healthy": ("✓", "Healthy", "Nothing in the measurements speaks against going on."),
    "watch": ("!", "Watch", "Something is not as it should be:"),
    "collapsed": ("✗", "Collapsed", "It does not learn any more:"),
}


def build(run: str | Path) -> Path:
    """Write `report.html` of a run, finished or not, in place of an earlier one; returns its path.

    Raises UserError when `run` is no run folder or its recipe is not one of this version."""
    here = Run(Path(run).expanduser())
    if not here.recipe.is_file():
        raise UserError(f"{run} is not a run folder (it has no recipe.yaml)")
    recipe = load_recipe(here.recipe)
    metrics, starts = here.metrics, machine.starts(here.folder)
    seen, missing = looks(here.folder, recipe)
    sections = [
        _verdict(metrics, recipe, starts),
        f"<p>Not on this page: {escape(missing)}.</p>" if missing else "",
        _section("Curves", _curves(metrics)),
        _section("What it sees, and what it makes of it", seen),
        _bad(here.folder / "bad_files.txt"),
        _machine(starts),
        f"<section><h2>Recipe</h2><details><summary>Complete: running it again is the same run</summary>"
        f"<pre>{escape(here.recipe.read_text(encoding='utf-8'))}</pre></details></section>",
    ]
    template = Template((resources.files("data2vec.report") / "page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        name=escape(here.folder.resolve().name),
        subtitle=_subtitle(recipe, metrics),
        sections="\n".join(filter(None, sections)),
    )
    with atomic_write(here.report) as tmp:
        tmp.write_text(text, encoding="utf-8")
    return here.report


def at_end(run: Path, recipe: Recipe) -> None:
    """`build` when a run ends, if its recipe asks for it. A run is not lost over a picture: a failure is one line on stderr."""
    if not recipe.log.report:
        return
    try:
        build(run)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"data2vec: report.html was not made ({reason}); all else is; try 'data2vec report {run}'", file=sys.stderr)


def _verdict(metrics: Sequence[Mapping[str, Any]], recipe: Recipe, starts: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return '<section class="verdict unknown"><strong>– Unknown</strong><p>No step has been logged yet.</p></section>'
    found, last = judge_run(metrics, recipe), starts[-1] if starts else {}
    # What ends a run may never have been logged: a loss that is no number is not.
    state = "collapsed" if last.get("unhealthy") else found.state
    signs = "".join(
        f"<li><b>{escape(finding.sign)}</b><br>Likely cause: {escape(finding.cause)}<br>What to change: {escape(finding.mend)}"
        "</li>"
        for finding in found.findings
    )
    mark, word, said = STATES[state]
    parts = [f"<strong>{mark} {word}</strong><p>{said}</p>", f"<ul>{signs}</ul>" if signs else f"<p>{escape(found.note)}</p>"]
    if last.get("because", "finished") != "finished":
        parts.append(f"<p>The run stopped: {escape(last['because'])}</p>")
    return f'<section class="verdict {state}">{"".join(parts)}</section>'


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[Look]:
    panels = [panel for panel in curves.PANELS if curves.has(metrics, panel)]
    return [Look(curves.draw(metrics, [panel]), panel.title, panel.says) for panel in panels]


def _bad(path: Path) -> str:
    names = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if not names:
        return ""
    lines = "".join(f"<li>{escape(name)}</li>" for name in names[:FILES])
    more = f"<p>And {len(names) - FILES} more, in bad_files.txt.</p>" if len(names) > FILES else ""
    head = f"{len(names)} could not be read and were skipped"
    return f"<section><h2>Broken files</h2><details open><summary>{head}</summary><ul>{lines}</ul>{more}</details></section>"


def _machine(starts: Sequence[Mapping[str, Any]]) -> str:
    if not starts:
        return ""
    parts = []
    for i, start in enumerate(reversed(starts)):
        shown = dict(start) | {"ended": start.get("ended", "not yet, or it was killed")}
        rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in shown.items())
        head = f"Start {len(starts) - i} of {len(starts)}, at step {start['step']}"
        parts.append(f"<details{' open' if i == 0 else ''}><summary>{head}</summary><dl>{rows}</dl></details>")
    return f"<section><h2>Machine</h2>{''.join(parts)}</section>"


def _subtitle(recipe: Recipe, metrics: Sequence[Mapping[str, Any]]) -> str:
    shape, name = recipe.encoder, getattr(recipe.modality, "name", "")
    parts = [
        f"{recipe.objective.name} on {name}: {shape.layers} blocks of width {shape.width}",
        f"data {recipe.data.train}",
    ]
    if metrics:
        last = metrics[-1]
        parts.append(f"step {last['step']:,} of {recipe.train.steps:,}")
        parts.append("loss not a number" if last["loss"] is None else f"loss {last['loss']:.4f}")
    return escape(" · ".join(parts))


def _section(title: str, seen: Sequence[Look]) -> str:
    figures = "".join(
        f"<figure><h3>{escape(look.title)}</h3>{figure.svg(look.figure, look.title)}"
        f"<figcaption>{escape(look.says)}</figcaption></figure>"
        for look in seen
    )
    return f'<section><h2>{title}</h2><div class="grid">{figures}</div></section>' if figures else ""
