"""Does the verdict name what is wrong with a run, and does it leave healthy runs alone?

    python benchmarks/health.py runs/health --minutes 25      # train what fits into the time, then judge all runs there are
    python benchmarks/health.py runs/health --minutes 0       # judge only

In several processes: --part 1/4, --part 2/4 and so on, when the data is written.

Each run has a modality, a size and a length drawn at random, on data made from installed packages. 20 faults, each once in
every modality, of pre-training and of fine-tuning, and 60 runs without a fault. They are made in random order, so that those
that fit into the time are a sample of all. A run is judged at its last step, by its metrics alone; a fault counts as named when
a finding has the words of `FAULTS`. Waiting for data is judged for slow data only: these models are so small that it is true
of all.
"""

import argparse
import csv
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch

from data2vec.data import masked_batches
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.demo.datasets import write_images, write_speech, write_text
from data2vec.errors import CorruptExample, Interrupted, RunStopped, UserError
from data2vec.health.verdict import Verdict
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.tasks.finetuning.verdict import judge_run
from data2vec.train import finetune as finetuning
from data2vec.train import pretrain as pretraining
from data2vec.train.train_step import TrainStep

MODALITIES = ("vision", "speech", "text")
HEALTHY_RUNS = 60
VOCABULARY = 400
CLASSES = 4
TASK = Literal["pretrain", "finetune"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with a run."""

    task: TASK
    named: Sequence[str]
    """A finding with one of these words names it."""
    settings: Callable[[dict[str, Any]], dict[str, Any]] = lambda recipe: {}
    """Overrides, by the settings of the healthy run."""
    patch: str = ""
    data: str = "plain"
    """The variant of the training data."""
    valid: str = "valid"


def endless_warmup(recipe: dict[str, Any]) -> dict[str, Any]:
    """A warm-up of twenty runs."""
    return {"train.schedule": {"name": "cosine", "warmup_steps": 20 * recipe["train.steps"]}}


def rate(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Another learning rate."""
    return lambda recipe: {"train.lr": factor * recipe["train.lr"]}


def teacher(decay: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A teacher with a constant decay."""
    return lambda recipe: {"objective.teacher": {"decay": decay, "end_decay": decay, "anneal_steps": 0}}


NO_NORM = {"objective.target.per_layer_norms": [], "objective.target.final_norms": []}
FAULTS = {
    "lr x100": Fault("pretrain", ["train.lr"], rate(100)),
    "lr /1000": Fault("pretrain", ["is too low"], rate(1e-3)),
    "endless warm-up": Fault("pretrain", ["warm-up"], endless_warmup),
    "teacher decay 0": Fault("pretrain", ["objective.teacher"], teacher(0.0)),
    "teacher decay 1": Fault("pretrain", ["objective.teacher"], teacher(1.0)),
    "no target norm": Fault("pretrain", ["objective.target.per_layer_norms"], lambda recipe: NO_NORM),
    "frozen local encoder": Fault("pretrain", ["local encoder does not learn"], patch="frozen"),
    "weight decay 30": Fault("pretrain", ["train.weight_decay"], lambda recipe: {"train.weight_decay": 30.0}),
    "identical inputs": Fault("pretrain", ["too similar", "on the input", "not content"], data="identical"),
    "constant inputs": Fault("pretrain", ["hardly differ", "losing variance", "constant"], data="constant"),
    "unreadable inputs": Fault("pretrain", ["cannot be read"], lambda recipe: {"data.max_corrupt": 0.12}, "corrupt"),
    "slow data": Fault("pretrain", ["waits for data"], patch="slow"),
    "NaN loss": Fault("pretrain", ["NaN"], patch="nan"),
    "probe below untrained": Fault(
        "pretrain", ["untrained"], lambda recipe: {"train.lr": 300 * recipe["train.lr"], "probe.max_examples": 150}
    ),
    "fine-tuning: lr x100": Fault("finetune", ["train.lr"], rate(100)),
    "fine-tuning: lr /1000": Fault("finetune", ["chance", "never improved"], rate(1e-3)),
    "fine-tuning: endless warm-up": Fault("finetune", ["warm-up"], endless_warmup),
    "shuffled labels": Fault("finetune", ["chance", "never improved"], data="shuffled"),
    "shuffled validation labels": Fault("finetune", ["chance", "never improved"], valid="valid-shuffled"),
    "one class of 95 %": Fault("finetune", ["chance", "most frequent"], data="imbalanced", valid="valid-imbalanced"),
}
RECIPES: dict[tuple[str, TASK], Sequence[str]] = {
    ("vision", "pretrain"): ("vision/v1-tiny", "vision/v2-tiny"),
    ("speech", "pretrain"): ("speech/v1-tiny", "speech/v2-tiny"),
    ("text", "pretrain"): ("text/v2-tiny",),
    **{(modality, "finetune"): (f"{modality}/classify-tiny",) for modality in MODALITIES},
}
"""text/v1-tiny is no healthy run of this length: it learns position (docs/health.md)."""


@dataclass(frozen=True)
class Job:
    """A run to make."""

    modality: str
    recipe: str
    task: TASK
    fault: str
    seed: int
    width: int
    layers: int
    steps: int

    @property
    def name(self) -> str:
        """Of its folder."""
        words = [self.recipe, self.fault or "healthy", str(self.seed)]
        return "-".join("".join(c if c.isalnum() or c in "." else "-" for c in word).strip("-") for word in words)

    @property
    def settings(self) -> dict[str, Any]:
        """The overrides of the run without its fault: a small encoder, and schedules in proportion to a short run."""
        tenth = max(1, self.steps // 10)
        found: dict[str, Any] = {
            **{"train.steps": self.steps, "train.seed": self.seed, "train.device": "cpu", "train.checkpoint_every": self.steps},
            **{"log.every": max(1, self.steps // 16), "log.report": False, "data.workers": 0},
            **{"encoder.width": self.width, "encoder.ffn_width": 2 * self.width, "encoder.layers": self.layers},
            "encoder.heads": 2,
            "train.schedule": {"name": "cosine", "warmup_steps": tenth},
            "train.lr": 3e-3,
        }  # fmt: skip
        if self.task == "finetune":
            found |= {"objective.validate_every": self.steps // 4}
        else:
            found |= {"objective.target.top_k": 2, "health.grace_steps": 3 * self.steps}
            found["objective.teacher"] = {"half_life": 0.15, "end_half_life": 0.3, "anneal": 1}
            if "v2" in self.recipe:
                found |= {"objective.masks_per_sample": 4, "objective.decoder.width": 32}
        if self.modality == "vision":
            found |= {"modality.patch": 4 if "v1" in self.recipe else 8, "data.batch_size": 12, "data.micro_batch_size": 12}
        elif self.modality == "speech":
            kernels = ((16, 10, 5), (24, 8, 4), (32, 4, 4), (32, 4, 4))
            found |= {"modality.conv_layers": kernels, "modality.position_groups": 4}
            batch = 3 if self.task == "pretrain" else 5
            found |= {"data.batch_seconds": batch, "data.micro_batch_seconds": batch}
            found |= {"data.min_seconds": 0.3, "data.max_seconds": 1}
        else:
            found |= {
                "modality.vocab_size": VOCABULARY,
                "data.block_size": 48,
                "data.batch_size": 16,
                "data.micro_batch_size": 16,
            }
        return found


def sample_jobs() -> list[Job]:
    """All runs, in random order: faults with seeds 1 to 3, and healthy runs with later ones."""
    rng, jobs = np.random.default_rng(0), list[Job]()

    def add(modality: str, task: TASK, fault: str, seed: int) -> None:
        recipe = str(rng.choice(RECIPES[modality, task]))
        width, layers = ((32, 2), (48, 3))[rng.integers(2)]
        jobs.append(Job(modality, recipe, task, fault, seed, width, layers, int(rng.choice((48, 64)))))

    for number, (fault, settings) in enumerate(FAULTS.items()):
        for modality in MODALITIES:
            add(modality, settings.task, fault, 1 + 2 * number)
    for number in range(HEALTHY_RUNS):
        add(MODALITIES[number % 3], ("pretrain", "finetune")[number // 3 % 2], "", 101 + number)
    return [jobs[index] for index in rng.permutation(len(jobs))]


def write_data(out: Path) -> None:
    """The data of all runs, in OUT/MODALITY: `plain` for pre-training, with variants; `labelled`, `valid` and variants."""
    made = out / "complete"
    if made.exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    rng = np.random.default_rng(0)
    write_images(out / "raw-vision")
    write_speech(out / "raw-speech", clips=120, labelled=10, heldout=10)
    write_text(out / "raw-text")
    images = sorted((out / "raw-vision" / "train").rglob("*.png"))[::3]
    clips = sorted((out / "raw-speech" / "train").glob("*.wav"))
    files = sorted((out / "raw-text" / "train").glob("*.txt"))
    paragraphs = [line for file in files for line in file.read_text().splitlines()][:1200]
    _write_files(out / "vision" / "plain", images)
    _write_files(out / "vision" / "identical", images[:1] * 64)
    _write_files(out / "speech" / "plain", clips)
    _write_files(out / "speech" / "identical", clips[:1] * 64)
    _write_constant(out)
    _write_lines(out / "text" / "plain", paragraphs)
    _write_lines(out / "text" / "identical", [" ".join(paragraphs[0].split()[:30])] * 600)
    _write_lines(out / "text" / "constant", ["the " * 40] * 300)
    (out / "text" / "tokenizer").mkdir()
    save_tokenizer(train_tokenizer(paragraphs, VOCABULARY), out / "text" / "tokenizer")
    for part, count in (("labelled", 400), ("valid", 80)):
        labels = rng.integers(CLASSES, size=count)
        items: dict[str, list[Any]] = {"vision": [], "speech": [], "text": []}
        digits = [sorted((out / "raw-vision" / ("train", "valid")[part == "valid"] / str(c)).glob("*.png")) for c in range(4)]
        for label in labels:
            items["vision"].append(digits[label][rng.integers(len(digits[label]))])
            items["speech"].append(_sound(int(label), rng))
            items["text"].append(_sentence(int(label), rng))
        rare = np.where(rng.random(count) < 0.95, 0, labels)
        # Of a shuffled variant, inputs have the labels of others.
        for variant, shown in (("", labels), ("shuffled", rng.permutation(labels)), ("imbalanced", rare)):
            chosen = range(count)
            if variant == "imbalanced":  # inputs of the first class with its label, 95 % of all
                first = np.flatnonzero(labels == 0)
                chosen = [int(rng.choice(first)) if label == 0 else i for i, label in enumerate(rare)]
            name = f"{part}-{variant}" if variant and part == "valid" else variant or part
            for modality in MODALITIES:
                _write_labelled(out / modality / name, [items[modality][i] for i in chosen], [f"c{c}" for c in shown])
    made.touch()


def _write_files(folder: Path, files: Sequence[Path]) -> None:
    folder.mkdir(parents=True)
    for i, file in enumerate(files):
        shutil.copy(file, folder / f"{i:04d}{file.suffix}")


def _write_constant(out: Path) -> None:
    import soundfile
    from PIL import Image

    for modality in ("vision", "speech"):
        (out / modality / "constant").mkdir(parents=True)
    for i in range(64):
        Image.new("RGB", (32, 32), (127, 127, 127)).save(out / "vision" / "constant" / f"{i}.png")
        soundfile.write(out / "speech" / "constant" / f"{i}.wav", np.zeros(16000), 16000)


def _write_lines(folder: Path, lines: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sound(label: int, rng: np.random.Generator) -> np.ndarray:
    """Half a second of a tone that rises, falls or stays, or of noise."""
    t = np.arange(8000) / 16000
    start = rng.uniform(300, 900)
    slope = (1500, -500, 0, 0)[label]
    tone = np.sin(2 * np.pi * (start * t + slope * t**2)) if label < 3 else rng.standard_normal(len(t))
    return 0.3 * tone + 0.02 * rng.standard_normal(len(t))


def _sentence(label: int, rng: np.random.Generator) -> str:
    """Words that are common, and some of a class."""
    common = ["the", "a", "of", "to", "and", "in", "is", "it", "that", "for", "on", "with", "as", "by", "at", "from"]
    own = (
        "file path folder disk open",
        "email message mail send",
        "thread lock queue wait process",
        "date time year day clock",
    )
    words = [*rng.choice(common, 6), *rng.choice(own[label].split(), 6)]
    return " ".join(rng.permutation(words))


def _write_labelled(where: Path, items: Sequence[Any], labels: Sequence[str]) -> None:
    import soundfile

    if isinstance(items[0], str):
        rows = [f"{text}\t{label}" for text, label in zip(items, labels, strict=True)]
        where.with_suffix(".tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
        return
    where.mkdir(parents=True)
    names = []
    for i, item in enumerate(items):
        names.append(f"{i:04d}.png" if isinstance(item, Path) else f"{i:04d}.wav")
        if isinstance(item, Path):
            shutil.copy(item, where / names[-1])
        else:
            soundfile.write(where / names[-1], item, 16000)
    with (where / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *zip(names, labels, strict=True)])


@contextmanager
def broken(patch: str, steps: int) -> Iterator[None]:
    """A block in which training has a fault that is no setting."""
    load, step = masked_batches.load_example, TrainStep.__call__

    def slow(*arguments: Any) -> Any:
        time.sleep(0.01)
        return load(*arguments)

    def corrupt(examples: Any, index: int, *rest: Any) -> Any:
        if index % 14 == 3:  # 7 %
            raise CorruptExample(f"example {index + 1}: damaged")
        return load(examples, index, *rest)

    def frozen(*arguments: Any) -> Any:
        encoder = build_encoder(*arguments)
        encoder.local_encoder.requires_grad_(False)
        return encoder

    def nan(self: Any, number: int, *rest: Any, **more: Any) -> Any:
        if number == steps // 2:
            for parameter in self.parameters[:1]:
                parameter.data.fill_(float("nan"))
        return step(self, number, *rest, **more)

    patches = {
        "slow": (masked_batches, "load_example", slow),
        "corrupt": (masked_batches, "load_example", corrupt),
        "nan": (TrainStep, "__call__", nan),
    }
    if patch == "frozen":
        import data2vec.recipe.recipe as recipes

        patches["frozen"] = (recipes, "build_encoder", frozen)
    if not patch:
        yield
        return
    with mock.patch.object(*patches[patch]):
        yield


def train(job: Job, data: Path, out: Path) -> None:
    """Make a run, unless it is made; it may stop by itself."""
    done = out / "job.json"
    if done.exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    fault, settings = FAULTS.get(job.fault, Fault(job.task, [])), job.settings
    settings |= fault.settings(settings)
    ending = ".tsv" if job.modality == "text" else ""
    where = data / job.modality
    if job.modality == "text":
        settings["data.tokenizer"] = str(where / "tokenizer")
    if "probe.max_examples" in settings:
        settings |= {f"probe.{key}": f"{where / name}{ending}" for key, name in (("data", "labelled"), ("valid", "valid"))}
        settings["probe.every"] = job.steps // 2
    error = ""
    try:
        with broken(fault.patch, job.steps):
            if job.task == "pretrain":
                pretraining.pretrain(job.recipe, data=str(where / fault.data), overrides=settings, out=out)
            else:
                train_data = f"{where / ('labelled' if fault.data == 'plain' else fault.data)}{ending}"
                valid = f"{where / fault.valid}{ending}"
                finetuning.finetune(job.recipe, None, train_data, valid, settings, out)
    except Interrupted:
        raise
    except RunStopped as stopped:
        error = str(stopped)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    shutil.rmtree(out / "model", ignore_errors=True)
    done.write_text(json.dumps(asdict(job) | {"stopped": error}))


def judge(job: Job, folder: Path) -> Verdict:
    """The verdict on a run at its end."""
    recipe = load_recipe(Run(folder).recipe)
    metrics = Run(folder).metrics
    if FAULTS.get(job.fault, Fault(job.task, [])).patch != "slow":
        metrics = [line | {"data_wait": 0.0} for line in metrics]
    return judge_run(metrics, recipe)


def is_named(job: Job, verdict: Verdict) -> bool:
    """Whether the verdict names the fault of the run."""
    words = [str(finding) for finding in verdict.findings]
    return any(name in text for name in FAULTS[job.fault].named for text in words)


@dataclass
class Row:
    """A line of the table: by modality, the runs, and those of which the verdict is right."""

    right: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)


def print_table(jobs: Sequence[Job], out: Path) -> None:
    """The table of docs/health.md, and what the verdict is wrong about."""
    rows: dict[str, Row] = {name: Row() for name in (*FAULTS, "healthy")}
    wrong = []
    for job in jobs:
        folder = out / job.name
        if not (folder / "job.json").exists():
            continue
        verdict, row = judge(job, folder), rows[job.fault or "healthy"]
        right = is_named(job, verdict) if job.fault else verdict.state not in ("watch", "collapsed")
        row.made[job.modality] += 1
        row.right[job.modality] += right
        row.states[verdict.state] += 1
        if not right:
            size = f"width {job.width}, {job.layers} layers, {job.steps} steps"
            wrong.append(f"{job.name} ({size}): {str(verdict)[:600]}")
    print(f"| run | {' | '.join(MODALITIES)} | verdicts |\n|---|{'---|' * len(MODALITIES)}---|")
    for name, row in rows.items():
        cells = [f"{row.right[m]} of {row.made[m]}" if row.made[m] else "not run" for m in MODALITIES]
        states = ", ".join(f"{state} {count}" for state, count in row.states.most_common())
        print(f"| {name} | {' | '.join(cells)} | {states} |")
    faults = [row for name, row in rows.items() if name != "healthy"]
    print(
        f"\nnamed: {sum(r.right.total() for r in faults)} of {sum(r.made.total() for r in faults)} faults; left alone: "
        f"{rows['healthy'].right.total()} of {rows['healthy'].made.total()} healthy runs; "
        f"{sum(r.made.total() for r in rows.values())} of {len(jobs)} runs were made"
    )
    print("\nwrong:", *wrong, sep="\n- ")


def main() -> None:
    """Make runs while there is time, and print the table of all that are made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25, help="time for training (default: 25)")
    parser.add_argument("--part", default="1/1", help="train this part of the runs, such as 2/4, beside other processes")
    given = parser.parse_args()
    jobs, end = sample_jobs(), time.monotonic() + 60 * given.minutes
    number, parts = map(int, given.part.split("/"))
    torch.set_num_threads(1)
    if given.minutes:
        write_data(given.out / "data")
    for job in jobs[number - 1 :: parts]:
        if time.monotonic() > end:
            break
        try:
            train(job, given.out / "data", given.out / job.name)
        except UserError as error:  # it has no such setting
            print(f"{job.name}: {error}", file=sys.stderr)
    print_table(jobs, given.out)


if __name__ == "__main__":
    main()
