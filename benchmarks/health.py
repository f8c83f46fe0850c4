"""Does the health verdict name the fault of a run, and is it silent about healthy runs?

    python benchmarks/health.py runs/health
    python benchmarks/health.py runs/health --speech fsdd/train --vision cifar10/train --seeds 21 22 23

Short tiny recipes of both versions, on embedded data unless folders are given: healthy runs with several seeds, and runs with
one fault each: lr x100, a teacher equal to the student (decay 0), no target norm, a frozen local encoder. The verdict is taken
at every logged step; what counts is the worst one, and the step at which the fault was first named. `text/v2-tiny` learns
position, so it has no healthy runs: it is a fault of its own, which should be named from step 100 on.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import data2vec
from data2vec.demo.datasets import write_images, write_speech, write_text
from data2vec.errors import RunStopped
from data2vec.health.verdict import verdict
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.run_dir import Run
from data2vec.train import pretrain

STEPS = {
    **{"speech/v1-tiny": 120, "speech/v2-tiny": 120},
    **{"vision/v1-tiny": 100, "vision/v2-tiny": 50},
    **{"text/v1-tiny": 50, "text/v2-tiny": 100},
}
OFTEN = ("speech/v2-tiny", "vision/v2-tiny")
"""Healthy runs of these use all seeds, those of the others three."""
FAULTS: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "lr x100": lambda recipe: {"train.lr": 100 * recipe.train.lr},
    "decay 0": lambda recipe: {"objective.teacher.decay": 0.0, "objective.teacher.anneal_steps": 30000},
    "no target norm": lambda recipe: {"objective.target.per_layer_norms": [], "objective.target.final_norms": []},
    "frozen local encoder": lambda recipe: {"modality.conv_grad_scale": 0.0} if "speech" in recipe.modality.name else {},
}
LEARNS_POSITION = ("text/v2-tiny",)
"""Runs of these without another fault should be said to learn position."""
NAMED = {
    "learns position": "learns position",
    **{"lr x100": "train.lr", "decay 0": "objective.teacher.decay", "no target norm": "objective.target.per_layer_norms"},
    "frozen local encoder": "local encoder does not learn",
}


def train(place: Path, name: str, data: str, seed: int, fault: str) -> None:
    """One run in `place`; it may stop by itself."""
    common = {"train.steps": STEPS[name], "train.seed": seed, "train.device": "cpu", "log.every": 10, "data.workers": 0}
    overrides = common | (FAULTS[fault](load_recipe(name)) if fault in FAULTS else {})
    if fault == "frozen local encoder" and "modality.conv_grad_scale" not in overrides:  # it has no such setting

        def build_frozen(*arguments: Any) -> Encoder:
            encoder = build_encoder(*arguments)
            encoder.local_encoder.requires_grad_(False)
            return encoder

        pretrain.build_encoder = build_frozen
    try:
        data2vec.pretrain(name, data=data, overrides=overrides, out=place)
    except RunStopped as stopped:
        print(stopped)


def judge(place: Path, fault: str) -> tuple[str, int | None]:
    """The worst verdict along a run, and the step at which `fault` was first named."""
    run, worst, named = Run(place), "healthy", None
    recipe = load_recipe(run.recipe).flat()
    for i, line in enumerate(run.metrics):
        found = verdict(run.metrics[: i + 1], recipe)
        worst = max(worst, found.state, key=("healthy", "watch", "collapsed").index)
        if fault and named is None and any(NAMED[fault] in f"{each.symptom} {each.cause}" for each in found.findings):
            named = line["step"]
    return worst, named


def start(out: Path, job: dict[str, Any]) -> tuple[str, int | None]:
    """Train in a process of its own, unless the run exists, and judge it."""
    place = out / "-".join([job["name"].replace("/", "-"), job["fault"].replace(" ", "-") or "healthy", str(job["seed"])])
    done = place.with_suffix(".log")
    if not done.exists():
        command = [sys.executable, __file__, str(place), "--one", json.dumps(job)]
        with done.with_suffix(".part").open("w") as log:
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        done.with_suffix(".part").rename(done)
    return judge(place, job["fault"])


def main() -> None:
    """Run what is missing, judge all runs, and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for kind in ("speech", "vision", "text"):
        parser.add_argument(f"--{kind}", metavar="TRAIN", help=f"a folder of {kind} to train on (default: embedded data)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(2, 12)), help="seeds of the healthy runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="concurrent runs")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        train(given.out, **json.loads(given.one))
        return
    make = {"speech": write_speech, "vision": write_images, "text": write_text}
    data: dict[str, str] = {}
    for kind, write in make.items():
        place = given.out / "data" / kind
        data[kind] = getattr(given, kind) or str(place / "train" if place.exists() else write(place).train)
    plain = {name: "learns position" if name in LEARNS_POSITION else "" for name in STEPS}
    runs = [(name, seed, plain[name]) for name in STEPS for seed in given.seeds[: None if name in OFTEN else 3]]
    runs += [(name, given.seeds[0], fault) for name in STEPS for fault in FAULTS]
    jobs = [{"name": name, "data": data[name.split("/")[0]], "seed": seed, "fault": fault} for name, seed, fault in runs]
    with ThreadPoolExecutor(given.jobs) as pool:
        judged = list(pool.map(lambda job: start(given.out, job), jobs))
    print(f"| recipe | steps | {' | '.join(FAULTS)} | learns position | healthy runs called watch | called collapsed |")
    print("|---" * (5 + len(FAULTS)) + "|")
    for name, steps in STEPS.items():
        found = [(job["fault"], *result) for job, result in zip(jobs, judged, strict=True) if job["name"] == name]
        cells = [f"{state}, step {step}" if step else state for fault in FAULTS for what, state, step in found if what == fault]
        steps_named = [step for fault, _, step in found if fault == "learns position"]
        cells.append(f"named in {len([*filter(None, steps_named)])} of {len(steps_named)}" if steps_named else "")
        states = [state for fault, state, _ in found if not fault]
        cells += [f"{states.count(state)} of {len(states)}" for state in ("watch", "collapsed")]
        print(f"| `{name}` | {steps} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
