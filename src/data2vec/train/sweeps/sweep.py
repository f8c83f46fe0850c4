"""Sweeps: fine-tuning over a grid of settings and over seeds."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec.atomic_io import write_json, write_text
from data2vec.console.progress import labelled
from data2vec.distributed import Process, is_rank_zero
from data2vec.errors import UserError
from data2vec.modalities.custom_classes import CustomClass
from data2vec.recipe.loading import load_recipe
from data2vec.report.page import render_page
from data2vec.report.style import as_text
from data2vec.run_dir import Run, default_run_dir, exclusive_lock
from data2vec.settings import JsonDict
from data2vec.tasks.metrics import LOWER_IS_BETTER
from data2vec.train.finetune import finetune


@dataclass(frozen=True)
class Cell:
    """One combination of settings, over all seeds."""

    settings: JsonDict
    """The settings of this combination."""
    values: list[float]
    """The best validation score of each seed."""

    @property
    def median(self) -> float:
        """Median over the seeds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; NaN if one of them has no score."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else 0.0

    @property
    def name(self) -> str:
        """The settings, as words of a command."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or "recipe as is"


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep; `str()` of it is a table."""

    metric: str
    """The score that is compared, on the validation data."""
    cells: list[Cell]

    @property
    def best(self) -> Cell:
        """The combination with the best median; one without any score is never it."""
        worst = math.inf if self.metric in LOWER_IS_BETTER else -math.inf
        pick = min if self.metric in LOWER_IS_BETTER else max
        return pick(self.cells, key=lambda cell: worst if math.isnan(cell.median) else cell.median)

    def __str__(self) -> str:
        rows = [f"{'median':>8} {'mean':>8} {'spread':>8}  {self.metric} of {len(self.cells[0].values)} seeds"]
        for cell in self.cells:
            mark = "  <- best" if cell is self.best and len(self.cells) > 1 else ""
            rows.append(f"{cell.median:8.4f} {statistics.mean(cell.values):8.4f} {cell.spread:8.4f}  {cell.name}{mark}")
        return "\n".join(rows)

    def to_html(self) -> str:
        """A table with a line for each combination, the best one marked, and the score of every seed."""
        seeds = [f"seed {number}" for number in range(1, len(self.cells[0].values) + 1)]
        top = "".join(f"<th>{cell}</th>" for cell in ("settings", "median", "mean", "spread", *seeds))
        rows = ""
        for cell in self.cells:
            best = cell is self.best and len(self.cells) > 1
            values = [cell.median, statistics.mean(cell.values), cell.spread, *cell.values]
            numbers = "".join(f"<td>{value:.4f}</td>" for value in values)
            mark = ' class="best"' if best else ""
            rows += f"<tr{mark}><td>{as_text(cell.name)}{' (best)' if best else ''}</td>{numbers}</tr>"
        note = f"Best validation {as_text(self.metric)} of each run; the best combination has the best median."
        table = f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        return f'<section><h2>Sweep</h2><p class="soft">{note}</p><div class="scroll">{table}</div></section>'


def sweep(
    recipe: str | Path,
    model: str | Path | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 1,
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    modality: CustomClass | None = None,
) -> Sweep:
    """Run `data2vec.finetune` with every combination of the values in `grid`, such as {"train.lr": [1e-5, 2e-5]}, and with
    seeds 1 to `seeds`. Each run has its own folder in `out`, which also gets sweep.json and a table, sweep.html. `modality`:
    see `data2vec.pretrain`.

    Finished runs are skipped and interrupted runs resumed, so the same call completes a sweep. Raises UserError as `finetune`
    does, and when there is no validation data to compare by."""
    sweep_folder = Path(out) if out is not None else Path(f"{default_run_dir(recipe)}-sweep")
    overrides, grid = list(overrides), grid or {}
    loaded = load_recipe(recipe, overrides, modality=modality)
    if loaded.data.valid is None:
        raise UserError("data.valid: a sweep needs validation data; give it with data.valid=FOLDER")
    metric = loaded.objective.metric
    is_main, process = is_rank_zero(), Process(torch.device("cpu"))
    with exclusive_lock(sweep_folder, process, "another sweep runs") if is_main else nullcontext():
        cells = []
        for values in itertools.product(*grid.values()):
            settings = dict(zip(grid, values, strict=True))
            folder = sweep_folder / (
                "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()) or "recipe"
            )
            runs = []
            for seed in range(1, seeds + 1):
                words = [*overrides, *(f"{key}={value}" for key, value in settings.items()), f"train.seed={seed}"]
                label = ", ".join([*(f"{key}={value}" for key, value in settings.items()), f"seed {seed}"])
                exists = (folder / f"seed-{seed}" / "recipe.yaml").is_file()
                with labelled(label):
                    place = folder / f"seed-{seed}"
                    runs.append(finetune(recipe, model, overrides=words, out=place, resume=exists, modality=modality))
            cells.append(Cell(settings, [best_score(run, metric) for run in runs]))
        result = Sweep(metric, cells)
        if is_main:
            write_json(sweep_folder / "sweep.json", asdict(result))
            subtitle = as_text(f"{recipe} · {len(cells)} combinations of settings × {seeds} seeds")
            page = render_page(as_text(sweep_folder.resolve().name), subtitle, [result.to_html()])
            write_text(sweep_folder / "sweep.html", page)
        return result


def best_score(run: Run, metric: str) -> float:
    """The best validation score of a run."""
    values = [value for line in run.metrics if (value := line.get(f"valid_{metric}")) is not None]
    return (min if metric in LOWER_IS_BETTER else max)(values, default=math.nan)
