"""A joint run of two parts: their steps, metrics and models, and that it can be resumed and divided among processes."""

import json
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.recipe.joint import JointRecipe
from data2vec.recipe.loading import load_recipe
from data2vec.report.page import build_report
from data2vec.run_dir import Run, load_run_recipe
from data2vec.train import checkpoint
from data2vec.train.joint.task import JointTask
from helpers.processes import torchrun
from helpers.runs import crash_before, measured

STEPS = 12
RECIPE = {
    "modality": {
        "name": "joint",
        "shares": {"vision": 0.5, "text": 0.5},
        "parts": {
            "vision": {
                "modality": {"image": 32, "patch": 8, "positions": "sincos", "mask_vector": False},
                "objective": {
                    "name": "data2vec2",
                    "masks_per_sample": 2,
                    "mask": {"kind": "fixed-block", "prob": 0.5, "length": 2, "inverse": True},
                    "target": {"top_k": 2},
                    "decoder": {"kind": "conv", "layers": 1, "kernel": [3, 3], "groups": 2, "width": 8},
                    "cls_loss": 0.1,
                },
                "data": {"batch_size": 8, "micro_batch_size": 4, "workers": 0},
                "lr": 2e-3,
            },
            "text": {
                "modality": {"vocab_size": 300, "max_length": 32, "positions": "conv", "position_groups": 2},
                "objective": {
                    "name": "data2vec2",
                    "masks_per_sample": 2,
                    "mask": {"kind": "random", "prob": 0.5},
                    "target": {"top_k": 2},
                    "decoder": {"kind": "conv", "layers": 1, "kernel": [3], "groups": 2, "width": 8},
                },
                "data": {"block_size": 32, "batch_size": 4, "micro_batch_size": 2, "workers": 0},
                "loss_weight": 2.0,
            },
        },
    },
    "encoder": {"width": 16, "layers": 2, "heads": 2, "ffn_width": 32, "norm": "pre", "input_norm": False, "final_norm": True}
    | {"extra_tokens": 1, "dropout": 0, "attention_dropout": 0},
    "train": {"steps": STEPS, "lr": 1e-3, "checkpoint_every": 4, "device": "cpu", "schedule": {"name": "cosine"}},
    "log": {"every": 1, "report": False},
}


@pytest.fixture(scope="module")
def recipe(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> JointRecipe:
    folder, rng = tmp_path_factory.mktemp("joint"), np.random.default_rng(0)
    text = "\n\n".join("".join(rng.choice(list("abcde "), 60)) for _ in range(60))
    (folder / "text.txt").write_text(text)
    (folder / "joint.yaml").write_text(json.dumps(RECIPE))
    paths = {"vision": pictures, "text": folder / "text.txt"}
    found = load_recipe(folder / "joint.yaml", {f"modality.parts.{part}.data.train": str(path) for part, path in paths.items()})
    assert isinstance(found, JointRecipe)
    return found


@pytest.fixture(scope="module")
def run(recipe: JointRecipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, with a measurement of held-out loss."""
    return data2vec.pretrain(recipe, out=tmp_path_factory.mktemp("run") / "run", overrides=validated(recipe))


def validated(recipe: JointRecipe) -> dict[str, Any]:
    vision = "modality.parts.vision"
    return {f"{vision}.data.valid": recipe.parts["vision"].data.train, f"{vision}.probe.every": 4}


def weights(run: Run, step: int = STEPS) -> dict[str, torch.Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(run.folder / "checkpoints" / f"step-{step}" / "objective.safetensors")


def test_nothing_is_forked_or_evaluated_while_a_checkpoint_is_written_in_the_background(
    recipe: JointRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, slow, seen = threading.Event(), threading.Event(), list[tuple[str, bool]]()
    write, start, evaluate = checkpoint.save_file, BaseProcess.start, JointTask.evaluate

    def writes(*arguments: Any) -> None:
        writing.set()
        slow.wait(0.2)
        write(*arguments)
        writing.clear()

    def noting(what: str, call: Any) -> Any:
        return lambda *arguments: (seen.append((what, writing.is_set())), call(*arguments))[1]

    monkeypatch.setattr(checkpoint, "save_file", writes)
    monkeypatch.setattr(BaseProcess, "start", noting("fork", start))
    monkeypatch.setattr(JointTask, "evaluate", noting("evaluation", evaluate))
    settings = {"train.async_checkpoints": True, "train.checkpoint_every": 1}
    settings |= {f"modality.parts.{part}.data.workers": 1 for part in recipe.parts}
    data2vec.pretrain(recipe, out=tmp_path / "run", overrides=validated(recipe) | settings)
    assert set(seen) == {("fork", False), ("evaluation", False)}
    assert seen.count(("fork", False)) >= 2, "each part has a worker of its own"


def test_each_logged_step_is_one_of_a_single_part(run: Run) -> None:
    parts = ["vision" if "vision/loss" in line else "text" for line in run.metrics]
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))
    assert {parts.count("vision"), parts.count("text")} <= {5, 6, 7}
    for part, line in zip(parts, run.metrics, strict=True):
        other = {"vision": "text", "text": "vision"}[part]
        assert not [key for key in line if key.startswith(other)]
        assert {f"{part}/{name}" for name in ("loss", "target_std", "lr", "ema_decay", "samples", "update_ratio")} < line.keys()


def test_steps_of_a_part_have_its_learning_rate_and_its_own_count_of_samples(run: Run) -> None:
    vision, text = (Run(run.folder / "parts" / part).metrics for part in ("vision", "text"))
    schedule = {line["step"]: line["lr"] / 2e-3 for line in vision} | {line["step"]: line["lr"] / 1e-3 for line in text}
    assert all(schedule[step] > schedule[step + 1] for step in range(1, STEPS)), "one cosine over the steps of both"
    assert [line["samples"] for line in vision] == [8 * (i + 1) for i in range(len(vision))]
    assert [line["samples"] for line in text] == [4 * (i + 1) for i in range(len(text))]


def test_held_out_loss_of_a_part_is_measured_every_so_many_of_its_steps(run: Run) -> None:
    measured_at = [i for i, line in enumerate(Run(run.folder / "parts" / "vision").metrics, 1) if "valid_loss" in line]
    count = len(Run(run.folder / "parts" / "vision").metrics)
    assert measured_at == sorted({1, 4, count})


def test_a_step_changes_the_transformer_and_what_its_part_has_for_itself(recipe: JointRecipe, tmp_path: Path) -> None:
    run = data2vec.pretrain(recipe, out=tmp_path / "run", overrides={"train.checkpoint_every": 1, "train.keep_checkpoints": 99})
    for line in run.metrics[:-1]:  # the learning rate of the last one is 0
        part = "vision" if "vision/loss" in line else "text"
        before, after = weights(run, line["step"] - 1), weights(run, line["step"])
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        trained = {name for name in changed if ".teacher." not in name}
        assert {name.split(".")[1] for name in trained if ".student.transformer." not in name} == {part}
        assert any(".student.transformer.blocks." in name for name in trained)


def test_resumed_run_is_the_same_to_the_bit(recipe: JointRecipe, run: Run, tmp_path: Path) -> None:
    with crash_before(7):
        data2vec.pretrain(recipe, out=tmp_path / "run", overrides=validated(recipe))
    resumed = data2vec.resume(tmp_path / "run")
    assert measured(resumed) == measured(run)
    mine, theirs = weights(resumed), weights(run)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_settings_of_a_part_that_change_no_step_may_change_on_resume(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    data2vec.resume(run.folder, {"modality.parts.vision.probe.every": 99})
    assert "is finished, at step 12" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"modality\.parts\.vision\.lr is 0\.1"):
        data2vec.resume(run.folder, {"modality.parts.vision.lr": 0.1})


def test_each_part_is_a_run_whose_model_shares_the_transformer(run: Run, pictures: Path) -> None:
    models = {part: data2vec.load(run.folder / "parts" / part) for part in ("vision", "text")}
    assert [path.folder.name for path in run.parts] == ["text", "vision"]
    for name, weight in models["vision"].encoder.transformer.state_dict().items():
        assert torch.equal(weight, models["text"].encoder.transformer.state_dict()[name]), name
    assert models["vision"].features(str(pictures / "00.png")).hidden.shape == (1, 1, 16, 16)
    assert models["text"].features("abc").hidden.shape[-1] == 16
    assert models["vision"].training[0].shared_with == ("text",)
    card = (run.folder / "parts" / "vision" / "model" / "README.md").read_text(encoding="utf-8")
    assert "by turns with `text`" in card
    recipe = load_run_recipe(run.folder / "parts" / "text")
    assert recipe.modality.name == "text"


def test_a_joint_run_is_opened_by_part(run: Run) -> None:
    with pytest.raises(UserError, match=r"open the model of a part: .*parts/text, .*parts/vision"):
        data2vec.load(run.folder)
    with pytest.raises(UserError, match="is of a joint run"):
        data2vec.load(f"{run.folder}@last")


def test_verdict_names_the_part_of_each_finding(run: Run) -> None:
    log = (run.folder / "log.txt").read_text(encoding="utf-8")
    assert "verdict: watch" in log
    assert "watch: vision: the EMA teacher still holds" in log
    assert "watch: text: the EMA teacher still holds" in log
    assert "What to change: a lower modality.parts.text.objective.teacher." in log


def test_a_corrupt_example_is_named_with_its_part(recipe: JointRecipe, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "00.png").write_bytes(b"no image")
    run = data2vec.pretrain(recipe, out=tmp_path / "run", overrides={"modality.parts.vision.data.train": str(folder)})
    assert (run.folder / "corrupt_files.txt").read_text(encoding="utf-8").startswith("vision/")
    own = (run.folder / "parts" / "vision" / "corrupt_files.txt").read_text(encoding="utf-8")
    assert "00.png" in own
    assert (run.folder / "parts" / "text" / "corrupt_files.txt").read_text(encoding="utf-8") == ""


@pytest.mark.slow
def test_report_has_a_page_for_each_part(run: Run) -> None:
    page = build_report(run.folder).read_text(encoding="utf-8")
    for part in ("vision", "text"):
        assert f'href="parts/{part}/report.html"' in page
        assert f"Curves of {part}" in page
        own = (run.folder / "parts" / part / "report.html").read_text(encoding="utf-8")
        assert "Attention" in own
        assert "Missing" not in own


@pytest.mark.slow
def test_verbs_take_a_part_as_any_model(run: Run, pictures: Path, tmp_path: Path) -> None:
    vision = str(run.folder / "parts" / "vision")
    labelled = tmp_path / "labelled"
    for i, path in enumerate(sorted(pictures.glob("*.png"))[:16]):
        (labelled / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (labelled / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    tune = ["objective.validate_every=2", "train.steps=2", "data.batch_size=8", "data.micro_batch_size=8", "data.workers=0"]
    for words in (
        ["features", vision, str(pictures), "--out", str(tmp_path / "f.npy"), "--pool"],
        ["probe", vision, "--data", str(labelled)],
        ["convert", vision, str(tmp_path / "converted"), "--to", "data2vec"],
        ["convert", vision, str(tmp_path / "hf"), "--to", "transformers"],
        ["export", vision, "--out", str(tmp_path / "vision.pt2")],
        ["report", vision],
        [
            *("finetune", "vision/classify-tiny", "--model", vision, "--out", str(tmp_path / "tuned")),
            *(f"data.train={labelled}", f"data.valid={labelled}", "train.schedule.warmup_steps=1", "log.report=false", *tune),
        ],
        ["predict", str(tmp_path / "tuned"), str(pictures / "00.png")],
    ):
        assert cli.main(words) == 0, words


WORK = """
import sys
import data2vec
from data2vec.distributed import process_group
from helpers.processes import equal_weights

recipe, out = sys.argv[1:]
with process_group("cpu"), equal_weights():
    for shard in (False, True):
        data2vec.pretrain(recipe, out=f"{out}/{shard}", overrides={"train.shard": shard})
"""


@pytest.mark.slow
def test_replicated_and_sharded_processes_train_the_same_as_one(recipe: JointRecipe, run: Run, tmp_path: Path) -> None:
    still = {f"modality.parts.{part}.objective.decoder.noise_std": 0 for part in ("vision", "text")}
    still |= {f"modality.parts.{part}.objective.decoder.dropout": 0 for part in ("vision", "text")} | validated(recipe)
    settled = load_recipe(recipe, still)
    (tmp_path / "joint.yaml").write_text(settled.to_yaml(), encoding="utf-8")
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    alone = data2vec.pretrain(settled, out=tmp_path / "alone")
    words = [str(tmp_path / name) for name in ("work.py", "joint.yaml", "runs")]
    done = torchrun(2, *words, timeout=600)
    assert done.returncode == 0, done.stderr
    for shard in ("False", "True"):
        together = Run(tmp_path / "runs" / shard)
        for mine, theirs in zip(together.metrics, alone.metrics, strict=True):
            part = "vision" if "vision/loss" in theirs else "text"
            for name in ("loss", "valid_loss"):
                if f"{part}/{name}" in theirs:
                    assert mine[f"{part}/{name}"] == pytest.approx(theirs[f"{part}/{name}"], rel=1e-4)
        resumed = data2vec.resume(together.folder, {"train.steps": STEPS + 2})
        assert resumed.metrics[-1]["step"] == STEPS + 2
