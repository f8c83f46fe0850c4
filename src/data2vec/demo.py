"""The main job on embedded data: pre-train a tiny model on images, text and speech, and see what it has learned."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data2vec import model as models
from data2vec.data import embedded
from data2vec.data.embedded import Folders
from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.report import pictures
from data2vec.tasks.probe import Probe, probe, untrained
from data2vec.train.folder import Run
from data2vec.train.loop import pretrain


@dataclass(frozen=True)
class Part:
    """One of the three runs."""

    recipe: str
    data: Callable[[Path], Folders]
    pictures: Callable[[Model, str, Path], None]
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What came of one run. Accuracies are of the best layer, the trained and the untrained encoder's own."""

    modality: str
    loss_first: float
    loss_last: float
    untrained: float
    trained: float
    untrained_knn: float
    trained_knn: float
    target_std: float
    seconds: float


def run(out: str | Path = "demo") -> list[Row]:
    """Pre-train, probe and draw for each modality into a folder of its own in `out`, and print one table.

    A folder that an earlier demo filled is used again. Raises UserError when `out` holds something else."""
    out = Path(out)
    marker = out / "demo.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not marker.exists())):
        raise UserError(f"--out {out}: is there already and no earlier demo's; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text("[]\n", encoding="utf-8")
    rows = []
    for name, part in parts().items():
        print(f"{name}: {part.recipe}", flush=True)
        shutil.rmtree(out / name, ignore_errors=True)
        rows.append(_go(name, part, out / name))
        marker.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"\nPictures of each run are in {out}/: curves.png, masks.png, and for images components.png.")
    return rows


def parts() -> dict[str, Part]:
    """The three runs, with what makes the tiny recipes small enough for minutes on two cores."""
    common = {"train.device": "cpu", "train.steps": 500, "data.workers": 1}
    images = {"data.crop_scale": [0.6, 1.0], "data.flip": 0, "data.color_jitter": 0, "data.micro_batch_size": 64}
    shared = {"objective.teacher.features": "shared", "objective.teacher.positions": "shared"}
    text = shared | {"modality.vocab_size": 2048, "data.block_size": 64, "data.micro_batch_size": 32, "train.lr": 1e-3}
    speech = shared | {"data.max_seconds": 2}
    return {
        "images": Part("vision/v1-tiny", embedded.images, _draw_images, common | images),  # a mirrored digit is none
        "text": Part("text/v1-tiny", embedded.text, _draw_text, common | text),
        "speech": Part("speech/v2-tiny", embedded.speech, _draw_speech, common | speech),
    }


def table(rows: list[Row]) -> str:
    """One line a modality, and a word on what is to be seen."""
    lines = [
        f"{'':10}{'loss':^18}{'linear probe':^20}{'kNN':^20}{'target':>8}{'time':>8}",
        f"{'':10}{'first → last':^18}{'untrained → trained':^20}{'untrained → trained':^20}{'std':>8}{'s':>8}",
    ]
    for row in rows:
        lines.append(
            f"{row.modality:10}{f'{row.loss_first:.3f} → {row.loss_last:.3f}':^18}"
            f"{f'{row.untrained:.1%} → {row.trained:.1%}':^20}{f'{row.untrained_knn:.1%} → {row.trained_knn:.1%}':^20}"
            f"{row.target_std:8.2f}{row.seconds:8.0f}"
        )
    lines.append(
        "\nProbes are the accuracy of simple classifiers on frozen features, on held-out data, of each encoder's best layer."
    )
    for row in rows:
        worse = [name for name in ("linear probe", "kNN") if not _better(row, name)]
        if worse:
            lines.append(f"In {row.modality} so little training did not make better: {', '.join(worse)}.")
    return "\n".join(lines)


def _better(row: Row, measure: str) -> bool:
    return row.trained > row.untrained if measure == "linear probe" else row.trained_knn > row.untrained_knn


def _go(name: str, part: Part, out: Path) -> Row:
    start = time.monotonic()
    folders = part.data(out / "data")
    run = pretrain(part.recipe, data=str(folders.train), overrides=part.overrides, out=out / "run")
    model = models.load(run.folder)
    found = probe(model, folders.labelled, folders.heldout, out=run.folder / "probe.json")
    print(found, flush=True)
    pictures.curves(run.folder / "metrics.jsonl", out / "curves.png")
    part.pictures(model, str(folders.train), out)
    return _row(name, run, found, time.monotonic() - start)


def _row(name: str, run: Run, found: Probe, seconds: float) -> Row:
    first, last = run.metrics[0], run.metrics[-1]
    before, after, before_knn, after_knn = (
        getattr(found.best(measure), measure) for measure in ("untrained_linear", "linear", "untrained_knn", "knn")
    )
    return Row(name, first["loss"], last["loss"], before, after, before_knn, after_knn, last["target_std"], seconds)


def _masked(model: Model, where: str, rows: list[int]) -> tuple[Any, Any, np.ndarray]:
    """Examples of the training data, loaded as in training but not augmented, their batch, and masks (rows, T) for it."""
    examples = model.modality.examples(model.modality.rows(where))
    limit = float(examples.costs[rows].min())
    batch = model.modality.collate([examples.load(row, limit, None) for row in rows])
    mask = model.recipe.objective.mask.draw(len(rows), model.modality.grid(batch), np.random.default_rng(0))
    return examples, batch, mask.hidden


def _draw_images(model: Model, where: str, out: Path) -> None:
    _, batch, hidden = _masked(model, where, list(range(0, 1500, 170)))
    images, grid = batch["input"], model.modality.grid(batch)
    pictures.masked_images(images.numpy(), hidden.reshape(-1, *grid), out / "masks.png")
    with torch.inference_mode():
        before, after = (
            encoder(batch)[0].reshape(len(images), *grid, -1).numpy() for encoder in (untrained(model.recipe), model.encoder)
        )
    pictures.components(images.numpy(), before, after, out / "components.png")


def _draw_text(model: Model, where: str, out: Path) -> None:
    examples, batch, hidden = _masked(model, where, [100])
    tokens = [examples.tokenizer.decode([token], skip_special_tokens=False) for token in batch["input"][0].tolist()]
    pictures.masked_text(tokens, hidden[0], out / "masks.png")


def _draw_speech(model: Model, where: str, out: Path) -> None:
    _, batch, hidden = _masked(model, where, [0])
    seconds = model.modality.seconds_per_position
    assert seconds is not None
    pictures.masked_speech(batch["input"][0].numpy(), hidden[0], seconds, out / "masks.png")
