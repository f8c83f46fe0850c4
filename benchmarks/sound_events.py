"""Environmental sounds (ESC-10) by the folds at hand: mel patches and the waveform, of data2vec 2, in docs/results.md.

    python benchmarks/sound_events.py OUT --data DATA [--seeds 1 2 3] [--finetune]

DATA has audio/esc10, with the names of ESC-50's files, and beside it what else is to be heard without labels. Both encoders
are pre-trained with the same FLOPs on all of it, the clips of all folds included, without labels. Then each fold is held out
in turn: a logistic regression and nearest neighbours on mean-pooled features, of the layer that is best in folds of the other
clips; an attentive probe of the last block, whose learning rate and step are chosen on a fifth of the other clips; fine-tuning
of fixed steps, so that there is nothing to choose. What is done is kept in OUT: the same command continues.
"""

import argparse
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

import data2vec
from data2vec.atomic_io import write_json
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.probing.attentive import attentive_probe
from data2vec.tasks.probing.classifiers import classifier_accuracies
from data2vec.tasks.probing.dataset import load_probe_set
from data2vec.tasks.probing.probe import open_probe
from data2vec.train.sweeps.cross_validation import cross_validate

ARMS = {
    "mel patches": ("sound/v2-tiny", {"train.steps": 338, "data.min_seconds": 0.3}),
    "waveform": ("speech/v2-tiny", {"train.steps": 383}),
    "MAE of mel patches": ("sound/mae-tiny", {"train.steps": 334, "data.min_seconds": 0.3}),
    "mel patches, positions not scaled": (
        "sound/v2-tiny",
        {"train.steps": 338, "data.min_seconds": 0.3, "modality.position_scale": 1},
    ),
    "MAE of mel patches, positions not scaled": (
        "sound/mae-tiny",
        {"train.steps": 334, "data.min_seconds": 0.3, "modality.position_scale": 1},
    ),
}
"""Recipe, and steps of 1.5e12 FLOPs; the learning rate is the one that `data2vec compare` chose for both on another set."""
PRETRAINING = {"train.lr": 1e-3, "data.workers": 0, "log.report": False, "train.checkpoint_every": 100}
FINETUNE_STEPS = 200
LISTED = {"data.follow_links": True}
"""The tables are not in the folder of the clips."""
FOLD = re.compile(r"(\d)-\d+-[A-Z](?:-\d+)?\.\w+$")
"""In a name of ESC-50, the fold comes first."""


def main() -> None:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=["mel patches", "waveform"], choices=ARMS)
    parser.add_argument("--finetune", action="store_true", help="also fine-tune, from the trained encoders and from scratch")
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments.out, arguments.data / "audio")
    benchmark.baseline()
    for measure in (benchmark.frozen, benchmark.attentive, *([benchmark.finetuned] if arguments.finetune else [])):
        for seed in arguments.seeds:
            for arm in arguments.arms:
                measure(arm, seed)
        print(benchmark.table(), flush=True)


class Benchmark:
    """The runs and scores in a folder."""

    def __init__(self, out: Path, audio: Path):
        self.out, self.audio = out, audio
        clips = {path: match[1] for path in sorted((audio / "esc10").rglob("*.*")) if (match := FOLD.search(path.name))}
        self.clips = {self.decoded(path): fold for path, fold in clips.items()}
        self.folds = sorted(set(self.clips.values()))
        self.esc10 = self.listing("all", self.folds)

    def decoded(self, clip: Path) -> Path:
        """A clip as wav, as decoding takes most of the time of a step of fine-tuning."""
        path = self.out / "clips" / clip.parent.name / f"{clip.stem}.wav"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, *soundfile.read(clip, dtype="float32"), subtype="FLOAT")
        return path

    def listing(self, name: str, folds: list[str]) -> Path:
        """A table of the clips of some folds."""
        path = self.out / "lists" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "label", "fold"])
            writer.writerows([clip.resolve(), clip.parent.name, fold] for clip, fold in self.clips.items() if fold in folds)
        return path

    def pretrained(self, arm: str, seed: int) -> Path:
        """The run of an arm."""
        recipe, settings = ARMS[arm]
        run = self.out / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
        if not (run / "model").is_dir():
            resume = (run / "recipe.yaml").is_file()
            data2vec.pretrain(recipe, self.audio, {} if resume else settings | PRETRAINING | {"train.seed": seed}, run, resume)
        return run

    def write(self, name: str, seed: int, of_folds: dict[str, float]) -> None:
        """Keep the scores of an arm."""
        path = self.out / "scores" / f"{name}-{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, of_folds)

    def is_done(self, name: str, seed: int) -> bool:
        """Whether the scores of an arm are kept."""
        return (self.out / "scores" / f"{name}-{seed}.json").exists()

    def baseline(self) -> None:
        """Classifiers of mean and standard deviation over time of the log-mel powers that the mel patches are cut from."""
        if self.is_done("log-mel statistics, kNN", 0):
            return
        settings = {"probe.data": str(self.esc10), "modality.mean": 0, "modality.std": 1} | LISTED
        modality = load_recipe("sound/v2-tiny", settings).build_modality()
        examples = modality.labelled(modality.rows(str(self.esc10)))
        rows = range(len(examples))
        spectrograms = [examples.load(row).numpy() for row in rows]  # (frames, bands)
        x = np.stack([np.concatenate([each.mean(0), each.std(0)]) for each in spectrograms])[None]
        classes, folds = (np.array([str(examples.label(row, name)) for row in rows]) for name in ("label", "fold"))
        scores = {fold: nested(x, classes, folds, fold) for fold in self.folds}
        for index, name in enumerate(("linear", "kNN")):
            self.write(f"log-mel statistics, {name}", 0, {fold: pair[index] for fold, pair in scores.items()})

    def frozen(self, arm: str, seed: int) -> None:
        """Classifiers of mean-pooled features, trained and untrained."""
        if self.is_done(f"{arm}, untrained, kNN", seed):
            return
        settings = {"probe.group": "fold", "probe.folds": "leave-one-out"} | LISTED
        frozen = open_probe(self.pretrained(arm, seed), self.esc10, None, settings, None, None)
        chosen = load_probe_set(frozen.modality, frozen.recipe.probe, frozen.recipe.train.seed)
        with frozen.features(chosen) as ((vectors, probe_set),):
            folds = np.array([str(probe_set.examples.label(row, "fold")) for row in probe_set.indices])
            for x, encoder in zip(vectors, ("", ", untrained"), strict=True):
                scores = {fold: nested(x, probe_set.classes, folds, fold) for fold in self.folds}
                for index, name in enumerate(("linear", "kNN")):
                    self.write(f"{arm}{encoder}, {name}", seed, {fold: pair[index] for fold, pair in scores.items()})

    def attentive(self, arm: str, seed: int) -> None:
        """An attentive probe of the last block, trained and untrained."""
        if self.is_done(f"{arm}, untrained, attentive", seed):
            return
        trained, untrained = dict[str, float](), dict[str, float]()
        for fold in self.folds:
            train = self.listing(f"without-{fold}", [other for other in self.folds if other != fold])
            run, held_out = self.pretrained(arm, seed), self.listing(f"only-{fold}", [fold])
            row = attentive_probe(run, train, held_out, steps=300, layer=-1, overrides=LISTED).rows[0]
            trained[fold], untrained[fold] = (float(fit.scores["accuracy"]) for fit in (row.trained, row.untrained))
        self.write(f"{arm}, attentive", seed, trained)
        self.write(f"{arm}, untrained, attentive", seed, untrained)

    def finetuned(self, arm: str, seed: int) -> None:
        """Fine-tuning of all weights, from the trained encoder and from scratch."""
        kind = ARMS[arm][0].partition("/")[0]
        settings = {"data.train": self.esc10, "train.steps": FINETUNE_STEPS, "train.seed": seed, "data.workers": 0}
        settings |= {"objective.validate_every": FINETUNE_STEPS, "log.report": "false", "data.follow_links": "true"}
        for name, scratch in ((f"{arm}, fine-tuned", False), (f"{arm}, scratch", True)):
            if not self.is_done(name, seed):
                out = self.out / "finetuned" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
                words = [f"{key}={value}" for key, value in settings.items()]
                run = self.pretrained(arm, seed)
                self.write(name, seed, cross_validate(f"{kind}/classify-tiny", "fold", run, words, out, scratch).scores)

    def table(self) -> str:
        """Mean over the folds; mean and standard error over the seeds."""
        of_arms: dict[str, list[float]] = {}
        for path in sorted((self.out / "scores").glob("*.json")):
            of_folds = json.loads(path.read_text(encoding="utf-8"))
            of_arms.setdefault(path.stem.rpartition("-")[0], []).append(100 * float(np.mean(list(of_folds.values()))))
        lines = []
        for name, values in of_arms.items():
            error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
            lines.append(f"{name:44}{np.mean(values):6.1f}{error} ({len(values)} seeds)")
        return "\n".join(lines)


def nested(x: np.ndarray, classes: np.ndarray, folds: np.ndarray, held_out: str) -> tuple[float, float]:
    """Accuracies on a fold of logistic regression and of 10 nearest neighbours, each on the layer of `x` (layers, n, D) that is
    best in folds of the other clips."""
    inner = [fold for fold in np.unique(folds) if fold != held_out]

    def accuracies(layer: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
        return classifier_accuracies(layer[train], classes[train], layer[test], classes[test], 10, 0)

    def found() -> Iterator[tuple[float, float]]:
        for layer in x:
            yield tuple(np.mean([accuracies(layer, (folds != held_out) & (folds != fold), folds == fold) for fold in inner], 0))

    best = np.array(list(found())).argmax(0) if len(x) > 1 else np.zeros(2, int)
    linear, knn = (accuracies(x[layer], folds != held_out, folds == held_out)[index] for index, layer in enumerate(best))
    return linear, knn


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
