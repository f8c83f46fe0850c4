"""RUN/report.html: one self-contained page with the health verdict, curves and figures of a run.

It is built from the run folder and the training data, at any time; missing parts are named on the page.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from data2vec.atomic_io import write_text
from data2vec.errors import UserError
from data2vec.health.verdict import State
from data2vec.local_path import local_path
from data2vec.modalities.custom_classes import CustomClass, trust_class
from data2vec.recipe.joint import JointRecipe, with_keys_of_part
from data2vec.recipe.recipe import Recipe
from data2vec.report.curves import PANELS, has_values, plot_curves
from data2vec.report.figures import ReportFigure, collect_figures
from data2vec.report.style import as_text, to_svg
from data2vec.report.validation import validation_sections
from data2vec.run_dir import DamagedFile, Run, load_run_recipe, part_run, read_small_file, runs_below, write_part_runs
from data2vec.settings import JsonMapping
from data2vec.tasks.finetuning.verdict import judge_run
from data2vec.tasks.validation import describe_validation

MAX_FILES = 200
"""Unreadable files listed on the page."""
STATES: dict[State, tuple[str, str, str, str]] = {
    "healthy": ("healthy", "✓", "Healthy", "No problems detected."),
    "too early to tell": ("unknown", "?", "Too early to tell", "No problems detected, but they would not show yet:"),
    "watch": ("watch", "!", "Watch", "Possible problems:"),
    "collapsed": ("collapsed", "✗", "Collapsed", "Training has failed:"),
}
"""The style, mark, words and first line of each verdict."""


def build_report(run: str | Path, modality: CustomClass | None = None) -> Path:
    """Write `report.html` of a run, finished or not, replacing an earlier one; returns its path. `modality`: see
    `data2vec.load`.

    Raises UserError if `run` is not a run folder, or its recipe is not valid in this version."""
    if modality is not None:
        trust_class(modality, "modality")
    run_dir = Run(local_path(run))
    if not run_dir.recipe.is_file():
        raise UserError(f"{run} is not a run folder (it has no recipe.yaml){runs_below(run_dir.folder)}")
    recipe = load_run_recipe(run_dir.folder)
    if isinstance(recipe, JointRecipe):
        return _build_joint_report(run_dir, recipe)
    metrics, starts = run_dir.metrics, run_dir.starts
    figures, missing_figures = collect_figures(run_dir.folder, recipe)
    validated, missing_inputs = validation_sections(run_dir.folder, recipe)
    missing = "; ".join(filter(None, (missing_figures, missing_inputs)))
    validation = describe_validation(metrics, recipe)
    sections = [
        f'<p class="score"><strong>{as_text(validation)}</strong></p>' if validation else "",
        _verdict(metrics, recipe, starts),
        f"<p>Missing: {as_text(missing)}.</p>" if missing else "",
        _figure_section("Curves", _curve_figures(metrics)),
        *validated,
        _figure_section("Examples", figures),
        _bad_files(run_dir.folder / "corrupt_files.txt"),
        _machine_section(starts),
        _recipe_section(run_dir),
    ]
    text = render_page(as_text(run_dir.folder.resolve().name), _subtitle(recipe, metrics), sections)
    write_text(run_dir.report, text)
    return run_dir.report


def _build_joint_report(run: Run, recipe: JointRecipe) -> Path:
    """Write the page of a joint run, with verdict and curves of each part, and the pages of the parts."""
    write_part_runs(run, recipe)
    sections, starts = [], run.starts
    if (reason := (starts[-1] if starts else {}).get("exit_reason", "finished")) != "finished":
        sections.append(f"<p>The run stopped: {as_text(reason)}</p>")
    for name, part in recipe.parts.items():
        own, shown = part_run(run, name), as_text(name)
        metrics, page = own.metrics, build_report(own.folder).relative_to(run.folder)
        count = f"{recipe.shares[name]:.0%} of the steps; the page of this part has all figures: "
        sections += [
            f'<section><h2>{shown}</h2><p class="soft">{count}<a href="{page}">{page}</a></p></section>',
            _verdict(metrics, part, [], partial(with_keys_of_part, name)),
            _figure_section(f"Curves of {shown}", _curve_figures(metrics)),
        ]
    sections += [_bad_files(run.folder / "corrupt_files.txt"), _machine_section(starts), _recipe_section(run)]
    lines = run.metrics
    last = lines[-1]["step"] if lines else 0
    what = f"joint pre-training of {', '.join(recipe.parts)} · step {last:,} of {recipe.train.steps:,}"
    write_text(run.report, render_page(as_text(run.folder.resolve().name), as_text(what), sections))
    return run.report


def _recipe_section(run: Run) -> str:
    return (
        "<section><h2>Recipe</h2><details><summary>The complete recipe: running it again repeats the run</summary>"
        f"<pre>{escape(read_small_file(run.recipe) or '')}</pre></details></section>"
    )


def render_page(name: str, subtitle: str, sections: Sequence[str]) -> str:
    """A self-contained page: its HTML, with empty sections left out. All arguments are HTML."""
    template = Template((resources.files("data2vec.report") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(name=name, subtitle=subtitle, sections="\n".join(filter(None, sections)))


def build_report_at_end(run: Path, recipe: Recipe) -> None:
    """Build the report when a run ends, if the recipe asks for it. A failure is one line on stderr; the run succeeds."""
    if not recipe.log.report:
        return
    try:
        build_report(run)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        retry = f"nothing else is missing; retry with 'data2vec report {run}'"
        print(f"data2vec: report.html could not be built ({reason}); {retry}", file=sys.stderr)


def _verdict(
    metrics: Sequence[JsonMapping],
    recipe: Recipe,
    starts: Sequence[JsonMapping],
    reword: Callable[[str], str] = str,
) -> str:
    if not metrics:
        return '<section class="verdict unknown"><strong>– Unknown</strong><p>No step logged yet.</p></section>'
    verdict, last = judge_run(metrics, recipe).reworded(reword), starts[-1] if starts else {}
    # The step that ended the run may not be in the metrics: a NaN loss is not logged.
    state: State = "collapsed" if last.get("unhealthy") else verdict.state
    findings = "".join(
        f"<li><b>{as_text(finding.symptom)}</b><br>Likely cause: {as_text(finding.cause)}"
        f"<br>Suggestion: {as_text(finding.suggestion)}</li>"
        for finding in verdict.findings
    )
    style, mark, word, summary = STATES[state]
    details = f"<ul>{findings}</ul>" if findings else f"<p>{as_text(verdict.note)}</p>"
    parts = [f"<strong>{mark} {word}</strong><p>{summary}</p>", details]
    if last.get("exit_reason", "finished") != "finished":
        parts.append(f"<p>The run stopped: {as_text(last['exit_reason'])}</p>")
    return f'<section class="verdict {style}">{"".join(parts)}</section>'


def _curve_figures(metrics: Sequence[JsonMapping]) -> list[ReportFigure]:
    panels = [panel for panel in PANELS if has_values(metrics, panel)]
    return [ReportFigure(plot_curves(metrics, [panel]), panel.title, panel.caption) for panel in panels]


def _bad_files(path: Path) -> str:
    try:
        names = (read_small_file(path) or "").splitlines()
    except DamagedFile as error:
        return f"<section><h2>Unreadable files</h2><p>Unknown: {path.name} {as_text(str(error))}.</p></section>"
    if not names:
        return ""
    lines = "".join(f"<li>{as_text(name)}</li>" for name in names[:MAX_FILES])
    more = f"<p>{len(names) - MAX_FILES} more, in corrupt_files.txt.</p>" if len(names) > MAX_FILES else ""
    head = f"{len(names)} files could not be read and were skipped"
    return (
        f"<section><h2>Unreadable files</h2><details open><summary>{head}</summary><ul>{lines}</ul>{more}</details></section>"
    )


def _machine_section(starts: Sequence[JsonMapping]) -> str:
    if not starts:
        return ""
    parts = []
    for i, start in enumerate(reversed(starts)):
        shown = dict(start) | {"ended": start.get("ended", "running, or killed")}
        rows = "".join(f"<dt>{as_text(key)}</dt><dd>{as_text(str(value))}</dd>" for key, value in shown.items())
        head = f"Start {len(starts) - i} of {len(starts)}, at step {as_text(start.get('step'))}"
        parts.append(f"<details{' open' if i == 0 else ''}><summary>{head}</summary><dl>{rows}</dl></details>")
    return f"<section><h2>Machine</h2>{''.join(parts)}</section>"


def _subtitle(recipe: Recipe, metrics: Sequence[JsonMapping]) -> str:
    shape, name = recipe.encoder, getattr(recipe.modality, "name", "")
    parts = [
        f"{recipe.objective.name} on {name}: {shape.layers} blocks of width {shape.width}",
        f"data {recipe.data.train}",
    ]
    if metrics:
        last = metrics[-1]
        parts.append(f"step {last['step']:,} of {recipe.train.steps:,}")
        if "loss" in last:
            parts.append("loss is NaN or inf" if last["loss"] is None else f"loss {last['loss']:.4f}")
    return as_text(" · ".join(parts))


def _figure_section(title: str, figures: Sequence[ReportFigure]) -> str:
    elements = "".join(
        f"<figure><h3>{as_text(entry.title)}</h3>{to_svg(entry.figure, entry.title)}"
        f"<figcaption>{as_text(entry.caption)}</figcaption></figure>"
        for entry in figures
    )
    return f'<section><h2>{title}</h2><div class="grid">{elements}</div></section>' if elements else ""
