"""The main job on embedded data: pre-train a tiny model on images, text and speech, and see what it has learned."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data2vec.demo import datasets as embedded
from data2vec.demo.datasets import Folders
from data2vec.errors import UserError
from data2vec.model import Model, load_model_folder
from data2vec.report import curves
from data2vec.report import panels as pictures
from data2vec.report import samples as inside
from data2vec.report import style as figure
from data2vec.run_dir import Run
from data2vec.tasks.probing.probe import Probe, probe, untrained
from data2vec.train.trainer import pretrain


@dataclass(frozen=True)
class Part:
    """One of the three runs."""

    recipe: str
    data: Callable[[Path], Folders]
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
    print(f"\nPictures of each run are in {out}/: curves.png, masks.png, components.png.")
    return rows


def parts() -> dict[str, Part]:
    """The three runs, with what makes the tiny recipes small enough for minutes on two cores."""
    common = {"train.device": "cpu", "train.steps": 500, "data.workers": 1}
    images = {"data.crop_scale": [0.6, 1.0], "data.flip": 0, "data.color_jitter": 0, "data.micro_batch_size": 64}
    shared = {"objective.teacher.local_encoder": "shared", "objective.teacher.position_encoder": "shared"}
    text = shared | {"modality.vocab_size": 2048, "data.block_size": 64, "data.micro_batch_size": 32, "train.lr": 1e-3}
    speech = shared | {"data.max_seconds": 2}
    return {
        "images": Part("vision/v1-tiny", embedded.images, common | images),  # a mirrored digit is none
        "text": Part("text/v1-tiny", embedded.text, common | text),
        "speech": Part("speech/v2-tiny", embedded.speech, common | speech),
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
    model = load_model_folder(run.folder)
    found = probe(model, folders.labelled, folders.heldout, out=run.folder / "probe.json")
    print(found, flush=True)
    _draw(model, run, str(folders.train), out)
    return _row(name, run, found, time.monotonic() - start)


def _row(name: str, run: Run, found: Probe, seconds: float) -> Row:
    first, last = run.metrics[0], run.metrics[-1]
    before, after, before_knn, after_knn = (
        getattr(found.best(measure), measure) for measure in ("untrained_linear", "linear", "untrained_knn", "knn")
    )
    return Row(name, first["loss"], last["loss"], before, after, before_knn, after_knn, last["target_std"], seconds)


def _draw(model: Model, run: Run, data: str, out: Path) -> None:
    panels = (curves.LOSS, curves.STD, curves.RANK)
    figure.save(curves.draw(run.metrics, panels, 12, 4), out / "curves.png")
    sample, objective = inside.sample(model.modality, data), model.recipe.objective
    hidden = next(sample.masked(objective.mask, pictures.SHOWN, 1)).mask.view(len(sample.batch), pictures.SHOWN, -1)
    figure.save(pictures.masks(sample.canvas, hidden.numpy(), 8), out / "masks.png", "Grey: what the student does not see")
    before, after = (inside.features(encoder, sample.batch) for encoder in (untrained(model.recipe), model.encoder))
    title = "First three principal components of the features, as red, green and blue"
    figure.save(pictures.components(sample.canvas, before, after, 8), out / "components.png", title)
