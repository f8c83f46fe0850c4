"""Every entry point that opens what a stranger may have written, as a command line.

An entry point gets the path of a hostile input, the models to use beside it, and an empty folder to write to. It returns the
arguments of `data2vec`; `KINDS` says which kinds of input it is tried with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from hostile.corpus import DATA, Hostile, Signal

PRETRAIN: Mapping[Signal, tuple[str, ...]] = {
    "image": ("vision/v1-tiny", "data.batch_size=4", "data.micro_batch_size=4"),
    "audio": ("speech/v1-tiny", "data.batch_seconds=4", "data.micro_batch_seconds=4", "data.max_seconds=1"),
    "text": ("text/v1-tiny", "data.batch_size=4", "data.micro_batch_size=4", "data.block_size=32", "modality.vocab_size=300"),
}
"""The recipe of a signal, with a batch for a few examples."""
SMALL = (
    *("encoder.width=16", "encoder.layers=2", "encoder.heads=2", "encoder.ffn_width=32", "objective.target.top_k=2"),
    *("train.device=cpu", "train.steps=2", "log.every=1", "data.workers=0", "data.max_corrupt=0.5", "log.report=false"),
)
RUN = ("train.steps=8", "train.checkpoint_every=4", "train.schedule={name: tri_stage, warmup: 0, hold: 1}")
"""Of the run whose folder is made hostile."""


class Models(NamedTuple):
    """Trained models to use beside hostile data, by signal."""

    encoder: Mapping[Signal, Path]
    finetuned: Mapping[Signal, Path]
    images: Path
    """What the run in `HOSTILE_RUN` was trained on."""


Arguments = Callable[[Hostile, Path, Models, Path], list[str]]


def _pretrain(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    tokenizer = [f"data.tokenizer={models.encoder['text']}"] if case.signal == "text" else []
    return ["pretrain", *PRETRAIN[case.signal], "--out", str(out / "run"), f"data.train={path}", *SMALL, *tokenizer]


def _streamed(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return [*_pretrain(case, path, models, out), "data.streaming=true", "data.num_streams=1", "data.shuffle_buffer=16"]


def _probe(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["probe", str(models.encoder[case.signal]), "--data", str(path), "data.max_corrupt=0.5"]


def _features(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["features", str(models.encoder[case.signal]), str(path), "--out", str(out / "features.npy"), "--pool"]


def _evaluate(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    label = ["data.label=transcript"] if case.signal == "audio" else []
    return ["evaluate", str(models.finetuned[case.signal]), f"data.valid={path}", "data.valid_split=all", *label]


def _predict(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["predict", str(models.finetuned[case.signal]), str(path), "--split", "all", "--out", str(out / "predicted.jsonl")]


def _plan(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["plan", *_pretrain(case, path, models, out)[1:]]


def _check(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["check", str(path), "--workers", "0", "--json", str(out / "check.json"), "--kind", case.signal]


def _transcribe(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    files = sorted(str(file) for file in path.rglob("evil*")) if path.is_dir() else [str(path)]
    return ["transcribe", str(models.finetuned["audio"]), *files]


def _good(case: Hostile, out: Path) -> Path:
    from hostile.corpus import good

    return good(out / "good", case.signal)


def _model_features(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["features", str(path), str(_good(case, out)), "--out", str(out / "features.npy"), "--pool"]


def _model_probe(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["probe", str(path), "--data", str(_good(case, out))]


def _model_evaluate(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["evaluate", str(path), f"data.valid={_good(case, out)}", "data.valid_split=all"]


def _model_init(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return [*_pretrain(case, _good(case, out), models, out), f"init={path}"]


def _model_convert(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["convert", str(path), str(out / "converted"), "--to", "data2vec", "--source", "s", "--license", "mit"]


def _model_adapt(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    data = ["--data", str(_good(case, out)), f"data.valid={_good(case, out)}", *PRETRAIN[case.signal][1:]]
    return ["adapt", str(path), *data, "--out", str(out / "run"), "--steps", "2", "data.workers=0", "log.report=false"]


def _model_verify(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["verify", str(path)]


def _model_transcribe(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["transcribe", str(path), str(next(_good(case, out).rglob("*.wav"), out))]


def _recipe_pretrain(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["pretrain", str(path), "--out", str(out / "run"), f"data.train={_good(case, out)}"]


def _recipe_finetune(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["finetune", str(path), "--out", str(out / "run"), f"data.train={_good(case, out)}"]


def _recipe_show(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["recipes", str(path)]


def _run_report(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    return ["report", str(path)]


def _run_resume(case: Hostile, path: Path, models: Models, out: Path) -> list[str]:
    data = f"data.train={models.images}"
    return ["pretrain", *PRETRAIN[case.signal], "--out", str(path), "--resume", data, *SMALL, *RUN, "train.steps=10"]


MODELS, RECIPES, RUNS = ("models", "official files"), ("settings",), ("runs",)
ENTRIES: dict[str, tuple[Arguments, tuple[str, ...]]] = {
    "check": (_check, DATA),
    "plan": (_plan, DATA),
    "pretrain": (_pretrain, DATA),
    "pretrain, streamed": (_streamed, DATA),
    "probe": (_probe, DATA),
    "features": (_features, DATA),
    "evaluate": (_evaluate, DATA),
    "predict": (_predict, DATA),
    "transcribe": (_transcribe, ("audio",)),
    "features of a model": (_model_features, (*MODELS, *RUNS)),
    "probe a model": (_model_probe, (*MODELS, *RUNS)),
    "evaluate a model": (_model_evaluate, (*MODELS, *RUNS)),
    "init": (_model_init, (*MODELS, *RUNS)),
    "convert": (_model_convert, (*MODELS, *RUNS)),
    "adapt": (_model_adapt, (*MODELS, *RUNS)),
    "verify": (_model_verify, MODELS),
    "transcribe with a model": (_model_transcribe, MODELS),
    "pretrain a recipe": (_recipe_pretrain, RECIPES),
    "finetune a recipe": (_recipe_finetune, RECIPES),
    "recipes": (_recipe_show, RECIPES),
    "report": (_run_report, RUNS),
    "resume": (_run_resume, RUNS),
}
"""The arguments of each entry point, and the kinds of input it is tried with."""


def entries_of(case: Hostile) -> list[str]:
    """The names of the entry points that a hostile input is tried at."""
    return [name for name, (_, kinds) in ENTRIES.items() if case.kind in kinds]
