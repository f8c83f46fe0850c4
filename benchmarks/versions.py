"""Version 1 against version 2 at equal compute: probe accuracy by operations and by time.

    python benchmarks/versions.py OUT --vision TRAIN VALID --speech TRAIN VALID [--seeds 1 2 3] [--tera 8] [--jobs 2]

TRAIN and VALID are labelled folders, as for `data2vec probe`; training ignores the labels. For each kind of data, version and
seed, the tiny recipe is trained for an equal number of operations (--tera x 10^12, --speech-tera for speech), probed along
the way. PyTorch counts the operations in real steps of the run's own batches, forward and backward; time is the CPU time of
training, one thread per run. Writes OUT/versions.json and OUT/versions.png and prints a table. Runs that exist already are not
repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

VERSIONS = ("v1", "v2")
COLOURS = {"v1": "#00798c", "v2": "#d1495b"}


def operations(name: str, data: str, steps: int = 4) -> float:
    """Floating-point operations of a mean step, counted by PyTorch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from data2vec.data.loader import Loader
    from data2vec.recipe.loading import load_recipe

    recipe = load_recipe(name, {"data.train": data, "data.workers": 0})
    modality, method = recipe.build_modality(), recipe.objective
    loader = Loader(modality, method.mask, modality.rows(data), recipe.train.seed, masks=method.masks_per_sample)
    objective = recipe.build_objective().train()
    batches, total = loader.steps(), 0
    torch.manual_seed(0)
    for _ in range(steps):
        for batch in next(batches):
            with FlopCounterMode(display=False) as counter:
                objective(batch).loss.backward()
            total += counter.get_total_flops()
    return total / steps


def run(out: Path, name: str, train: str, valid: str, seed: int, budget: float, points: int) -> list[dict[str, Any]]:
    """Train once and probe at `points` steps along the run. In a process of its own (see `main`)."""
    import torch
    from safetensors.torch import load_model

    from data2vec.model import Model
    from data2vec.recipe.loading import load_recipe
    from data2vec.tasks.probing.probe import probe
    from data2vec.train.pretrain import pretrain

    torch.set_num_threads(1)
    each = operations(name, train)
    every = max(1, round(budget / each / points))
    folder = out / f"{name.replace('/', '-')}-{seed}"
    settings: dict[str, Any] = {
        "train.steps": every * points, "train.seed": seed, "train.checkpoint_every": every, "train.keep_checkpoints": points,
        "log.every": every, "train.device": "cpu", "data.workers": 0,
    }  # fmt: skip
    begin = time.process_time()
    pretrain(name, train, settings, out=folder)
    seconds = (time.process_time() - begin) / (every * points)
    recipe = load_recipe(folder / "recipe.yaml")
    modality = recipe.build_modality()
    rows = []
    for step in range(every, every * points + 1, every):
        objective = recipe.build_objective()
        load_model(objective, folder / "checkpoints" / f"step-{step}" / "objective.safetensors")
        model = Model(objective.student.eval().requires_grad_(False), modality, recipe)
        found = probe(model, train, valid)
        rows.append(
            {"recipe": name, "seed": seed, "step": step, "operations": each * step, "seconds": seconds * step,
             "linear": found.best("linear").linear, "knn": found.best("knn").knn,
             "untrained": found.best("untrained_linear").untrained_linear}
        )  # fmt: skip
    return rows


def picture(rows: list[dict[str, Any]], out: Path) -> None:
    """Mean and range over the seeds."""
    from matplotlib.figure import Figure

    kinds = sorted({row["recipe"].split("/")[0] for row in rows}, reverse=True)
    figure = Figure((10, 4 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for kind, line in zip(kinds, grid, strict=True):
        for axes, (key, unit, label) in zip(
            line, (("operations", 1e12, "10¹² operations"), ("seconds", 60, "minutes of one core")), strict=True
        ):
            for version in VERSIONS:
                mine = [row for row in rows if row["recipe"] == f"{kind}/{version}-tiny"]
                steps = sorted({row["step"] for row in mine})
                values = [[row for row in mine if row["step"] == step] for step in steps]
                start = statistics.mean(row["untrained"] for row in mine)
                x = [0.0] + [statistics.mean(row[key] for row in each) / unit for each in values]
                y = [start] + [statistics.mean(row["linear"] for row in each) for each in values]
                low = [start] + [min(row["linear"] for row in each) for each in values]
                high = [start] + [max(row["linear"] for row in each) for each in values]
                axes.plot(x, y, "o-", color=COLOURS[version], label=f"{kind}/{version}-tiny")
                axes.fill_between(x, low, high, color=COLOURS[version], alpha=0.2, linewidth=0)
            axes.set(xlabel=label, ylabel="linear probe, held-out accuracy", title=kind)
            axes.grid(alpha=0.3)
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "versions.png", dpi=110)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds."""
    lines = ["| recipe | steps | 10¹² operations | seconds of one core | linear | kNN | untrained, linear |", "|---" * 7 + "|"]
    for name, step in sorted({(row["recipe"], row["step"]) for row in rows}):
        mine = [row for row in rows if (row["recipe"], row["step"]) == (name, step)]

        def spread(key: str, mine: list[dict[str, Any]] = mine) -> str:
            values = [100 * row[key] for row in mine]
            return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0:.1f} %"

        seconds = statistics.mean(row["seconds"] for row in mine)
        lines.append(
            f"| `{name}` | {step} | {mine[0]['operations'] / 1e12:.2f} | {seconds:.0f} | {spread('linear')} | {spread('knn')} "
            f"| {spread('untrained')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, a process per run, and print and plot the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vision", nargs=2, metavar=("TRAIN", "VALID"))
    parser.add_argument("--speech", nargs=2, metavar=("TRAIN", "VALID"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tera", type=float, default=8.0, help="10^12 operations per run on images")
    parser.add_argument("--speech-tera", type=float, default=1.2, help="10^12 operations per run on speech")
    parser.add_argument("--points", type=int, default=4, help="probes along a run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="concurrent runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        job = json.loads(given.one)
        rows = run(given.out, **job)
        (given.out / f"{job['name'].replace('/', '-')}-{job['seed']}.json").write_text(json.dumps(rows, indent=1))
        return
    jobs = [
        {"name": f"{kind}/{version}-tiny", "train": place[0], "valid": place[1], "seed": seed, "budget": tera * 1e12,
         "points": given.points}
        for seed in given.seeds
        for kind, place, tera in (("vision", given.vision, given.tera), ("speech", given.speech, given.speech_tera))
        if place
        for version in VERSIONS
    ]  # fmt: skip

    def start(job: dict[str, Any]) -> list[dict[str, Any]]:
        done = given.out / f"{job['name'].replace('/', '-')}-{job['seed']}.json"
        if not done.exists():
            command = [sys.executable, __file__, str(given.out), "--one", json.dumps(job)]
            with done.with_suffix(".log").open("w") as log:
                subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        return json.loads(done.read_text())

    with ThreadPoolExecutor(given.jobs) as pool:
        rows = [row for each in pool.map(start, jobs) for row in each]
    (given.out / "versions.json").write_text(json.dumps(rows, indent=1))
    picture(rows, given.out)
    print(table(rows))


if __name__ == "__main__":
    main()
