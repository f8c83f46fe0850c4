"""Whether pre-training helps on recordings of a watch, leaving one person out: the table of docs/results.md.

    python benchmarks/watch.py OUT [--seeds 1 2 3] [--arms NAME…] [--finetune]

Ten people, seven exercises, windows of 4 s every 2 s (seglearn, in the extra `demo`). The encoders of a person never saw a
recording of that person, not even without labels: people are held out of the pre-training in three groups. Frozen features
are classified by ridge regression onto the classes, fitted to the other nine people, or to one of them, the next by number;
which features of which blocks, and the penalty, are chosen by folds of the people, or of the recordings of the one. Fine-tuning
has the same labels, and fixed steps, so that there is nothing to choose. What is done is kept in OUT, where the same command
continues.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data2vec
from data2vec.demo.watch import write_recordings
from data2vec.feature_extraction import extract_logits
from data2vec.model import require_head
from data2vec.nn.encoder import padding_invariant
from data2vec.tasks.probing.probe import untrained_encoder

GROUPS = ((1, 2, 3), (4, 5, 6, 7), (8, 9, 10))
"""People who are held out together."""
PEOPLE = tuple(person for group in GROUPS for person in group)
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "data2vec 2": ("signal/v2-tiny", {}),
    "input regression": ("signal/mae-tiny", {}),
    "data2vec 2, spectrum": ("signal/v2-tiny", {"modality.spectrum": True}),
    "data2vec 2, channels dropped": ("signal/v2-tiny", {"data.channel_dropout": 0.3}),
    "data2vec 2, grid": (
        "signal/v2-tiny",
        {"modality.layout": "grid", "modality.patch": 20, "objective.decoder.kernel": [3, 3]},
    ),
    "data2vec 2, 2,700 steps": ("signal/v2-tiny", {"train.steps": 2700}),
}
"""Recipe and changed settings of each pre-training."""
LABELS = ("all", "one")
"""Of nine people, or of one of them."""
PENALTIES = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
INNER_FOLDS = 3
FINETUNE_STEPS = 300
HOP_SECONDS = 2
DILATIONS, KERNELS = (1, 2, 4, 8, 16), 100
"""Of the random convolutions: 500 in all, with a mean, a maximum and a share of positive values each."""


def main() -> None:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=["data2vec 2", "input regression"], choices=ARMS)
    parser.add_argument("--finetune", action="store_true", help="also fine-tune")
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments.out)
    for labels in LABELS:
        for name in ("hand-made features", "random convolutions"):
            print(name, labels, *benchmark.baseline(name, labels), flush=True)
        for seed in arguments.seeds:
            for arm in arguments.arms:
                for name in (arm, f"{arm}, untrained", f"{arm} and hand-made features"):
                    print(f"seed {seed}", name, labels, *benchmark.frozen(arm, name, seed, labels), flush=True)
    for seed in arguments.seeds if arguments.finetune else ():
        for labels in LABELS:
            for arm in ("data2vec 2", "scratch"):
                print(f"seed {seed}", f"fine-tuned {arm}, {labels}", *benchmark.finetuned(arm, seed, labels), flush=True)
    print(benchmark.table())


class Benchmark:
    """The runs and scores in a folder."""

    def __init__(self, out: Path):
        self.out = out
        if not (out / "data").is_dir():
            write_recordings(out / "data", held_out=())
        self.data = str(out / "data" / "train")

    def scores(self, name: str) -> Path:
        """The file of the scores of an arm, a line for each person."""
        return self.out / "scores" / f"{name.replace(' ', '-').replace(',', '')}.json"

    def pretrained(self, arm: str, seed: int, group: tuple[int, ...]) -> Path:
        """The run of an arm without the people of a group."""
        recipe, settings = ARMS[arm]
        run = self.out / "runs" / f"{arm.replace(' ', '-').replace(',', '')}-{seed}-{group[0]}"
        if not (run / "model").is_dir():
            common = {"train.seed": seed, "data.train_rows.exclude": {"subject": list(group)}, "log.report": False}
            resume = (run / "checkpoints").is_dir()
            common |= {"log.every": 100, "train.checkpoint_every": 900}
            data2vec.pretrain(recipe, self.data, {} if resume else settings | common, run, resume)
        return run

    def windows(self, modality: Any) -> tuple[list[torch.Tensor], np.ndarray, np.ndarray]:
        """All windows, scaled as the model takes them; their classes, people."""
        examples = modality.labelled(modality.rows(self.data))
        labels = [str(examples.label(index, "label")) for index in range(len(examples))]
        people = [int(examples.label(index, "subject")) for index in range(len(examples))]
        self.recordings = examples.recordings
        return [examples.load(index) for index in range(len(examples))], np.array(labels), np.array(people)

    def raw_windows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All windows (n, S, 6) in g and rad/s, their classes and people."""
        settings = {"modality.scale": {"by": "none", "clip": 1e6}, "data.hop_seconds": HOP_SECONDS, "data.train": self.data}
        recipe = data2vec.recipe.loading.load_recipe("signal/v2-tiny", settings)
        recipe = data2vec.recipe.loading.load_recipe(recipe, recipe.build_modality().measure(self.data))
        items, classes, people = self.windows(recipe.build_modality())
        return torch.stack(items).numpy(), classes, people

    def baseline(self, name: str, labels: str) -> tuple[str, float]:
        """The mean accuracy of features without a network that learns."""
        path = self.scores(name if labels == "all" else f"{name} {labels}")
        if not path.exists():
            samples, classes, people = self.raw_windows()
            features = hand_made(samples) if name == "hand-made features" else random_convolutions(samples)
            rows = [leave_out({"": features}, classes, people, self.recordings, person, labels) for person in PEOPLE]
            write(path, rows)
        return summary(path)

    def features(self, arm: str, seed: int, group: tuple[int, ...]) -> Path:
        """Mean and standard deviation over the window of every block, (2, blocks, n, 2 D): of the trained encoder, and of the
        untrained one."""
        path = self.out / "features" / f"{arm.replace(' ', '-').replace(',', '')}-{seed}-{group[0]}.npz"
        if not path.exists():
            model = data2vec.load(self.pretrained(arm, seed, group))
            recipe = data2vec.recipe.loading.load_recipe(model.recipe, {"data.hop_seconds": HOP_SECONDS, "train.seed": seed})
            modality = recipe.build_modality()
            items, classes, people = self.windows(modality)
            found = [encode(encoder, modality, items) for encoder in (model.encoder, untrained_encoder(recipe))]
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, x=np.stack(found), classes=classes, people=people, recordings=self.recordings)
        return path

    def frozen(self, arm: str, name: str, seed: int, labels: str) -> tuple[str, float]:
        """The mean accuracy of frozen features."""
        path = self.scores(f"{name}-{seed}" if labels == "all" else f"{name} {labels}-{seed}")
        if not path.exists():
            rows = []
            for group in GROUPS:
                with np.load(self.features(arm, seed, group)) as saved:
                    x, classes, people, recordings = (saved[key] for key in ("x", "classes", "people", "recordings"))
                readouts = dict(read_outs(x[int(name.endswith("untrained"))]))
                if name.endswith("hand-made features"):
                    made = hand_made(self.raw_windows()[0])
                    readouts = {key: np.concatenate([value, made], 1) for key, value in readouts.items()}
                rows += [leave_out(readouts, classes, people, recordings, person, labels) for person in group]
            write(path, rows)
        return summary(path)

    def finetuned(self, arm: str, seed: int, labels: str) -> tuple[str, float]:
        """The mean accuracy after fine-tuning all weights, from a pre-trained model, or from `scratch`."""
        path = self.scores(f"fine-tuned {arm} {labels}-{seed}")
        rows = json.loads(path.read_text()) if path.exists() else []
        for group in GROUPS:
            for person in group:
                if any(row["person"] == person for row in rows):
                    continue
                used = labelled_people(person, labels)
                run = self.out / "finetuned" / f"{arm.replace(' ', '-')}-{labels}-{seed}-{person}"
                settings = {
                    "train.seed": seed,
                    "train.steps": FINETUNE_STEPS,
                    "data.train_rows.where": {"subject": used},
                    "data.hop_seconds": HOP_SECONDS,
                    "log.report": False,
                    "log.every": 100,
                    "train.checkpoint_every": FINETUNE_STEPS,
                }
                source = self.pretrained("data2vec 2", seed, group)
                if not (run / "model").is_dir():
                    scratch = arm == "scratch"
                    data2vec.finetune("signal/classify-tiny", source, self.data, None, settings, run, scratch=scratch)
                rows.append(self.test(run, person))
                write(path, rows)
        return summary(path)

    def test(self, run: Path, person: int) -> dict[str, Any]:
        """The scores of a fine-tuned model on the windows of a person."""
        model = data2vec.load(run)
        recipe = data2vec.recipe.loading.load_recipe(model.recipe, {"data.hop_seconds": HOP_SECONDS})
        modality, head = recipe.build_modality(), require_head(model)
        items, classes, people = self.windows(modality)
        rows = np.flatnonzero(people == person)
        logits = extract_logits(padding_invariant(model.encoder.eval()), head.eval(), modality, [items[row] for row in rows])
        names = np.array(head.settings.labels)
        return score(person, torch.stack(logits).numpy(), names, classes[rows], self.recordings[rows])

    def table(self) -> str:
        """Mean over the people and, where there are several seeds, the standard error over them."""
        arms: dict[str, list[list[dict[str, Any]]]] = {}
        for path in sorted((self.out / "scores").glob("*.json")):
            name, _, seed = path.stem.rpartition("-")
            rows = json.loads(path.read_text())
            if len(rows) == len(PEOPLE):
                arms.setdefault(name if seed.isdigit() else path.stem, []).append(rows)
        lines = [f"{'':44}{'windows':>15}{'balanced':>10}{'recordings':>12}{'lowest':>9}{'highest':>9}{'seeds':>7}"]
        for name, runs in arms.items():
            means = {key: np.array([np.mean([row[key] for row in rows]) for rows in runs]) for key in SCORES}
            of_people = np.mean([[row["accuracy"] for row in rows] for rows in runs], 0)
            error = f" ± {100 * means['accuracy'].std(ddof=1) / len(runs) ** 0.5:.1f}" if len(runs) > 1 else ""
            shown = f"{100 * means['accuracy'].mean():.1f}{error}"
            rest = "".join(f"{100 * means[key].mean():{width}.1f}" for key, width in zip(SCORES[1:], (10, 12), strict=True))
            lines.append(f"{name:44}{shown:>15}{rest}{100 * of_people.min():9.1f}{100 * of_people.max():9.1f}{len(runs):7d}")
        return "\n".join(lines)


SCORES = ("accuracy", "balanced", "recordings")


@torch.inference_mode()
def encode(encoder: Any, modality: Any, items: list[torch.Tensor]) -> np.ndarray:
    """(blocks, n, 2 D)"""
    encoder = padding_invariant(encoder.eval())
    parts = []
    for first in range(0, len(items), 64):
        batch = modality.collate(items[first : first + 64])
        x, padding = encoder.local_encoder(batch)
        blocks = torch.stack(list(encoder.states(x, padding))[1:])
        parts.append(torch.cat([blocks.mean(2), blocks.std(2)], -1))
    return torch.cat(parts, 1).numpy()


def read_outs(blocks: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What a classifier may see, of (blocks, n, 2 D)."""
    yield "first block", blocks[0]
    yield "mean of blocks", blocks.mean(0)
    yield "last block", blocks[-1]
    yield "all blocks", np.concatenate(list(blocks), -1)


def labelled_people(person: int, labels: str) -> list[int]:
    """Whose labels are used to recognise what a person does."""
    return [other for other in PEOPLE if other != person] if labels == "all" else [person % len(PEOPLE) + 1]


def leave_out(
    readouts: Mapping[str, np.ndarray],
    classes: np.ndarray,
    people: np.ndarray,
    recordings: np.ndarray,
    person: int,
    labels: str,
) -> dict[str, Any]:
    """The scores on a person of the features and the penalty that are best in folds of those whose labels are used."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    train, held_out = np.isin(people, labelled_people(person, labels)), people == person
    names = np.unique(classes)
    # Each person has recorded each exercise twice, so two folds of recordings both have all classes.
    folds, groups = (GroupKFold(INNER_FOLDS), people) if labels == "all" else (StratifiedGroupKFold(2), recordings)
    best: tuple[float, str, float] = (-1.0, "", 0.0)
    for name, x in readouts.items():
        accuracies = np.zeros(len(PENALTIES))
        for fit, valid in folds.split(x[train], classes[train], groups[train]):
            logits = ridge(x[train][fit], classes[train][fit], x[train][valid], names)
            accuracies += (names[logits.argmax(-1)] == classes[train][valid]).sum(1)
        best = max(best, (float(accuracies.max() / train.sum()), name, float(PENALTIES[accuracies.argmax()])))
    x = readouts[best[1]]
    logits = ridge(x[train], classes[train], x[held_out], names, np.array([best[2]]))[0]
    chosen = {"chosen": best[1], "penalty": best[2], "inner": best[0]}
    return score(person, logits, names, classes[held_out], recordings[held_out]) | chosen


def ridge(
    x: np.ndarray, classes: np.ndarray, other: np.ndarray, names: np.ndarray, penalties: np.ndarray = PENALTIES
) -> np.ndarray:
    """(penalties, m, classes) predictions for `other` (m, D): ridge regression onto the classes, on standardised `x` (n, D)."""
    from scipy.linalg import solve

    centre, width = x.mean(0), x.std(0) + 1e-9
    x, other = (x - centre) / width, (other - centre) / width
    targets = (classes[:, None] == names) - 1 / len(names)
    products, answers = x.T.astype(np.float64) @ x, x.T @ targets
    return np.stack(
        [other @ solve(products + penalty * np.eye(len(products)), answers, assume_a="pos") for penalty in penalties]
    )


def score(person: int, logits: np.ndarray, names: np.ndarray, classes: np.ndarray, recordings: np.ndarray) -> dict[str, Any]:
    """Accuracies of windows, their mean over classes, and of recordings by the mean of the predictions of their windows."""
    right = names[logits.argmax(-1)] == classes
    first = {recording: np.flatnonzero(recordings == recording) for recording in np.unique(recordings)}
    votes = [names[logits[rows].mean(0).argmax()] == classes[rows[0]] for rows in first.values()]
    balanced = np.mean([right[classes == name].mean() for name in np.unique(classes)])
    return {"person": person, "accuracy": float(right.mean()), "balanced": float(balanced), "recordings": float(np.mean(votes))}


def hand_made(samples: np.ndarray) -> np.ndarray:
    """(n, 175) of windows (n, S, 6): 20 numbers for each axis and for the lengths of the vectors; correlations of axes."""
    both = np.concatenate(
        [samples, *(np.linalg.norm(part, axis=2, keepdims=True) for part in (samples[..., :3], samples[..., 3:]))], 2
    )
    steps = np.diff(both, axis=1)
    quantiles = np.quantile(both, (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1), axis=1)
    power = np.abs(np.fft.rfft(both - both.mean(1, keepdims=True), axis=1)) ** 2
    bands = [
        np.log(power[:, low:high].sum(1) + 1e-6) for low, high in ((1, 2), (2, 3), (3, 5), (5, 9), (9, 17), (17, 33), (33, 101))
    ]
    peak = power[:, 1:].argmax(1).astype(np.float32)
    crossings = (np.diff(np.sign(both - both.mean(1, keepdims=True)), axis=1) != 0).mean(1)
    columns = [both.mean(1), both.std(1), *quantiles, steps.std(1), np.abs(steps).mean(1), crossings, peak, *bands]
    centred = samples - samples.mean(1, keepdims=True)
    unit = centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9)
    correlations = np.einsum("nsa,nsb->nab", unit, unit)[:, *np.triu_indices(samples.shape[2], 1)]
    return np.concatenate([*columns, correlations], 1).astype(np.float32)


def random_convolutions(samples: np.ndarray) -> np.ndarray:
    """(n, 1500): mean, maximum and share of positive values of the output of each random dilated convolution of the axes."""
    generator = torch.Generator().manual_seed(0)
    mean, std = samples.mean((0, 1)), samples.std((0, 1))
    x = torch.from_numpy((samples - mean) / std).float().mT
    found = []
    for dilation in DILATIONS:
        weight = torch.randn(KERNELS, x.shape[1], 9, generator=generator)
        weight = (weight - weight.mean(-1, keepdim=True)) * (torch.rand(KERNELS, x.shape[1], 1, generator=generator) < 0.5)
        bias = torch.randn(KERNELS, generator=generator)
        for part in x.split(256):
            y = torch.nn.functional.conv1d(part, weight, bias, padding=4 * dilation, dilation=dilation)
            found.append(torch.cat([y.mean(-1), y.amax(-1), (y > 0).float().mean(-1)], 1))
    parts = -(-len(x) // 256)
    return torch.cat([torch.cat(found[i * parts : (i + 1) * parts]) for i in range(len(DILATIONS))], 1).numpy()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))


def summary(path: Path) -> tuple[str, float]:
    """The mean accuracy over the people."""
    return "accuracy", round(100 * float(np.mean([row["accuracy"] for row in json.loads(path.read_text())])), 1)


if __name__ == "__main__":
    main()
