"""Sweeps: fine-tuning over a grid of settings and over seeds."""

import itertools
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data2vec.atomic_io import write_json
from data2vec.console.progress import labelled
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.modalities.custom_classes import CustomClass
from data2vec.recipe.loading import load_recipe
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
        """Standard deviation over the seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep; `str()` of it is a table."""

    metric: str
    """The score that is compared, on the validation data."""
    cells: list[Cell]

    @property
    def best(self) -> Cell:
        """The combination with the best median."""
        return (min if self.metric in LOWER_IS_BETTER else max)(self.cells, key=lambda cell: cell.median)

    def __str__(self) -> str:
        rows = [f"{'median':>8} {'mean':>8} {'spread':>8}  {self.metric} of {len(self.cells[0].values)} seeds"]
        for cell in self.cells:
            named = " ".join(f"{key}={value}" for key, value in cell.settings.items()) or "recipe as is"
            mark = "  <- best" if cell is self.best and len(self.cells) > 1 else ""
            rows.append(f"{cell.median:8.4f} {statistics.mean(cell.values):8.4f} {cell.spread:8.4f}  {named}{mark}")
        return "\n".join(rows)


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
    seeds 1 to `seeds`. Each run has its own folder in `out`, which also gets sweep.json. `modality`: see `data2vec.pretrain`.

    Finished runs are skipped and interrupted runs resumed, so the same call completes a sweep. Raises UserError as `finetune`
    does, and when there is no validation data to compare by."""
    sweep_folder = Path(out) if out is not None else Path(f"{default_run_dir(recipe)}-sweep")
    overrides, grid = list(overrides), grid or {}
    loaded = load_recipe(recipe, overrides, modality=modality)
    if loaded.data.valid is None:
        raise UserError("data.valid: a sweep needs validation data; give it with data.valid=FOLDER")
    metric = loaded.objective.metric
    is_main = os.environ.get("RANK", "0") == "0"
    process = Process(torch.device("cpu"))
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
        return result


def best_score(run: Run, metric: str) -> float:
    """The best validation score of a run."""
    values = [value for line in run.metrics if (value := line.get(f"valid_{metric}")) is not None]
    return (min if metric in LOWER_IS_BETTER else max)(values, default=math.nan)
