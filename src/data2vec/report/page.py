"""RUN/report.html: how a run went, on one page that needs nothing but a browser.

It is made of the run folder alone, so it can be made again at any time; what is not there is left out, and named.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from math import ceil
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch

from data2vec import objective as objectives
from data2vec import recipe as recipes
from data2vec.errors import UserError
from data2vec.nn import encoder as encoders
from data2vec.nn.encoder import Encoder
from data2vec.objective import Objective
from data2vec.objective.verdict import verdict
from data2vec.recipe import Recipe
from data2vec.report import curves, figure, inside, pictures
from data2vec.report.inside import Sample
from data2vec.train import checkpoint, machine
from data2vec.train.folder import Run, flat

MASKS = 8
"""At least so many masks of each example are tried for the loss at each position."""
FILES = 200
"""Bad files that the page names."""
STATES = {
    "healthy": ("✓", "Healthy", "Nothing in the measurements speaks against going on."),
    "watch": ("!", "Watch", "Something is not as it should be:"),
    "collapsed": ("✗", "Collapsed", "The representations carry nothing any more:"),
}


def build(run: str | Path) -> Path:
    """Write `report.html` of a run, finished or not, in place of an earlier one; returns its path.

    Raises UserError when `run` is no run folder or its recipe is not one of this version."""
    here = Run(Path(run).expanduser())
    if not here.recipe.is_file():
        raise UserError(f"{run} is not a run folder (it has no recipe.yaml)")
    recipe = recipes.load(here.recipe)
    metrics, starts = here.metrics, machine.starts(here.folder)
    looks, missing = _looks(here, recipe)
    sections = [
        _verdict(metrics, recipe, starts),
        _missing(missing),
        _curves(metrics),
        *looks,
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
    aside = here.folder / ".report.html.part"
    aside.write_text(text, encoding="utf-8")
    aside.replace(here.report)
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


def _looks(run: Run, recipe: Recipe) -> tuple[list[str], list[str]]:
    """The sections with pictures of what the model is shown and makes of it; and why those that are missing are."""
    modality = recipe.build_modality()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)  # as training does: these are the weights it started from
        objective = objectives.build(encoders.build(modality, recipe.encoder), recipe.objective).eval().requires_grad_(False)
    untrained = copy.deepcopy(objective.student)
    try:
        sample = inside.sample(modality, str(recipe.data.train))
        times = ceil(MASKS / recipe.objective.masks)
        batches = list(sample.masked(recipe.objective.mask, recipe.objective.masks, times))
    except UserError as error:
        return [], [f"Pictures of inputs, features, attention and loss: the training data is not at hand ({error})."]
    n = len(sample.batch["input"])
    hidden = np.concatenate([batch["mask"].view(n, -1, batch["mask"].shape[1]).numpy() for batch in batches], axis=1)
    looks = [
        _section(
            "What the student does not see",
            _figure(
                pictures.masks(sample.canvas, hidden),
                "An example of the training data, and the same under some masks",
                f"Grey is hidden: {hidden.mean():.0%} of {hidden.shape[2]} positions. The teacher sees the whole input.",
            ),
        )
    ]
    newest = checkpoint.latest(run.folder)
    if newest is None:
        return looks, ["Pictures of features, attention and loss: there is no whole checkpoint yet."]
    checkpoint.weights(newest, objective)
    return [*looks, _loss(objective, batches, sample), _inside(untrained, objective.student, sample)], []


def _loss(objective: Objective, batches: Sequence[Any], sample: Sample) -> str:
    errors = inside.errors(objective, batches)
    shown = pictures.losses(sample.canvas, errors)
    return _section(
        "Loss, mask by mask",
        _figure(
            shown,
            "The loss at each hidden position, for some masks, and its mean",
            f"Bright: hard to predict. “mean” is over {errors.shape[1]} masks of {len(errors)} examples: a pattern there comes "
            "from where a position is, not from what it holds.",
        ),
    )


def _inside(untrained: Encoder, trained: Encoder, sample: Sample) -> str:
    layers = len(trained.transformer.blocks)
    blocks = sorted({0, layers // 2, layers - 1})
    before, after = (inside.features(encoder, sample.batch) for encoder in (untrained, trained))
    weights = inside.attention(trained, sample.batch, blocks)
    asked = "of the red position to all others" if len(sample.grid) == 2 else "of each position (row) to each (column)"
    return _section(
        "Features and attention",
        _figure(
            pictures.components(sample.canvas, before, after),
            "The first three principal components of the features as colours, untrained and trained",
            "Like colours, like features: the first three principal components as red, green and blue. Regions that belong "
            "together should share a colour after training; one colour everywhere is collapse.",
        ),
        _figure(
            pictures.attention(sample.canvas, weights, blocks, sample.grid),
            "Attention maps of the first, the middle and the last block",
            f"Attention {asked}, mean over {weights.shape[1]} heads. Bright: much. The same map for every input, or one "
            "position that takes it all, says that content plays no part.",
        ),
    )


def _verdict(metrics: Sequence[Mapping[str, Any]], recipe: Recipe, starts: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return '<section class="verdict unknown"><strong>– Unknown</strong><p>No step has been logged yet.</p></section>'
    found = verdict(metrics, dict(flat(recipe.model_dump(mode="json"))))
    mark, word, said = STATES[found.state]
    signs = "".join(
        f"<li><b>{escape(finding.sign)}</b><br>Likely cause: {escape(finding.cause)}<br>What to change: {escape(finding.mend)}"
        "</li>"
        for finding in found.findings
    )
    ended = starts[-1].get("because") if starts else None
    stopped = f"<p>The run stopped: {escape(ended)}</p>" if ended not in (None, "finished") else ""
    signs = f"<ul>{signs}</ul>" if signs else ""
    return f'<section class="verdict {found.state}"><strong>{mark} {word}</strong><p>{said}</p>{signs}{stopped}</section>'


def _missing(reasons: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    return f"<section><h2>Not on this page</h2><ul>{lines}</ul></section>" if lines else ""


def _curves(metrics: Sequence[Mapping[str, Any]]) -> str:
    panels = [panel for panel in curves.PANELS if curves.has(metrics, panel)]
    return _section(
        "Curves", *(_figure(curves.draw(metrics, [panel]), f"{panel.title} over the steps", panel.says) for panel in panels)
    )


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
        shown = {"ended": "not yet, or it was killed"} | dict(start)
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
        parts.append(f"loss {last['loss']:.4f}")
    return escape(" · ".join(parts))


def _section(title: str, *figures: str) -> str:
    return f'<section><h2>{title}</h2><div class="grid">{"".join(figures)}</div></section>' if figures else ""


def _figure(drawn: Any, meaning: str, says: str) -> str:
    return f"<figure>{figure.svg(drawn, meaning)}<figcaption>{escape(says)}</figcaption></figure>"
