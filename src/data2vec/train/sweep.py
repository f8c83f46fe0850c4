"""The same fine-tuning several times: over a grid of settings, and over seeds."""

import itertools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.tasks.metrics import LOWER_IS_BETTER
from data2vec.train.finetune import finetune


@dataclass(frozen=True)
class Cell:
    """One setting, over all seeds."""

    settings: dict[str, Any]
    """What it sets."""
    values: list[float]
    """The best validation of each seed."""

    @property
    def median(self) -> float:
        """Over the seeds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Sweep:
    """All of them."""

    metric: str
    """What is measured, on the validation data."""
    cells: list[Cell]

    @property
    def best(self) -> Cell:
        """The one with the best median."""
        return (min if self.metric in LOWER_IS_BETTER else max)(self.cells, key=lambda cell: cell.median)

    def __str__(self) -> str:
        rows = [f"{'median':>8} {'mean':>8} {'spread':>8}  {self.metric} of {len(self.cells[0].values)} seeds"]
        for cell in self.cells:
            named = " ".join(f"{key}={value}" for key, value in cell.settings.items()) or "as the recipe says"
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
) -> Sweep:
    """`data2vec.finetune` with every combination of the values in `grid`, such as {"train.lr": [1e-5, 2e-5]}, each with seeds
    1 to `seeds`; each run in a folder of its own below `out`, which also gets sweep.json.

    What is there already is not done again, and a run that was stopped goes on, so the same call finishes a sweep. Raises
    UserError as `finetune` does, and when there is no validation data to compare by."""
    place = Path(out) if out is not None else Path("runs") / f"{str(recipe).replace('/', '-')}-sweep"
    overrides, grid = list(overrides), grid or {}
    loaded = load_recipe(recipe, overrides)
    if loaded.data.valid is None:
        raise UserError("data.valid: a sweep compares by validation; where is the held-out data? data.valid=FOLDER")
    metric = loaded.objective.metric
    cells = []
    for values in itertools.product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        folder = place / ("-".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()) or "recipe")
        runs = []
        for seed in range(1, seeds + 1):
            words = [*overrides, *(f"{key}={value}" for key, value in settings.items()), f"train.seed={seed}"]
            begun = (folder / f"seed-{seed}" / "recipe.yaml").is_file()
            runs.append(finetune(recipe, model, overrides=words, out=folder / f"seed-{seed}", resume=begun))
        cells.append(Cell(settings, [best(run, metric) for run in runs]))
    found = Sweep(metric, cells)
    with atomic_write(place / "sweep.json") as tmp:
        tmp.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    return found


def best(run: Run, metric: str) -> float:
    """The best validation of a run."""
    values = [line[f"valid_{metric}"] for line in run.metrics if f"valid_{metric}" in line]
    return (min if metric in LOWER_IS_BETTER else max)(values)
