"""The demo: pre-train a tiny model of each modality on embedded data, and measure what it learned."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data2vec.atomic_io import write_json
from data2vec.demo.datasets import DatasetFolders, write_images, write_speech, write_text, write_videos, write_watch
from data2vec.demo.espeak import require_espeak
from data2vec.demo.watch import require_watch_data
from data2vec.errors import UserError, did_you_mean
from data2vec.model import Model, load_model_folder
from data2vec.report.curves import LOSS, RANK, STD, plot_curves
from data2vec.report.figures import SHOWN, plot_components, plot_masks
from data2vec.report.samples import encoder_features, load_sample
from data2vec.report.style import save_png
from data2vec.run_dir import Run, part_run
from data2vec.settings import JsonDict
from data2vec.tasks.probing.probe import Probe, probe, untrained_encoder
from data2vec.train.pretrain import pretrain

Writer = Callable[[Path], DatasetFolders]
DEFAULT = ("images", "text", "speech", "signals")
"""The runs of a demo without names."""
NEEDS: Mapping[Writer, Callable[[], object]] = {write_speech: require_espeak, write_watch: require_watch_data}
"""What raises UserError if a package is missing that data is made with."""


@dataclass(frozen=True)
class DemoRun:
    """A pre-training run."""

    recipe: str
    data: Writer | Mapping[str, Writer]
    """Writes the data; in a joint run that of each part, by name."""
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


def run_demo(out: str | Path = "demo", names: Sequence[str] = DEFAULT) -> list[DemoResult]:
    """Pre-train, probe and plot each modality in its own folder under `out`, and print a table of the results.

    `names`: keys of `demo_runs`. The output of an earlier demo is overwritten. Raises UserError for an unknown name, if `out`
    holds anything else, or if `espeakng-loader` or `seglearn` is needed and not installed."""
    runs, names = demo_runs(), list(dict.fromkeys(names))
    if unknown := [name for name in names if name not in runs]:
        raise UserError(f"demo: {unknown[0]!r} is none of {', '.join(runs)}{did_you_mean(unknown[0], runs)}")
    for name in names:
        for write in _writers(runs[name]).values():
            if write in NEEDS:
                NEEDS[write]()
    out = Path(out)
    marker = out / "demo.json"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not marker.exists())):
        raise UserError(f"--out {out}: exists and is not the output of an earlier demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(marker, [])
    rows: list[DemoResult] = []
    for name in names:
        print(f"{name}: {runs[name].recipe}", flush=True)
        shutil.rmtree(out / name, ignore_errors=True)
        rows += _train_and_measure(name, runs[name], out / name)
        write_json(marker, [asdict(row) for row in rows])
    print(format_table(rows))
    print(f"\nFigures of each run in {out}/: curves.png, masks.png, components.png.")
    return rows


def demo_runs() -> dict[str, DemoRun]:
    """The runs by name: tiny recipes, with overrides that make them take minutes on two cores."""
    common: JsonDict = {"train.device": "cpu", "data.workers": 1, "train.steps": 500}
    images: JsonDict = {"data.crop_scale": [0.6, 1.0], "data.flip": 0, "data.color_jitter": 0, "data.micro_batch_size": 64}
    shared = {"objective.teacher.local_encoder": "shared", "objective.teacher.position_encoder": "shared"}
    text = {"modality.vocab_size": 2048, "data.block_size": 64, "data.batch_size": 32, "data.micro_batch_size": 32}
    speech = shared | {"data.max_seconds": 2}
    sound = {"data.max_seconds": 2, "data.batch_seconds": 32, "data.micro_batch_seconds": 32, "train.steps": 300}
    video = {"data.batch_size": 16, "data.micro_batch_size": 16, "train.steps": 400}
    parts: dict[str, JsonDict] = {
        "speech": {"data.max_seconds": 2},
        "vision": images | {"data.batch_size": 32, "data.micro_batch_size": 32},
    }
    joint: JsonDict = {"modality.parts.text": None, "modality.shares": dict.fromkeys(parts, 0.5), "train.device": "cpu"}
    for part, overrides in parts.items():
        joint |= {f"modality.parts.{part}.{key}": value for key, value in (overrides | {"data.workers": 1}).items()}
    return {
        "images": DemoRun("vision/v1-tiny", write_images, common | images),  # no flip: a mirrored digit is not a digit
        "text": DemoRun("text/v1-tiny", write_text, common | text),
        "speech": DemoRun("speech/v2-tiny", write_speech, common | speech),
        "signals": DemoRun("signal/v2-tiny", write_watch, common | {"data.hop_seconds": 2}),
        "sound": DemoRun("sound/v2-tiny", write_speech, common | sound),
        "videos": DemoRun("video/v2-tiny", write_videos, common | video),
        "joint": DemoRun("joint/v2-tiny", {"speech": write_speech, "vision": write_images}, joint | {"train.steps": 600}),
    }


def _writers(demo_run: DemoRun) -> Mapping[str, Writer]:
    """What writes the data of each part; "" is the part of a run of one modality."""
    return demo_run.data if isinstance(demo_run.data, Mapping) else {"": demo_run.data}


def format_table(rows: list[DemoResult]) -> str:
    """A line per modality, and what did not improve."""
    lines = [
        f"{'':14}{'loss':^18}{'linear probe':^20}{'kNN':^20}{'target':>8}{'time':>8}",
        f"{'':14}{'first → last':^18}{'untrained → trained':^20}{'untrained → trained':^20}{'std':>8}{'s':>8}",
    ]
    for row in rows:
        lines.append(
            f"{row.modality:14}{f'{row.loss_first:.3f} → {row.loss_last:.3f}':^18}"
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


def _train_and_measure(name: str, demo_run: DemoRun, out: Path) -> list[DemoResult]:
    start = time.monotonic()
    folders = {part: write(out / "data" / part) for part, write in _writers(demo_run).items()}
    data = {f"modality.parts.{part}.data.train" if part else "data.train": str(of.train) for part, of in folders.items()}
    whole = pretrain(demo_run.recipe, overrides=demo_run.overrides | data, out=out / "run")
    rows = []
    for part, of in folders.items():
        run = part_run(whole, part) if part else whole
        model = load_model_folder(run.folder)
        probed = probe(model, of.labelled, of.heldout, out=run.folder / "probe.json")
        print(probed, flush=True)
        _save_figures(model, run, str(of.train), out / part)
        rows.append(_result(f"{name}/{part}" if part else name, run, probed, time.monotonic() - start))
    return rows


def _result(name: str, run: Run, probed: Probe, seconds: float) -> DemoResult:
    first, last = run.metrics[0], run.metrics[-1]
    before, after, before_knn, after_knn = (
        getattr(probed.best(measure), measure) for measure in ("untrained_linear", "linear", "untrained_knn", "knn")
    )
    return DemoResult(name, first["loss"], last["loss"], before, after, before_knn, after_knn, last["target_std"], seconds)


def _save_figures(model: Model, run: Run, data: str, out: Path) -> None:
    out.mkdir(exist_ok=True)
    save_png(plot_curves(run.metrics, (LOSS, STD, RANK), 12, 4), out / "curves.png")
    sample, objective = load_sample(model.modality, data), model.recipe.objective
    mask = np.stack([batch.mask.numpy() for batch in sample.masked_batches(objective.mask, 1, SHOWN)], 1)
    save_png(plot_masks(sample.renderer, mask, 8), out / "masks.png", "Grey: masked for the student")
    before, after = (encoder_features(encoder, sample.batch) for encoder in (untrained_encoder(model.recipe), model.encoder))
    title = "First three principal components of the features, as red, green and blue"
    save_png(plot_components(sample.renderer, before, after, 8), out / "components.png", title)
