"""The demo: pre-train a tiny model on images, text, speech and signals from embedded data, and measure what it learned."""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data2vec.atomic_io import write_json
from data2vec.demo.datasets import DatasetFolders, write_images, write_speech, write_text, write_watch
from data2vec.demo.espeak import require_espeak
from data2vec.demo.watch import require_watch_data
from data2vec.errors import UserError
from data2vec.model import Model, load_model_folder
from data2vec.report.curves import LOSS, RANK, STD, plot_curves
from data2vec.report.figures import SHOWN, plot_components, plot_masks
from data2vec.report.samples import encoder_features, load_sample
from data2vec.report.style import save_png
from data2vec.run_dir import Run
from data2vec.settings import JsonDict
from data2vec.tasks.probing.probe import Probe, probe, untrained_encoder
from data2vec.train.pretrain import pretrain


@dataclass(frozen=True)
class DemoRun:
    """One of the four pre-training runs."""

    recipe: str
    data: Callable[[Path], DatasetFolders]
    overrides: JsonDict


@dataclass(frozen=True)
class DemoResult:
    """The measurements of one run. Accuracies are those of the best layer of the trained and of the untrained encoder."""

    modality: str
    loss_first: float
    loss_last: float
    untrained: float
    trained: float
    untrained_knn: float
    trained_knn: float
    target_std: float
    seconds: float


def run_demo(out: str | Path = "demo") -> list[DemoResult]:
    """Pre-train, probe and plot each modality in its own folder under `out`, and print a table of the results.

    The output of an earlier demo is overwritten. Raises UserError if `out` holds anything else, or if `espeakng-loader` or
    `seglearn` is not installed."""
    require_espeak()
    require_watch_data()
    out = Path(out)
    marker = out / "demo.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not marker.exists())):
        raise UserError(f"--out {out}: exists and is not the output of an earlier demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(marker, [])
    rows = []
    for name, demo_run in demo_runs().items():
        print(f"{name}: {demo_run.recipe}", flush=True)
        shutil.rmtree(out / name, ignore_errors=True)
        rows.append(_train_and_measure(name, demo_run, out / name))
        write_json(marker, [asdict(row) for row in rows])
    print(format_table(rows))
    print(f"\nFigures of each run in {out}/: curves.png, masks.png, components.png.")
    return rows


def demo_runs() -> dict[str, DemoRun]:
    """The four runs: tiny recipes, with overrides that make them take minutes on two cores."""
    common = {"train.device": "cpu", "train.steps": 500, "data.workers": 1}
    images = {"data.crop_scale": [0.6, 1.0], "data.flip": 0, "data.color_jitter": 0, "data.micro_batch_size": 64}
    shared = {"objective.teacher.local_encoder": "shared", "objective.teacher.position_encoder": "shared"}
    text = {"modality.vocab_size": 2048, "modality.positions": "learned", "data.block_size": 64}
    text |= {"data.batch_size": 32, "data.micro_batch_size": 32}
    speech = shared | {"data.max_seconds": 2}
    return {
        "images": DemoRun("vision/v1-tiny", write_images, common | images),  # no flip: a mirrored digit is not a digit
        "text": DemoRun("text/v1-tiny", write_text, common | text),
        "speech": DemoRun("speech/v2-tiny", write_speech, common | speech),
        "signals": DemoRun("signal/v2-tiny", write_watch, common | {"data.hop_seconds": 2}),
    }


def format_table(rows: list[DemoResult]) -> str:
    """A line per modality, and what did not improve."""
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
    lines.append("\nProbes: held-out accuracy of simple classifiers on frozen features of each encoder's best layer.")
    for row in rows:
        worse = [name for name in ("linear probe", "kNN") if not _improved(row, name)]
        if worse:
            lines.append(f"Not improved on {row.modality} by this short training: {', '.join(worse)}.")
    return "\n".join(lines)


def _improved(row: DemoResult, measure: str) -> bool:
    return row.trained > row.untrained if measure == "linear probe" else row.trained_knn > row.untrained_knn


def _train_and_measure(name: str, demo_run: DemoRun, out: Path) -> DemoResult:
    start = time.monotonic()
    folders = demo_run.data(out / "data")
    run = pretrain(demo_run.recipe, data=str(folders.train), overrides=demo_run.overrides, out=out / "run")
    model = load_model_folder(run.folder)
    probed = probe(model, folders.labelled, folders.heldout, out=run.folder / "probe.json")
    print(probed, flush=True)
    _save_figures(model, run, str(folders.train), out)
    return _result(name, run, probed, time.monotonic() - start)


def _result(name: str, run: Run, probed: Probe, seconds: float) -> DemoResult:
    first, last = run.metrics[0], run.metrics[-1]
    before, after, before_knn, after_knn = (
        getattr(probed.best(measure), measure) for measure in ("untrained_linear", "linear", "untrained_knn", "knn")
    )
    return DemoResult(name, first["loss"], last["loss"], before, after, before_knn, after_knn, last["target_std"], seconds)


def _save_figures(model: Model, run: Run, data: str, out: Path) -> None:
    save_png(plot_curves(run.metrics, (LOSS, STD, RANK), 12, 4), out / "curves.png")
    sample, objective = load_sample(model.modality, data), model.recipe.objective
    mask = np.stack([batch.mask.numpy() for batch in sample.masked_batches(objective.mask, 1, SHOWN)], 1)
    save_png(plot_masks(sample.renderer, mask, 8), out / "masks.png", "Grey: masked for the student")
    before, after = (encoder_features(encoder, sample.batch) for encoder in (untrained_encoder(model.recipe), model.encoder))
    title = "First three principal components of the features, as red, green and blue"
    save_png(plot_components(sample.renderer, before, after, 8), out / "components.png", title)
