"""What adapting a trained model to other data is worth, against the model as it was and new weights.

    python benchmarks/adapt.py OUT RECIPE OLD NEW [--seeds 1 2 3] [--steps 400] [--adapt-steps 100] [--probe 1500] [key=value …]

OLD and NEW are folders with train/ and test/ that hold class folders. A model of RECIPE is pre-trained on OLD/train and adapted
to NEW/train by `data2vec adapt`, with its defaults and with the model's own learning rate; new weights make as many steps on
NEW/train. All are probed on the classes of NEW, and on those of OLD for what is forgotten: classifiers are fitted to --probe
examples of train, the layer is chosen on half as many others of it, and the accuracy is of as many of test as of train.
Prints a table, mean ± standard error over the seeds, with differences to the model as released, paired by seed, and writes
OUT/adapt.json. What is there already is not repeated.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import data2vec
from data2vec.distributed import Process, resolve_device
from data2vec.modalities.base import Modality
from data2vec.recipe.loading import list_overrides
from data2vec.run_dir import Run, load_run_recipe
from data2vec.tasks.probing.classifiers import classifier_accuracies
from data2vec.tasks.probing.dataset import load_probe_set
from data2vec.tasks.probing.features import pool_features
from data2vec.tasks.probing.probe import untrained_encoder

HELD_OUT = 200
"""Examples of the held-out loss."""
NAMES = ("untrained", "from scratch", "as released", "adapted", "adapted, own rate")


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("out", "recipe", "old", "new"):
        parser.add_argument(name, type=str if name == "recipe" else Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--adapt-steps", type=int, default=100)
    parser.add_argument("--probe", type=int, default=1500)
    arguments, overrides = parser.parse_known_args()
    results = []
    for seed in arguments.seeds:
        file = arguments.out / f"{seed}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(measure(arguments, list_overrides(overrides) | {"train.seed": seed}, seed), indent=1))
        results.append(json.loads(file.read_text()))
        print(table(results), flush=True)
    (arguments.out / "adapt.json").write_text(json.dumps(results, indent=1))


def measure(arguments: argparse.Namespace, overrides: dict[str, Any], seed: int) -> dict[str, dict[str, float]]:
    """The scores of one seed by model and name."""
    folder = arguments.out / str(seed)
    old, new, base = arguments.old / "train", arguments.new / "train", folder / "base"
    if not finished(base):
        data2vec.pretrain(arguments.recipe, old, overrides | {"train.steps": arguments.steps}, base, resume=base.is_dir())
    recipe = load_run_recipe(base)
    found: dict[str, dict[str, float]] = {name: {} for name in NAMES}
    for name, changes in (("adapted", {}), ("adapted, own rate", {"train.lr": recipe.train.lr})):
        out = folder / name.replace(", ", "-").replace(" ", "-")
        if not (out / "adapt.json").is_file():
            again = {"resume": out.is_dir()}
            first = {} if out.is_dir() else {"model": base, "data": new, "steps": arguments.adapt_steps}
            chosen = {} if out.is_dir() else {"train.seed": seed, "probe.max_examples": HELD_OUT} | changes
            data2vec.adapt(**first, overrides=chosen, out=out, scratch=name == "adapted", **again)
        rows = {row["name"]: row for row in json.loads((out / "adapt.json").read_text())["rows"]}
        wanted = {"adapted": name, "as released": "as released", "from scratch": "from scratch"}
        for row, target in wanted.items():
            if row in rows:
                numbers = {key: rows[row][key] for key in ("valid_loss", "drift_features", "drift_weights", "flops", "seconds")}
                found[target] |= {key: value for key, value in numbers.items() if value is not None}
    runs = {"as released": base, "adapted": folder / "adapted", "adapted, own rate": folder / "adapted-own-rate"}
    encoders = {name: data2vec.load(run).encoder for name, run in runs.items()}
    encoders["from scratch"] = data2vec.load(folder / "adapted" / "scratch").encoder
    encoders["untrained"] = untrained_encoder(recipe)
    for kind, where in (("new", arguments.new), ("old", arguments.old)):
        for name, scores in probe(list(encoders.values()), recipe.build_modality(), where, arguments.probe, seed).items():
            found[list(encoders)[name]] |= {f"{kind}_{key}": value for key, value in scores.items()}
    return found


def finished(run: Path) -> bool:
    """Whether a run has come to its end."""
    return (run / "model" / "config.json").is_file() and Run(run).metrics[-1]["step"] == load_run_recipe(run).train.steps


def probe(encoders: list[Any], modality: Modality, where: Path, count: int, seed: int) -> dict[int, dict[str, float]]:
    """Test accuracies of linear and kNN probes by encoder, of the layers that are best on dev data."""
    process = Process(resolve_device("auto"))
    base = data2vec.load_recipe("vision/v2-tiny").probe
    settings = base.model_copy(update={"data": str(where / "train"), "max_examples": count + count // 2})
    fitted = load_probe_set(modality, settings, seed)
    settings = base.model_copy(update={"data": str(where / "test"), "max_examples": count})
    test = load_probe_set(modality.validation(), settings, seed)
    encoders = [encoder.to(process.device).eval() for encoder in encoders]
    x, fitted = pool_features(encoders, modality, fitted, process)
    z, test = pool_features(encoders, modality, test, process)
    found = {}
    order = np.random.default_rng(seed).permutation(len(fitted.classes))
    fit, dev = order[:count], order[count:]
    for i in range(len(encoders)):
        scores = []
        for layer in range(x.shape[1]):
            train = (x[i, layer][fit], fitted.classes[fit])
            k = settings.knn_k
            scores.append(
                (
                    classifier_accuracies(*train, x[i, layer][dev], fitted.classes[dev], k, seed),
                    classifier_accuracies(*train, z[i, layer], test.classes, k, seed),
                )
            )
        found[i] = {
            name: max(scores, key=lambda score, j=j: score[0][j])[1][j]  # type: ignore[misc]
            for j, name in enumerate(("linear", "knn"))
        }
    return found


def table(results: list[dict[str, dict[str, float]]]) -> str:
    """Means ± standard errors, in percent for accuracies."""
    lines = []
    keys = [f"{kind}_{name}" for kind in ("new", "old") for name in ("linear", "knn")]
    for name in NAMES:
        cells = []
        for key in keys:
            values = [100 * result[name][key] for result in results]
            change = [100 * (result[name][key] - result["as released"][key]) for result in results]
            cells.append(f"{key} {spread(values)} ({spread(change)})")
        for key in ("valid_loss", "drift_features", "drift_weights", "flops", "seconds"):
            values = [result[name][key] for result in results if key in result[name]]
            cells += [f"{key} {spread(values)}"] if values else []
        lines.append(f"{name}: {', '.join(cells)}")
    return f"{len(results)} seeds\n" + "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.4g} ± {error:.2g}"


if __name__ == "__main__":
    main()
