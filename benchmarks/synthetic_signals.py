"""Sanity rows of docs/results.md on synthetic EEG and ECG, whose sources are known: the grid layout, trained and probed.

    python benchmarks/synthetic_signals.py OUT [--only eeg|ecg] [--steps 300] [--seeds 1]

EEG: background of 1/f, alike in near electrodes, at eight places; at rest nothing else, or bursts of alpha from the back of the
head, or the same bursts from its front. ECG: a turning dipole seen by 12 leads; normal, wide QRS, raised ST, or irregular beats
without a P wave. People differ in frequency, strength and axis; the classifiers are tested on other people than they, and the
encoder, were trained on. They see the mean and the standard deviation over time of each channel, of every block; beside the
untrained encoder stand powers of bands of each channel. None of this is a real signal: the
rows say that the modality works from files to scores, not what it is worth. What is done is kept in OUT.
"""

import argparse
import csv
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import data2vec
from data2vec.data.dataset import ExampleDataset
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder, padding_invariant
from data2vec.tasks.probing.classifiers import classifier_accuracies
from data2vec.tasks.probing.probe import untrained_encoder

RATE, SECONDS, WINDOW = 100, 32, 4
PEOPLE, HELD_OUT, EACH = 18, 6, 2
"""People in all and held out; recordings of each class of a person."""
COMMON: Mapping[str, Any] = {
    "modality.layout": "grid",
    "modality.window_seconds": WINDOW,
    "modality.patch": 50,
    "objective.decoder.kernel": [3, 3],
    "data.batch_size": 16,
    "data.micro_batch_size": 16,
    "log.report": False,
    "log.every": 50,
}
Generate = Callable[[str, np.random.Generator, np.random.Generator], np.ndarray]
"""From a class, what is random of a person and what is random of a recording, to samples (S, C)."""

ELECTRODES = {
    "Fp1": (-0.3, 0.9), "Fp2": (0.3, 0.9), "C3": (-0.5, 0.0), "C4": (0.5, 0.0),
    "P3": (-0.4, -0.5), "P4": (0.4, -0.5), "O1": (-0.3, -0.9), "O2": (0.3, -0.9),
}  # fmt: skip
"""Places on the head, right and front."""
SOURCES = {"rest": None, "occipital": (0.0, -0.95), "frontal": (0.0, 0.95)}
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
AXES = np.array(
    [
        (1, 0, 0),
        (0.5, 0.9, 0),
        (-0.3, 0, -0.9),
        (0.2, 0, -1),
        (0.5, 0.2, -0.8),
        (0.8, 0.3, -0.5),
        (0.9, 0.3, 0),
        (0.9, 0.3, 0.3),
    ]
)
"""Of I, II and V1 to V6: left, down, back."""
RHYTHMS = ("normal", "wide", "raised", "irregular")


def main() -> None:
    """Make the data, train, and print a row of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=("eeg", "ecg"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    rows: dict[str, tuple[tuple[str, ...], Generate, dict[str, Any]]] = {
        "eeg": (tuple(SOURCES), eeg, {"modality.channel_identity": "position", "modality.filter": {"low": 4, "high": 30}}),
        "ecg": (RHYTHMS, ecg, {"modality.scale": {"by": "recording"}}),
    }
    for name, (classes, generate, settings) in rows.items():
        if arguments.only in (None, name):
            for seed in arguments.seeds:
                print(json.dumps(row(arguments.out, name, classes, generate, settings, arguments.steps, seed)), flush=True)


def row(
    out: Path, name: str, classes: tuple[str, ...], generate: Generate, settings: dict[str, Any], steps: int, seed: int
) -> dict[str, Any]:
    """Accuracies on windows of people who are held out, for every block."""
    folders = write(out / name, name, classes, generate)
    run = out / f"{name}-{steps}-{seed}"
    if not (run / "model").is_dir():
        changes = {**COMMON, **settings, "train.steps": steps, "train.seed": seed}
        resume = (run / "checkpoints").is_dir()
        data2vec.pretrain("signal/v2-tiny", folders[0], {} if resume else changes, run, resume)
    model = data2vec.load(run)
    encoders = {"trained": model.encoder, "untrained": untrained_encoder(model.recipe)}
    sets = [model.modality.labelled(model.modality.rows(str(folder))) for folder in folders]
    labels = [np.array([str(examples.label(index, "label")) for index in range(len(examples))]) for examples in sets]
    found = {}
    for which, encoder in encoders.items():
        fit, held_out = (features(encoder, model.modality, examples) for examples in sets)
        layers = [classifier_accuracies(x, labels[0], y, labels[1], 10, seed) for x, y in zip(fit, held_out, strict=True)]
        found[which] = {"linear": [layer[0] for layer in layers], "knn": [layer[1] for layer in layers]}
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    powers = [band_powers(folder) for folder in folders]
    linear, knn = classifier_accuracies(*powers[0], *powers[1], 10, seed)
    return {
        "data": name, "seed": seed, "steps": steps, "loss": round(last["loss"], 3), "target_std": round(last["target_std"], 2),
        "windows": len(labels[1]), **found, "band powers": {"linear": linear, "knn": knn},
    }  # fmt: skip


@torch.inference_mode()
def features(encoder: Encoder, modality: Modality, examples: ExampleDataset) -> np.ndarray:
    """Of every block the mean and the standard deviation over time of each channel, (blocks, n, 2 C D)."""
    encoder, parts = padding_invariant(encoder.eval()), []
    for first in range(0, len(examples), 64):
        batch = modality.collate([examples.load(index) for index in range(first, min(first + 64, len(examples)))])
        x, padding = encoder.local_encoder(batch)
        blocks = torch.stack(list(encoder.states(x, padding))[1:])
        blocks = blocks.view(*blocks.shape[:2], -1, len(modality.settings.names), blocks.shape[-1])
        parts.append(torch.cat([blocks.mean(2), blocks.std(2)], -1).flatten(2))
    return torch.cat(parts, 1).numpy()


def write(out: Path, name: str, classes: tuple[str, ...], generate: Generate) -> tuple[Path, Path]:
    """The recordings of people for training and of those held out, each as a folder of npz files with an index."""
    channels = tuple(ELECTRODES) if name == "eeg" else LEADS
    folders = out / "train", out / "heldout"
    for folder, people in zip(folders, (range(HELD_OUT, PEOPLE), range(HELD_OUT)), strict=True):
        if (folder / "metadata.csv").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        rows = [("file_name", "label", "subject")]
        for person in people:
            for index, label in enumerate(classes * EACH):
                samples = generate(label, np.random.default_rng((7, person)), np.random.default_rng((person, index)))
                file = f"{person:02d}-{index}.npz"
                unit = "uV" if name == "eeg" else "mV"
                np.savez(folder / file, x=samples.astype(np.float32), fs=RATE, channels=channels, units=[unit] * len(channels))
                rows.append((file, label, str(person)))
        with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file_:
            csv.writer(file_, lineterminator="\n").writerows(rows)
    return folders


def eeg(label: str, person: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """(S, 8) in µV."""
    frequency, strength, loud = person.uniform(8.5, 11.5), person.uniform(8, 20), person.uniform(0.7, 1.4)
    places = np.array(list(ELECTRODES.values()))
    near = np.exp(-(np.linalg.norm(places[:, None] - places, axis=2) ** 2))
    samples = 12 * loud * pink(rng, len(places)) @ np.linalg.cholesky(near + 0.05 * np.eye(len(places))).T
    source = SOURCES[label]
    if source is None:
        return samples
    time, envelope = np.arange(SECONDS * RATE) / RATE, np.zeros(SECONDS * RATE)
    for start in np.arange(0, SECONDS, 2) + rng.uniform(0, 1, SECONDS // 2):
        envelope += np.exp(-0.5 * ((time - start) / rng.uniform(0.2, 0.5)) ** 2)
    phase = 2 * np.pi * np.cumsum(frequency + 0.3 * rng.standard_normal(len(time))) / RATE
    weights = np.exp(-2 * np.linalg.norm(places - source, axis=1) ** 2)
    return samples + strength * np.outer(envelope * np.sin(phase), weights)


def pink(rng: np.random.Generator, channels: int) -> np.ndarray:
    """(S, channels) noise whose power falls as 1/f, of standard deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal((SECONDS * RATE, channels)), axis=0)
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 8))[:, None], axis=0)
    return noise / noise.std(0)


def ecg(label: str, person: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """(S, 12) in mV."""
    beat, size, angle = person.uniform(0.7, 1.1), person.uniform(0.7, 1.4), person.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    wide = 2.2 if label == "wide" else 1.0
    waves = [  # seconds after the beat, width in seconds, and the direction of the dipole in mV
        (-0.17, 0.025, (0.08, 0.1, 0.0)),
        (-0.03 * wide, 0.012 * wide, (-0.1, 0.0, -0.25)),
        (0.0, 0.014 * wide, (0.8, 0.9, 0.2)),
        (0.03 * wide, 0.014 * wide, (0.0, -0.15, 0.5)),
        (0.26, 0.045, (0.2, 0.25, -0.15)),
    ]
    waves = waves[1:] if label == "irregular" else waves
    waves = [*waves, (0.12, 0.05, (0.1, 0.12, -0.1))] if label == "raised" else waves
    time, dipole, at = np.arange(SECONDS * RATE) / RATE, np.zeros((SECONDS * RATE, 3)), rng.uniform(0, 1)
    while at < SECONDS + 1:
        for delay, width, direction in waves:
            dipole += np.exp(-0.5 * ((time - at - delay) / width) ** 2)[:, None] * np.array(direction)
        at += beat * (rng.uniform(0.6, 1.4) if label == "irregular" else rng.normal(1, 0.03))
    seen = size * dipole @ turn.T @ AXES.T
    one, two = seen[:, 0], seen[:, 1]
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    wander = 0.1 * np.sin(2 * np.pi * (0.25 * time + rng.uniform()))[:, None] * rng.uniform(0, 1, 12)
    return np.column_stack([*limbs, seen[:, 2:]]) + wander + 0.03 * rng.standard_normal((len(time), 12))


def band_powers(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the powers of five bands of each channel (n, 5 C) of all windows, and their classes (n,)."""
    features, classes = list[np.ndarray](), list[str]()
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            with np.load(folder / line["file_name"]) as saved:
                windows = saved["x"].reshape(-1, WINDOW * RATE, saved["x"].shape[1])
            power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
            edges = [round(hertz * WINDOW) for hertz in (0.5, 4, 8, 13, 30, 50)]
            bands = [power[:, low:high].mean(1) for low, high in pairwise(edges)]
            features.append(np.log(np.concatenate(bands, 1)))
            classes += [line["label"]] * len(windows)
    return np.concatenate(features), np.array(classes)


if __name__ == "__main__":
    main()
