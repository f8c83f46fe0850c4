"""What pre-training is worth by the number of labels: fine-tuning from a model, and from scratch.

    python benchmarks/labels.py OUT RECIPE MODEL --train TRAIN --valid VALID [--shares 1 0.1] [--seeds 1 2 3] [--jobs 2]
                                [key=value …]

TRAIN and VALID are labelled data, as for `data2vec finetune`: a folder with metadata.csv, class folders, or a tsv file. The
labelled subset is drawn with the seed, of class folders equally from every class, and is the same for both. Settings after
`scratch:` apply to training from scratch only, such as a learning rate. Prints a table, mean and standard deviation over the
seeds, and writes OUT/labels.json; runs that exist already are not repeated.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.tasks.metrics import LOWER_IS_BETTER
from data2vec.train.sweeps.sweep import best_score


def part(train: Path, share: float, seed: int, out: Path) -> Path:
    """A subset of the labelled data as a data set of its own; files are links."""
    if share == 1:
        return train
    place, chance = out / "data" / f"{share:g}-{seed}", Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    if train.is_file():
        head, *lines = train.read_text(encoding="utf-8").splitlines()
        kept = chance.sample(lines, round(share * len(lines)))
        (place / train.name).write_text("\n".join([head, *kept, ""]), encoding="utf-8")
        return place / train.name
    if (table := train / "metadata.csv").is_file():
        with table.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file))
        rows = chance.sample(rows, round(share * len(rows)))
        with (place / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])
        names = [(train / row[head.index("file_name")], row[head.index("file_name")]) for row in rows]
    else:
        names = []
        for folder in sorted(path for path in train.iterdir() if path.is_dir()):
            files = sorted(folder.iterdir())
            names += [(file, f"{folder.name}/{file.name}") for file in chance.sample(files, max(1, round(share * len(files))))]
    for file, name in names:
        (place / name).parent.mkdir(exist_ok=True)
        if not (place / name).exists():
            (place / name).symlink_to(file.resolve())
    return place


def run(job: tuple[Any, float, int, list[str]], arguments: argparse.Namespace) -> float:
    """One fine-tuning in a process of its own; its best validation."""
    name, share, seed, words = job
    folder = arguments.out / f"{name}-{share:g}-{seed}"
    data = part(arguments.train, share, seed, arguments.out)
    model = ["--model", str(arguments.model), *(["--scratch"] if name == "scratch" else [])]
    begun = ["--resume"] if (folder / "recipe.yaml").exists() else []
    words = [f"data.train={data}", f"data.valid={arguments.valid}", f"train.seed={seed}", "log.report=false", *words]
    command = [sys.executable, "-m", "data2vec", "finetune", arguments.recipe, *model, "--out", str(folder), *begun, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    value = best_score(Run(folder), load_recipe(folder / "recipe.yaml").objective.metric)
    print(f"{name:12} {share:6.0%} of the labels, seed {seed}: {value:.4f}", flush=True)
    return value


def main() -> None:
    """Run all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("model", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    settings = next((i for i, word in enumerate(sys.argv) if "=" in word or word == "scratch:"), len(sys.argv))
    arguments, words = parser.parse_args(sys.argv[1:settings]), sys.argv[settings:]
    apart = words.index("scratch:") if "scratch:" in words else len(words)
    given = {"pre-trained": words[:apart], "scratch": words[:apart] + words[apart + 1 :]}
    jobs = [(n, share, seed, given[n]) for share in arguments.shares for n in given for seed in arguments.seeds]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        values = list(pool.map(lambda job: run(job, arguments), jobs))
    metric = load_recipe(arguments.recipe, given["pre-trained"]).objective.metric
    print(f"\n{metric}, best of a run ({'less' if metric in LOWER_IS_BETTER else 'more'} is better); mean ± standard deviation")
    table = []
    for share in arguments.shares:
        row = {"share": share}
        for name in given:
            found = [value for job, value in zip(jobs, values, strict=True) if job[:2] == (name, share)]
            row[name] = found  # type: ignore[assignment]
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            print(f"{share:6.0%} of the labels, {name:12} {statistics.mean(found):.4f} ± {spread:.4f}")
        table.append(row)
    (arguments.out / "labels.json").write_text(json.dumps({"metric": metric, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
