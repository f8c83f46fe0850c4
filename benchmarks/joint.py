"""One Transformer for speech, pictures and text (joint/v2-tiny) against one for each, with the same number of steps.

    python benchmarks/joint.py OUT --data DATA [--steps 300] [--seeds 1 2 3]

Of every part three nets of one shape are probed: that of the joint run, in which the part has made STEPS steps; that of a
run of its own of STEPS steps, such that all parts together cost as much as the joint run; and that of a run of its own of as
many steps as the joint run has. DATA has audio/fsdd, speech, vision/cifar10 and text/corpus. What is there already in OUT is
not measured again; the table is printed at the end.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import data2vec
from data2vec.recipe.joint import JointRecipe
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.run_dir import Run
from data2vec.tasks.probing.token_readout import token_readout

ARMS = ("joint", "alone", "alone, compute of the joint run")
WARMUP = 1 / 30
"""The share of the steps of a run that its learning rate warms up."""


def evaluate(part: str, model: Path, data: Path) -> dict[str, float]:
    """The score of a part, and that of the untrained encoder: accuracy of a linear probe, or nats gained over unigrams."""
    if part == "text":
        # The same blocks for all seeds: the frequencies of tokens differ more between blocks than nets do.
        best = token_readout(model, data / "text/corpus/valid", max_tokens=20000, overrides={"train.seed": 0}).best
        return {"score": best.test, "untrained": max(best.untrained_test, 0.0)}
    where, most = (data / "audio/fsdd", 10000) if part == "speech" else (data / "vision/cifar10", 2000)
    found = data2vec.probe(model, where / "train", where / "test", overrides={"probe.max_examples": most})
    scores = {"score": found.best("linear").linear, "untrained": found.best("untrained_linear").untrained_linear}
    return scores | {"knn": found.best("knn").knn}


def measure(out: Path, recipe: Recipe, parts: tuple[str, ...], data: Path) -> dict[str, Any]:
    """Train by a recipe, unless it is done, and evaluate the model of each part."""
    result = out / "result.json"
    if not result.exists():
        run = data2vec.pretrain(recipe, out=out, resume=(out / "recipe.yaml").is_file())
        seconds = run.metrics[-1]["seconds"]
        models = {part: out / "parts" / part if len(parts) > 1 else out for part in parts}
        scores = {part: evaluate(part, model, data) for part, model in models.items()}
        losses = {part: Run(model).metrics[-1]["loss"] for part, model in models.items()}
        result.write_text(json.dumps({"seconds": seconds, "scores": scores, "losses": losses}), encoding="utf-8")
    return json.loads(result.read_text(encoding="utf-8"))


def table(out: Path, parts: tuple[str, ...], seeds: list[int]) -> str:
    """Mean ± standard error over the seeds that are measured, and the interference: joint minus alone, paired by seed."""
    lines = ["| | " + " | ".join(parts) + " |", "|---|" + "---|" * len(parts)]
    found: dict[tuple[str, str], dict[int, float]] = {}
    for arm in ARMS:
        for part in parts:
            names = {seed: f"{arm}-{seed}" if arm == "joint" else f"{arm}-{part}-{seed}" for seed in seeds}
            runs = {seed: out / name / "result.json" for seed, name in names.items()}
            results = {seed: json.loads(path.read_text())["scores"][part] for seed, path in runs.items() if path.exists()}
            found[arm, part] = {seed: scores["score"] for seed, scores in results.items()}
            if arm == "joint":
                found["untrained", part] = {seed: scores["untrained"] for seed, scores in results.items()}

    def shown(of_seeds: dict[int, float]) -> str:
        values = list(of_seeds.values())
        if not values:
            return "–"
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return f"{np.mean(values):.3f} ± {error:.3f} ({len(values)})"

    for arm in (*ARMS, "untrained"):
        lines.append(f"| {arm} | " + " | ".join(shown(found[arm, part]) for part in parts) + " |")
    for arm in ARMS[1:]:
        pairs = []
        for part in parts:
            joint, alone = found["joint", part], found[arm, part]
            pairs.append({seed: joint[seed] - alone[seed] for seed in joint.keys() & alone.keys()})
        lines.append(f"| joint less {arm} | " + " | ".join(map(shown, pairs)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="steps of each part")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    out, data, own = arguments.out, arguments.data, arguments.steps
    sources = {"speech": data / "speech", "vision": data / "vision/cifar10/train", "text": data / "text/corpus/train"}
    parts = tuple(sources)
    total = own * len(parts)
    quick = {"train.checkpoint_every": 300, "log.report": False, "modality.shares": {}}
    paths = {f"modality.parts.{part}.data.{key}": value for part in parts for key, value in
             {"train": str(sources[part]), "workers": 0}.items()}  # fmt: skip
    jobs: list[tuple[str, int]] = [(arm, seed) for group in (ARMS[:2], ARMS[2:]) for seed in arguments.seeds for arm in group]
    for arm, seed in jobs:
        steps = own if arm == "alone" else total
        schedule = {"train.steps": steps, "train.schedule.warmup_steps": round(WARMUP * steps), "train.seed": seed}
        recipe = load_recipe("joint/v2-tiny", quick | paths | schedule)
        assert isinstance(recipe, JointRecipe)
        if arm == "joint":
            measure(out / f"{arm}-{seed}", recipe, parts, data)
            continue
        for part in parts:
            measure(out / f"{arm}-{part}-{seed}", recipe.parts[part], (part,), data)
        print(table(out, parts, arguments.seeds), flush=True)
    print(table(out, parts, arguments.seeds))


if __name__ == "__main__":
    main()
