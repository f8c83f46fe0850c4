import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
import data2vec.train.finetune as finetune_module
from data2vec import cli
from data2vec.data.tokenizer import save_tokenizer, train_tokenizer
from data2vec.distributed import process_group
from data2vec.errors import UserError
from data2vec.model import Model, blank_model
from data2vec.nn.heads import Classifier
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.recipe.task_settings import SupervisedSettings
from data2vec.tasks.asr.ngram import estimate_ngram
from data2vec.tasks.finetuning.evaluate import Scored
from data2vec.train.finetune import FinetuneTask
from data2vec.train.sweeps.sweep import sweep

ENCODER = {"encoder.width": 32, "encoder.layers": 2, "encoder.heads": 2, "encoder.ffn_width": 64}
SIZES: dict[str, dict[str, Any]] = {
    "speech": {"modality.conv_layers": [[16, 10, 5], [16, 8, 8], [16, 8, 8]], "modality.position_groups": 2},
    "vision": {"modality.image": 32, "modality.patch": 8},
    "text": {"modality.vocab_size": 300, "modality.max_length": 32},
    "sound": {"modality.frames": 128},
}
RUN: dict[str, Any] = {
    "train.precision": "fp32",
    "train.device": "cpu",
    "data.workers": 0,
    "log.every": 1,
    "log.report": False,
}
BATCH: dict[str, dict[str, Any]] = {
    "speech": {"data.batch_seconds": 4.0, "data.micro_batch_seconds": 4.0, "data.max_seconds": 4.0, "data.min_seconds": 0.1},
    "vision": {"data.batch_size": 8, "data.micro_batch_size": 8},
    "text": {"data.batch_size": 8, "data.micro_batch_size": 8, "data.block_size": 32},
    "sound": {"data.batch_seconds": 4.0, "data.micro_batch_seconds": 4.0, "data.max_seconds": 1.0, "data.min_seconds": 0.1},
}
WORDS = ("LO", "HI", "LO HI", "HI LO")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones with transcripts and classes, dark and bright pictures, sentences and pairs of them."""
    import soundfile
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    (root / "speech").mkdir()
    rows = ["file_name,transcript,label,events"]
    for i in range(24):
        words = WORDS[i % 4].split()
        tones = [np.sin(np.arange(4000) * (0.1 if word == "LO" else 0.5)) for word in words]
        soundfile.write(
            root / "speech" / f"{i}.wav", 0.5 * np.concatenate(tones) + 0.01 * rng.standard_normal(4000 * len(words)), 16000
        )
        rows.append(f"{i}.wav,{' '.join(words)},{words[0]},{'|'.join(sorted(set(words)))}")
    (root / "speech" / "metadata.csv").write_text("\n".join(rows) + "\n")
    for i in range(24):
        folder = root / "vision" / ("dark", "bright")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        low = 128 * (i % 2)
        Image.fromarray(rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    lines = ["sentence1\tsentence2\tlabel\tscore"]
    for i in range(24):
        good = i % 2 == 0
        lines.append(f"the film is {'fine' if good else 'poor'}\tit is {'fine' if good else 'poor'}\t{int(good)}\t{5.0 * good}")
    (root / "text.tsv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An untrained model of each modality and version in a folder."""
    root, found = tmp_path_factory.mktemp("models"), {}
    tokenizer = root / "tokenizer"
    tokenizer.mkdir()
    save_tokenizer(train_tokenizer(["the film is fine", "it is poor"] * 9, 300), tokenizer)
    for kind in SIZES:
        for version in ("v1", "v2"):
            torch.manual_seed(0)
            prenet = {"encoder.prenet_layers": 0, "objective.target.top_k": 1}
            changes = ENCODER | SIZES[kind] | prenet | ({"data.tokenizer": str(tokenizer)} if kind == "text" else {})
            model = blank_model(load_recipe(f"{kind}/{version}-{'eat-' * (kind == 'sound' and version == 'v2')}base", changes))
            found[f"{kind}-{version}"] = root / f"{kind}-{version}"
            model.save_pretrained(found[f"{kind}-{version}"])
    return found


def settings(kind: str, steps: int, **more: Any) -> dict[str, Any]:
    return (
        RUN
        | BATCH[kind]
        | {"train.steps": steps, "objective.validate_every": steps}
        | {k.replace("__", "."): v for k, v in more.items()}
    )


def data(root: Path, kind: str) -> str:
    folder = "speech" if kind == "sound" else kind
    return str(root / "text.tsv" if kind == "text" else root / folder)


TASKS = [
    name
    for name in recipe_names()
    if isinstance(load_recipe(name).objective, SupervisedSettings) and not name.startswith(("signal/", "video/"))
]
"""Those of signals and videos are trained by test_signal.py and test_video.py in tests/modalities."""
TWINS = re.compile(r"large|huge|-(10m|1h|100h|960h)$|audioset-2m$|(mnli|qnli|qqp)$")
"""Recipes whose difference from one that is tried by default is in numbers alone."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * bool(TWINS.search(name))) for name in TASKS])
def test_finetune_by_each_shipped_recipe_makes_a_step_and_a_model(
    name: str, labelled: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    kind, _, task = name.partition("/")
    version = "v2" if "v2" in task or "tiny" in task or kind == "sound" else "v1"
    more: dict[str, Any] = {}
    if "audioset" in task:
        more = {"objective.label": "events"}
    if "classify-v1" in task:
        more = {"modality.position_tables": 2}
    if "stsb" in task:
        more = {"objective.label": "score"}
    if "mask" in task or task.startswith("ctc"):
        more = {"objective.channel_mask.length": 4, "objective.freeze_steps": 0}
    where = data(labelled, kind)
    changes = settings(kind, 1) | more
    scratch = name in ("speech/ctc-tiny", "sound/classify-tiny")  # of another shape
    if scratch:
        run = data2vec.finetune(name, None, where, where, changes, tmp_path / "run")
    else:
        run = data2vec.finetune(name, given[f"{kind}-{version}"], where, where, changes, tmp_path / "run")
    (line,) = run.metrics
    assert np.isfinite(line["loss"]) and f"valid_{load_recipe(run.recipe).objective.metric}" in line
    model = data2vec.load(run.folder)
    pretraining = task.partition("-")[0] if scratch else "data2vec" if version == "v1" else "data2vec2"
    assert model.head is not None and model.recipe.objective.name == pretraining


@pytest.mark.slow
def test_ctc_on_tones_learns_and_keeps_the_best_model(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    where = data(labelled, "speech")
    changes = settings(
        "speech", 150, train__lr=3e-3, objective__validate_every=50, objective__channel_mask=None, objective__freeze_steps=5
    )
    changes |= {"objective.mask": None, "train.schedule.warmup": 0.1}
    run = data2vec.finetune("speech/ctc-v1-base-10h", given["speech-v1"], where, where, changes, tmp_path / "run")
    rates = {line["step"]: line["valid_wer"] for line in run.metrics if "valid_wer" in line}
    assert list(rates) == [1, 50, 100, 150] and min(rates.values()) == 0
    found = data2vec.evaluate(run.folder)
    assert found.scores["wer"] == 0 and found.examples == 24
    assert json.loads((run.folder / "evaluation.json").read_text())["scores"]["wer"] == 0
    estimate_ngram(WORDS, 2).save_arpa(tmp_path / "lm.arpa")
    searched = data2vec.evaluate(run.folder, None, {"objective.decode.lm": str(tmp_path / "lm.arpa")}, tune=3)
    assert searched.scores["wer"] == 0 == searched.scores["wer_greedy"]
    assert set(searched.weights) == {"lm_weight", "word_score", "silence_score"} and "best: objective.decode" in str(searched)
    with pytest.raises(UserError, match=r"--tune: needs a beam search"):
        data2vec.evaluate(run.folder, tune=3)
    said = list(data2vec.transcribe(run.folder, [labelled / "speech" / f"{i}.wav" for i in range(4)]))
    assert [each.text for each in said] == list(WORDS)
    assert all(0 <= word.start < word.end <= each.seconds + 0.1 for each in said for word in each.words)


@pytest.mark.parametrize(("kind", "version", "name"), [
    ("vision", "v2", "vision/classify-v2-base"),
    pytest.param("text", "v1", "text/glue-v1-rte", marks=pytest.mark.slow),
    pytest.param("text", "v2", "text/glue-v2-stsb", marks=pytest.mark.slow),
])  # fmt: skip
def test_classification_on_separable_classes_learns(
    kind: str, version: str, name: str, labelled: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    changes = settings(kind, 60, train__lr=2e-3, train__schedule__warmup_steps=5)
    changes |= {"objective.label": "score"} if "stsb" in name else {}
    where = data(labelled, kind)
    run = data2vec.finetune(name, given[f"{kind}-{version}"], where, where, changes, tmp_path / "run")
    metric = load_recipe(run.recipe).objective.metric
    assert run.metrics[-1][f"valid_{metric}"] > 0.95
    head = data2vec.load(run.folder).head
    assert isinstance(head, Classifier)
    assert data2vec.evaluate(run.folder).scores[metric] > 0.95


def test_model_records_the_step_that_was_kept_and_its_scores_and_no_path(
    labelled: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    where = data(labelled, "vision")
    changes = settings("vision", 6, train__lr=3e-2, train__schedule__warmup_steps=0, objective__validate_every=1)
    run = data2vec.finetune("vision/classify-v2-base", given["vision-v2"], where, where, changes, tmp_path / "run")
    best = max(run.metrics, key=lambda line: (line["valid_accuracy"], line["step"]))
    (stage,) = data2vec.load(run.model).training
    assert (stage.task, stage.data, stage.step, stage.steps, stage.chosen_by) == (
        "classify",
        "vision",
        best["step"],
        6,
        "accuracy",
    )
    scores = {score.name: score.value for score in stage.scores}
    assert (scores["accuracy"], scores["chance_accuracy"]) == (best["valid_accuracy"], 0.5)
    assert {(score.data, score.note) for score in stage.scores} == {("vision", "24 examples")}
    card = (run.model / "README.md").read_text()
    assert f"1. Fine-tuned on `vision`: step {best['step']} of 6, the best by accuracy on `vision`." in card.splitlines()
    for form in ("data2vec", "transformers"):
        data2vec.convert(run.model, tmp_path / form, form)  # type: ignore[arg-type]
        assert data2vec.load(tmp_path / form).training == (stage,)
        texts = [path.read_text() for path in (tmp_path / form).iterdir() if path.suffix in (".md", ".json")]
        assert len(texts) > 1 and not [text for text in texts if str(tmp_path) in text or str(labelled) in text]


def test_regression_model_predicts_the_labels_whatever_the_scale_of_training(
    labelled: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    where, name = data(labelled, "text"), "text/glue-v1-stsb"
    changes = settings("text", 2, objective__label="score", train__lr=1e-3, train__schedule__warmup_steps=0)
    run = data2vec.finetune(name, given["text-v1"], where, where, changes, tmp_path / "run")
    assert load_recipe(run.recipe).objective.label_scale == 5
    error = run.metrics[-1]["valid_mean_squared_error"]
    of_run, of_folder = (
        data2vec.evaluate(each, where, {"objective.label": "score"}).scores for each in (run.folder, data2vec.load(run.model))
    )
    assert of_run["mean_squared_error"] == of_folder["mean_squared_error"] == pytest.approx(error, rel=1e-5)
    predicted = [each.value for each in data2vec.predict(run.model, where)]
    assert np.square(np.array(predicted) - np.tile([5.0, 0.0], 12)).mean() == pytest.approx(error, rel=1e-5)
    again = finetune_module.resolve_recipe(name, run.model, where, where, changes, False)
    unset = {key: value for key, value in changes.items() if key != "data.block_size"}
    assert finetune_module.resolve_recipe(name, run.model, where, where, unset, False).data.block_size == 32  # of the model
    with process_group("cpu") as process:
        task = FinetuneTask(again, process)
    assert "its head is loaded too" in str(task.init_message)
    torch.testing.assert_close(task.objective.head.out.weight * 5, data2vec.load(run.model).head.out.weight)  # type: ignore[union-attr]


def test_finetune_resumed_equals_the_uninterrupted_run(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    where, name = data(labelled, "vision"), "vision/classify-v2-base"
    changes = settings("vision", 6, train__lr=1e-3, train__schedule__warmup_steps=2, objective__validate_every=2)
    changes |= {"train.checkpoint_every": 2, "train.keep_checkpoints": 3}
    whole = data2vec.finetune(name, given["vision-v2"], where, where, changes, tmp_path / "whole")
    shutil.copytree(whole.folder, tmp_path / "parts")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / f"step-{step}")
    parts = data2vec.finetune(name, given["vision-v2"], where, where, changes, tmp_path / "parts", resume=True)
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]
    one, two = data2vec.load(whole.folder), data2vec.load(parts.folder)
    assert all(torch.equal(a, b) for a, b in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True))


def test_finetune_task_frees_the_weights_of_the_source_model(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    where, name = data(labelled, "vision"), "vision/classify-v2-base"
    run = data2vec.finetune(name, given["vision-v2"], where, where, settings("vision", 1), tmp_path / "run")
    with process_group("cpu") as process:
        for resume in (False, True):
            task = FinetuneTask(load_recipe(run.folder / "recipe.yaml"), process, resume)
            assert task.source is not None and not task.source.pretraining
            assert all(weight.is_meta for weight in task.source.encoder.parameters())
            assert not any(weight.is_meta for weight in task.objective.parameters())


def test_model_trained_from_scratch_records_that_it_was_not_pretrained(labelled: Path, tmp_path: Path) -> None:
    run = data2vec.finetune(
        "vision/classify-tiny", data=data(labelled, "vision"), overrides=settings("vision", 1), out=tmp_path / "run"
    )
    model = data2vec.load(run.model)
    assert model.recipe.objective.name == "classify"
    card = (run.model / "README.md").read_text()
    assert "Trained from scratch" in card
    assert "self-supervised" not in card
    data2vec.convert(run.model, tmp_path / "hf", "transformers")
    assert "without pre-training" in (tmp_path / "hf" / "README.md").read_text()


def test_finetuned_model_converted_opens_in_transformers(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    where = data(labelled, "text")
    run = data2vec.finetune("text/glue-v1-rte", given["text-v1"], where, where, settings("text", 1), tmp_path / "run")
    data2vec.convert(run.folder, tmp_path / "hf", "transformers")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert type(theirs).__name__ == "Data2VecTextForSequenceClassification"
    assert theirs.config.id2label == {0: "0", 1: "1"}


TWO = """
import json, sys
import data2vec
from data2vec.distributed import process_group

model, where, out, changes = *sys.argv[1:4], json.loads(sys.argv[4])
with process_group("cpu"):
    for shard in (False, True):
        changes["train.shard"] = shard
        data2vec.finetune("vision/classify-v2-base", model, where, where, changes, f"{out}/{shard}")
"""


@pytest.mark.slow
def test_finetune_on_two_processes_equals_one_process(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    where, model = data(labelled, "vision"), str(given["vision-v2"])
    changes = settings("vision", 6, train__lr=1e-3, train__schedule__warmup_steps=2, encoder__drop_path=0.0)
    changes |= {"objective.mixing": None, "objective.freeze_steps": 2, "encoder.dropout": 0.0, "encoder.attention_dropout": 0.0}
    one = data2vec.finetune("vision/classify-v2-base", model, where, where, changes, tmp_path / "one")
    script = tmp_path / "two.py"
    script.write_text(TWO)
    arguments = [str(script), model, where, str(tmp_path), json.dumps(changes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for shard in (False, True):
        two = data2vec.Run(tmp_path / str(shard))
        assert [line["loss"] for line in two.metrics] == pytest.approx([line["loss"] for line in one.metrics], rel=1e-5)
        assert two.metrics[-1]["valid_accuracy"] == one.metrics[-1]["valid_accuracy"]
        pairs = zip(data2vec.load(one.model).encoder.parameters(), data2vec.load(two.model).encoder.parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_sweep_over_a_grid_and_seeds_runs_each_once(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    where = data(labelled, "text")
    words = [f"{k}={json.dumps(v)}" for k, v in settings("text", 2, data__train=where, data__valid=where).items()]
    found = sweep("text/glue-v1-rte", given["text-v1"], {"train.lr": ["1e-5", "1e-3"]}, 2, words, tmp_path / "grid")
    assert [cell.settings for cell in found.cells] == [{"train.lr": "1e-5"}, {"train.lr": "1e-3"}]
    assert all(len(cell.values) == 2 for cell in found.cells)
    assert "accuracy of 2 seeds" in str(found) and str(found).count("<- best") == 1
    page = (tmp_path / "grid" / "sweep.html").read_text(encoding="utf-8")
    assert "train.lr=1e-05" not in page and f"<td>{found.best.name} (best)</td>" in page and page.count("<tr") == 3
    again = sweep("text/glue-v1-rte", given["text-v1"], {"train.lr": ["1e-5", "1e-3"]}, 2, words, tmp_path / "grid")
    assert again == found


def test_finetune_with_invalid_arguments_names_each_error(
    labelled: Path, given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        assert cli.main([*words, "--out", str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    train = f"data.train={data(labelled, 'speech')}"
    assert "is a recipe for pre-training" in told("finetune", "speech/v1-base", "--model", str(given["speech-v1"]), train)
    assert "is a recipe for fine-tuning" in told("pretrain", "speech/ctc-v1-base-10h", train)
    assert "is a text model, but speech/ctc-v1-base-10h is for speech" in told(
        "finetune", "speech/ctc-v1-base-10h", "--model", str(given["text-v1"]), train
    )
    assert "there is no column 'words'" in told(
        "finetune", "speech/ctc-tiny", train, "objective.label=words", *(f"{k}={v}" for k, v in RUN.items())
    )
    assert "data.train: no labelled training data" in told("finetune", "speech/ctc-tiny")
    assert "--scratch: needs --model" in told("finetune", "speech/ctc-tiny", train, "--scratch")
    assert "objective.mask_fill: this model has no mask vector" in told(
        "finetune", "speech/ctc-v1-base-10h", "--model", str(given["speech-v2"]), train, *words("speech")
    )


def words(kind: str) -> list[str]:
    return [f"{k}={json.dumps(v)}" for k, v in settings(kind, 1).items()]


def test_finetune_with_unusable_labels_drops_and_reports_them(
    labelled: Path, given: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(labelled / "speech", tmp_path / "train")
    shutil.copytree(labelled / "speech", tmp_path / "valid")
    table = tmp_path / "train" / "metadata.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace("LO", "LÖ|", 1)  # a letter of its own, and what parts words
    lines[2] = "1.wav,,HI,HI"
    lines[3] = f"2.wav,{'HILO' * 30},HI,HI"
    table.write_text("\n".join(lines) + "\n")
    valid = tmp_path / "valid" / "metadata.csv"
    valid.write_text(valid.read_text().replace("HI LO", "HI ÜÜ"))
    alphabet = ["<s>", "<pad>", "</s>", "<unk>", "|", "L", "O", "H", "I"]
    changes = settings("speech", 1, objective__vocabulary=alphabet, objective__channel_mask=None)
    run = data2vec.finetune(
        "speech/ctc-v1-base-10h",
        given["speech-v1"],
        str(tmp_path / "train"),
        str(tmp_path / "valid"),
        changes,
        tmp_path / "run",
    )
    assert "2 of 24 examples are left out: invalid label" in caplog.text and "'Ö'" in caplog.text
    assert "example 1: no label" in caplog.text  # an empty cell
    assert "1 of 22 transcripts are too long for their audio and do not train (example 2: 121 positions" in caplog.text
    assert run.metrics[-1]["valid_wer"] > 0  # what cannot be spelled is an error, not left out


def test_classification_with_a_single_class_is_refused(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(labelled / "vision" / "dark", tmp_path / "data" / "dark")
    with pytest.raises(UserError, match="every example has the label 'dark'; classification needs at least two classes"):
        data2vec.finetune(
            "vision/classify-v2-base", given["vision-v2"], str(tmp_path / "data"), None, settings("vision", 1), tmp_path / "run"
        )


def test_validation_with_an_unknown_class_drops_and_reports_it(
    labelled: Path, given: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(labelled / "vision", tmp_path / "valid")
    shutil.copytree(labelled / "vision" / "dark", tmp_path / "valid" / "grey")
    run = data2vec.finetune(
        "vision/classify-v2-base",
        given["vision-v2"],
        str(labelled / "vision"),
        str(tmp_path / "valid"),
        settings("vision", 1),
        tmp_path / "run",
    )
    assert "12 of 36 examples are left out: invalid label" in caplog.text and "'grey' is none of the 2 classes" in caplog.text
    assert "valid_accuracy" in run.metrics[-1]


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(
    labelled: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    where = data(labelled, "text")
    changes = settings("text", 1) | {"objective.label": "score"}
    with pytest.raises(UserError, match=r"(?m)use one of pearson_spearman, mean_squared_error$") as raised:
        data2vec.finetune(
            "text/glue-v1-stsb", given["text-v1"], where, where, changes | {"objective.metric": "f1"}, tmp_path / "run"
        )
    assert "objective.metric: 'f1' is not measured here" in str(raised.value)


def test_report_of_a_frozen_encoder_shows_the_layer_weights_of_the_head(
    labelled: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    changes = settings(
        "vision",
        2,
        objective__freeze_encoder=True,
        objective__weighted_layers=True,
        objective__pooling="attention",
        log__report=True,
    )
    changes |= {"objective.ema_decay": 0.5, "objective.balance_classes": True}
    where = data(labelled, "vision")
    run = data2vec.finetune("vision/classify-v2-base", given["vision-v2"], where, where, changes, tmp_path / "run")
    page = run.report.read_text()
    assert "Layer weights" in page and "Error rate" not in page and "Scores" in page
    one, two = data2vec.load(run.folder), data2vec.load(given["vision-v2"])
    assert all(torch.equal(a, b) for a, b in zip(one.encoder.parameters(), two.encoder.parameters(), strict=True))
    with pytest.raises(UserError, match="weighted_layers"):
        data2vec.convert(run.folder, tmp_path / "model.pt", "fairseq")


def test_commands_finetune_evaluate_and_transcribe_succeed(
    labelled: Path, given: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    train = [f"data.train={data(labelled, 'speech')}", f"data.valid={data(labelled, 'speech')}", *words("speech")]
    out = str(tmp_path / "run")
    assert cli.main(["finetune", "speech/ctc-v2-10h", "--model", str(given["speech-v2"]), "--scratch", "--out", out,
                     "objective.channel_mask.length=4", *train]) == 0  # fmt: skip
    assert f"model: {out}/model" in capsys.readouterr().out
    assert cli.main(["evaluate", out]) == 0
    assert "wer " in capsys.readouterr().out
    clip = str(labelled / "speech" / "0.wav")
    assert cli.main(["transcribe", out, clip, str(tmp_path / "none.wav"), "--json", str(tmp_path / "said.jsonl")]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{clip}\t") and "skipped" in said.err
    lines = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == [clip, str(tmp_path / "none.wav")] and lines[1]["error"]


@pytest.mark.parametrize(
    ("values", "kept"), [([1.0, 1.0, 1.0], 3), ([0.5, 0.4, 0.4], 3), ([0.4, 0.5, 0.4], 3), ([0.3, 0.4, float("nan")], 1)]
)
def test_of_equal_validation_scores_the_later_model_is_kept(
    values: list[float], kept: int, labelled: Path, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining = iter([float("nan"), *values])
    monkeypatch.setattr(finetune_module, "validate", lambda *arguments: Scored({"wer": next(remaining)}, 24, {}))
    where = data(labelled, "speech")
    changes = settings("speech", 6, objective__validate_every=2, objective__channel_mask=None, objective__freeze_steps=0)
    run = data2vec.finetune("speech/ctc-v1-base-10h", given["speech-v1"], where, where, changes, tmp_path / "run")
    steps = [line["step"] for line in run.metrics if "valid_wer" in line]
    assert steps == [1, 2, 4, 6]
    state = json.loads((run.checkpoints[0] / "state.json").read_text())
    assert state["task"]["best"] == {"step": steps[kept], "metric": "wer", "value": values[kept - 1]}


def finetune_with_rates(
    rates: list[float], labelled: Path, given: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> data2vec.Run:
    """Fine-tuning of at most 8 steps, validated at the first and at every second step, with these word error rates."""
    remaining = iter(rates)
    monkeypatch.setattr(finetune_module, "validate", lambda *arguments: Scored({"wer": next(remaining)}, 24, {}))
    changes = settings("speech", 8, objective__validate_every=2, objective__channel_mask=None, objective__freeze_steps=0)
    where = data(labelled, "speech")
    changes |= {"train.checkpoint_every": 3} | more
    resume = (out / "recipe.yaml").exists()
    return data2vec.finetune("speech/ctc-v1-base-10h", given["speech-v1"], where, where, changes, out, resume=resume)


def test_run_without_improvement_stops_early_says_so_and_stays_as_it_is_when_resumed(
    labelled: Path,
    given: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, patience = tmp_path / "run", {"objective.patience": 2, "log.report": True}
    run = finetune_with_rates([0.9, 0.5, 0.5, 0.6], labelled, given, out, monkeypatch, **patience)
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert run.metrics[-1]["valid_best_wer"] == 0.5
    assert run.checkpoints[0].name == "step-6" and run.starts[-1]["exit_reason"] == "finished"
    said = capsys.readouterr().err
    assert "stopped early at step 6 of 8: wer is not better in the last 2 validations, objective.patience=2" in said
    best = (
        "best validation: wer 50.0% at step 4; 60.0% at step 6, the last; stopped early at step 6 of 8 (objective.patience=2)"
    )
    assert best in said and "too early to tell" not in said
    assert best in run.report.read_text(encoding="utf-8")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    finetune_with_rates([], labelled, given, out, monkeypatch, **patience)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert "is finished, at step 6 of 8 (wer is not better" in (said := capsys.readouterr().err)
    assert f"data2vec finetune --resume {out} objective.patience=null" in said
    longer = finetune_with_rates([0.4], labelled, given, out, monkeypatch, **patience | {"objective.patience": None})
    assert longer.metrics[-1]["step"] == 8 and longer.metrics[-1]["valid_best_wer"] == 0.4


def test_run_killed_after_it_stopped_early_ends_when_resumed_without_a_step(
    labelled: Path, given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    run = finetune_with_rates([0.9, 0.5, 0.5], labelled, given, out, monkeypatch, **{"objective.patience": 1})
    assert run.metrics[-1]["step"] == 4
    starts = [{key: value for key, value in start.items() if key not in ("ended", "exit_reason")} for start in run.starts]
    (out / "machine.json").write_text(json.dumps(starts))
    finetune_with_rates([], labelled, given, out, monkeypatch, **{"objective.patience": 1})
    assert run.metrics[-1]["step"] == 4 and run.starts[-1]["exit_reason"] == "finished"


def test_patience_without_validation_data_is_refused(labelled: Path, given: dict[str, Path], tmp_path: Path) -> None:
    changes = settings("vision", 2, objective__patience=3)
    with pytest.raises(UserError, match=r"objective\.patience: 3, but there is nothing to validate on; set data\.valid"):
        data2vec.finetune(
            "vision/classify-v2-base", given["vision-v2"], data(labelled, "vision"), None, changes, tmp_path / "run"
        )


def test_evaluate_of_a_model_without_a_head_is_refused(given: dict[str, Path], labelled: Path) -> None:
    with pytest.raises(UserError, match="has no head; fine-tune it first"):
        data2vec.evaluate(given["vision-v2"], str(labelled / "vision"))
    assert isinstance(data2vec.load(given["vision-v2"]), Model)


def coloured(root: Path, **classes: int) -> Path:
    """Dark and bright pictures, as many as named of each class, in class folders."""
    from PIL import Image

    rng = np.random.default_rng(len(str(root)))
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            low = 128 * (name == "bright")
            Image.fromarray(rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_one_folder_of_splits_is_trained_on_train_and_validated_on_valid(
    given: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, number in {"train": 8, "val": 3, "test": 5}.items():
        coloured(tmp_path / "set" / split, dark=number, bright=number)
    where, changes = str(tmp_path / "set"), settings("vision", 1)
    run = data2vec.finetune("vision/classify-v2-base", given["vision-v2"], where, where, changes, tmp_path / "run")
    with process_group("cpu") as process:
        task = FinetuneTask(load_recipe(run.recipe), process)
    assert len(task.loader.examples or ()) == 16 and len(task.eval_set.indices) == 6
    assert data2vec.evaluate(run.folder).examples == data2vec.evaluate(run.folder, where).examples == 6
    assert data2vec.evaluate(run.folder, where, {"data.valid_split": "test"}).examples == 10
    assert data2vec.evaluate(run.folder, where, {"data.valid_split": "all"}).examples == 32
    assert data2vec.evaluate(run.folder, str(tmp_path / "set" / "test")).examples == 10
    for override, message in (
        ("data.valid_split=eval2", r"data\.valid: .* has no split 'eval2', only test \(10\), train \(16\), val \(6\)"),
        ("data.split=test", r"data\.split: 'test' is of data\.train; set data\.valid_split=test"),
    ):
        with pytest.raises(UserError, match=message):
            data2vec.evaluate(run.folder, where, [override])
    shutil.rmtree(tmp_path / "set" / "val")
    with pytest.raises(UserError, match=r"data\.valid: .* has no split 'valid', only test \(10\), train \(16\)"):
        data2vec.evaluate(run.folder, where)


def test_classes_are_compared_by_name_at_evaluation(given: dict[str, Path], tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset

    folder = coloured(tmp_path / "set", dark=12, bright=12)
    changes = settings("vision", 40, train__lr=2e-3, train__schedule__warmup_steps=5)
    run = data2vec.finetune("vision/classify-v2-base", given["vision-v2"], str(folder), str(folder), changes, tmp_path / "run")
    head = data2vec.load(run.folder).head
    assert isinstance(head, Classifier) and head.settings.labels == ("bright", "dark")
    expected = data2vec.evaluate(run.folder).scores["accuracy"]
    assert expected > 0.9
    paths = sorted(folder.rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    for names in (["bright", "dark"], ["dark", "bright", "grey"]):
        labels = [names.index(path.parent.name) for path in paths]
        rows = Dataset.from_dict({"image": images, "label": labels}).cast_column("label", ClassLabel(names=names))
        assert data2vec.evaluate(run.folder, rows).scores["accuracy"] == expected
    rows = Dataset.from_dict({"image": images, "label": [0, 1] * 12})
    with pytest.raises(UserError, match="'0' is none of the 2 classes of the training data, bright, dark"):
        data2vec.evaluate(run.folder, rows)


@pytest.mark.parametrize("missing", ["", None, -1])
def test_examples_without_a_label_are_left_out_and_counted(
    missing: Any, labelled: Path, given: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from datasets import ClassLabel, Dataset

    paths = sorted((labelled / "vision").rglob("*.png"))
    if missing == "":
        table = tmp_path / "table.csv"
        table.write_text("file,class\n" + "".join(f"{p},{p.parent.name if i else ''}\n" for i, p in enumerate(paths)))
        where: Any = str(table)
    else:
        names = ["bright", "dark"]
        labels = [names.index(path.parent.name) if i else missing for i, path in enumerate(paths)]
        images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        where = Dataset.from_dict({"image": images, "class": labels}).cast_column("class", ClassLabel(names=names))
    changes = settings("vision", 1) | {"data.label": "class", "data.follow_links": True}
    run = data2vec.finetune("vision/classify-v2-base", given["vision-v2"], where, where, changes, tmp_path / "run")
    assert "1 of 24 examples are left out: invalid label (example 0: no label)" in caplog.text
    found = data2vec.evaluate(run.folder)
    assert (found.examples, found.left_out) == (23, 1)
    head = data2vec.load(run.folder).head
    assert isinstance(head, Classifier) and head.settings.labels == ("bright", "dark")
