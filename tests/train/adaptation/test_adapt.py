"""Continued pre-training of a trained model, with what it has changed."""

import functools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data2vec
from data2vec.errors import UserError
from data2vec.model import Model, blank_model
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run, load_run_recipe
from data2vec.train.adaptation.adapt import plan_adaptation
from data2vec.train.adaptation.recipe import adaptation_recipe, own_recipe, scratch_recipe
from data2vec.train.planning.step_cost import step_cost
from helpers.recordings import CHANNELS, RATE, write_folder

SMALL = {"data.workers": 0, "train.device": "cpu", "log.report": False}


@pytest.fixture(autouse=True)
def _one_step_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the operations of four steps takes longer than these runs."""
    monkeypatch.setattr("data2vec.train.adaptation.adapt.step_cost", functools.partial(step_cost, steps=1))


@pytest.fixture(scope="module")
def released(tiny2: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "released"
    return data2vec.pretrain("vision/v2-tiny", overrides=tiny2 | {"train.steps": 3}, out=folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures, in a folder of each."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(1)
    for name, low in (("dark", 0), ("bright", 128)):
        (folder / name).mkdir()
        for i in range(20):
            pixels = rng.integers(low, low + 128, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / name / f"{i:02}.png")
    return folder


def without_pretraining_weights(run: Run, folder: Path) -> Path:
    shutil.copytree(run.model, folder)
    (folder / "pretraining.safetensors").unlink()
    return folder


def test_adapted_run_has_the_recipe_of_the_model_with_a_lower_rate_and_a_slow_teacher(
    released: Run, pictures: Path, tmp_path: Path
) -> None:
    result = data2vec.adapt(released.folder, pictures, SMALL, tmp_path / "run", steps=4)
    own, adapted = load_run_recipe(released.folder), load_run_recipe(tmp_path / "run")
    assert (adapted.encoder, adapted.objective.mask, adapted.objective.target) == (
        own.encoder,
        own.objective.mask,
        own.objective.target,
    )
    assert adapted.train.lr == pytest.approx(0.3 * own.train.lr)
    assert adapted.objective.teacher.schedule(4).anneal_steps == 0
    assert (adapted.objective.freeze_steps, adapted.objective.input_target, adapted.train.steps) == (0, None, 4)
    before, after = result["as released"], result["adapted"]
    assert before.valid_loss != after.valid_loss and after.drift_weights is not None and after.drift_weights > 0
    assert (before.steps, after.steps, before.flops) == (0, 4, 0) and after.flops > 0 and after.seconds > 0


@pytest.mark.parametrize(("fade_from", "kept"), [(0.2, False), (1.0, True)])
def test_warm_start_is_left_out_and_an_input_that_is_predicted_to_the_end_is_kept(
    tiny2: dict[str, Any], pictures: Path, fade_from: float, kept: bool
) -> None:
    target = {"features": "raw", "weight": 0.8, "fade_from": fade_from, "fade_to": 1.0}
    own = load_recipe("vision/v2-tiny", tiny2 | {"objective.input_target": target})
    adapted = adaptation_recipe("model", blank_model(own), str(pictures), {}, 50, None).recipe
    assert (adapted.objective.input_target == own.objective.input_target) == kept
    assert (adapted.objective.input_target is None) != kept


def test_a_tenth_of_the_data_is_held_out_for_the_loss_unless_it_is_given(
    released: Run, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_adaptation(released.folder, pictures, SMALL, tmp_path / "run", steps=4)
    assert plan.examples == 36
    assert f"held out for the loss: 10% of {pictures}" in capfd.readouterr().err
    plan = plan_adaptation(released.folder, pictures, SMALL | {"data.valid": str(pictures)}, tmp_path / "run", steps=4)
    assert plan.examples == 40 and not (tmp_path / "run").exists()


def test_loss_before_is_that_of_the_first_evaluation_when_nothing_moves(released: Run, pictures: Path, tmp_path: Path) -> None:
    never = {"objective.teacher.decay": 1, "objective.teacher.end_decay": 1, "objective.teacher.anneal_steps": 0}
    changes = SMALL | never | {"train.lr": 1e-20}
    result = data2vec.adapt(released.folder, pictures, changes, tmp_path / "run", steps=2)
    before, after = result["as released"], result["adapted"]
    assert before.valid_loss == pytest.approx(result.run.metrics[0]["valid_loss"], rel=1e-5)
    assert after.drift_weights == pytest.approx(0, abs=1e-6) and after.drift_features == pytest.approx(0, abs=1e-5)


def test_missing_teacher_and_head_are_announced_and_the_new_head_is_trained_alone_first(
    released: Run, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = without_pretraining_weights(released, tmp_path / "model")
    result = data2vec.adapt(model, pictures, SMALL | {"log.every": 1}, tmp_path / "run", steps=20)
    error = capfd.readouterr().err
    assert "init: the teacher is a copy of the student" in error
    assert "init: the decoder is new, since the model has none that fits, and trained alone for 2 steps" in error
    recipe = load_run_recipe(tmp_path / "run")
    assert (recipe.objective.freeze_steps, recipe.train.schedule.warmup_steps) == (2, 4)
    moved = {line["step"]: line["drift_weights"] for line in result.run.metrics if "drift_weights" in line}
    assert moved[1] == moved[2] == 0 < moved[20]
    at_2 = next(line["valid_loss"] for line in result.run.metrics if line["step"] == 2)
    assert result["as released"].valid_loss == at_2
    assert "the new head was trained alone before the loss as released was measured" in result.notes


def test_adapted_model_is_adapted_again_as_it_was_at_first(released: Run, pictures: Path, tmp_path: Path) -> None:
    once = data2vec.adapt(released.folder, pictures, SMALL | {"objective.freeze_steps": 3}, tmp_path / "once", steps=4)
    own = load_run_recipe(released.folder)
    for where in (str(once.run.folder), f"{once.run.folder}@step-4"):
        model = data2vec.load(where)
        plan = adaptation_recipe(where, model, str(pictures), SMALL, 3, None)
        assert plan.recipe.objective.freeze_steps == 0
        assert plan.recipe.train.lr == pytest.approx(0.3 * own.train.lr), "of the first rate, not 0.3 of 0.3"
        assert "with rate, steps and schedules of its first pre-training" in plan.notes[0]
        again, first = (scratch_recipe(plan.recipe, base) for base in (own_recipe(where, model)[0], own))
        assert (again.train, again.objective) == (first.train, first.objective)
    unrecorded = replace(model, training=(model.training[-1],))
    plan = adaptation_recipe(where, unrecorded, str(pictures), SMALL, 3, None)
    assert (
        "adapted from one that records no settings of its training: rate, steps and schedules are of vision/" in plan.notes[0]
    )
    assert plan.recipe.train.lr == pytest.approx(0.3 * load_recipe("vision/v2-tiny").train.lr)


def test_what_the_old_data_did_not_say_of_itself_is_not_taken_for_the_new(tmp_path: Path) -> None:
    write_folder(tmp_path / "npz")
    told = {"data.rate": 100, "data.time_axis": "first", "data.channels": ["x", "y", "z"], "data.array": "x"}
    recipe = load_recipe("signal/v2-tiny", told | {"modality.channels": CHANNELS, "modality.rate": RATE})
    modality = recipe.build_modality()
    scaled = load_recipe(recipe, {"modality.scale.mean": [0.0] * 3, "modality.scale.std": [1.0] * 3})
    model = Model(build_encoder(scaled.build_modality(), scaled.encoder), modality, scaled)
    data = adaptation_recipe("model", model, str(tmp_path / "npz"), SMALL, 3, None).recipe.data
    assert [getattr(data, key.removeprefix("data.")) for key in told] == [None] * 4


def test_frozen_steps_change_the_decoder_and_not_the_student(released: Run, pictures: Path, tmp_path: Path) -> None:
    model = without_pretraining_weights(released, tmp_path / "model")
    data2vec.adapt(
        model, pictures, SMALL | {"objective.freeze_steps": 3, "train.checkpoint_every": 3}, tmp_path / "run", steps=4
    )
    first, frozen = (data2vec.load(f"{tmp_path}/run@step-{step}") if step else data2vec.load(model) for step in (0, 3))
    for name, weight in first.encoder.state_dict().items():
        assert torch.equal(weight, frozen.encoder.state_dict()[name])


def test_probes_before_after_and_from_scratch_are_in_the_table_and_in_adapt_json(
    released: Run, labelled: Path, pictures: Path, tmp_path: Path
) -> None:
    result = data2vec.adapt(
        released.folder,
        labelled,
        SMALL,
        tmp_path / "run",
        steps=3,
        labels="label",
        keep=labelled,
        keep_labels="label",
        scratch=True,
    )
    saved = json.loads((tmp_path / "run" / "adapt.json").read_text())
    assert [row["name"] for row in saved["rows"]] == ["as released", "adapted", "from scratch"]
    for row, found in zip(saved["rows"], result.rows, strict=True):
        assert row["probe_linear"] == found.probe_linear and 0 <= row["keep_knn"] <= 1
        assert f"{row['valid_loss']:.4f}" in str(result)
    scratch, own = load_run_recipe(tmp_path / "run" / "scratch"), load_run_recipe(released.folder)
    assert (scratch.init, scratch.train.lr, scratch.train.steps) == (None, own.train.lr, 3)
    assert scratch.data == load_run_recipe(tmp_path / "run").data
    again = data2vec.adapt(out=tmp_path / "run", resume=True, scratch=True)
    assert [row.valid_loss for row in again.rows] == [row.valid_loss for row in result.rows]


def test_interrupted_run_is_resumed_by_its_folder_and_measured(released: Run, pictures: Path, tmp_path: Path) -> None:
    whole = data2vec.adapt(released.folder, pictures, SMALL, tmp_path / "whole", steps=10)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-10")
    (tmp_path / "parts" / "adapt.json").unlink()
    parts = data2vec.adapt(out=tmp_path / "parts", resume=True)
    assert [row.valid_loss for row in parts.rows] == [row.valid_loss for row in whole.rows]


def test_checkpoint_of_a_run_is_adapted(released: Run, pictures: Path, tmp_path: Path) -> None:
    result = data2vec.adapt(f"{released.folder}@step-3", pictures, SMALL, tmp_path / "run", steps=2)
    assert result["adapted"].drift_weights is not None


def test_official_file_takes_batch_and_rate_of_the_shipped_recipe_and_keeps_its_teacher(
    tiny2: dict[str, Any], pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    official = {"modality.image": 32, "modality.patch": 4, "encoder.prenet_layers": 0, "encoder.drop_path": 0}
    official |= {"objective.decoder.groups": 4, "train.steps": 2}
    released = data2vec.pretrain("vision/v2-base", overrides=tiny2 | official, out=tmp_path / "released")
    data2vec.convert(released.folder, tmp_path / "released.pt", to="fairseq")
    result = data2vec.adapt(
        tmp_path / "released.pt",
        pictures,
        SMALL | {"data.batch_size": 8, "data.micro_batch_size": 8},
        tmp_path / "run",
        steps=2,
    )
    error = capfd.readouterr().err
    assert "the model records no settings of its training: batch and training are of vision/v2-tiny" in error
    assert "its teacher and head are loaded too" in error
    assert load_run_recipe(tmp_path / "run").train.lr == pytest.approx(0.3 * load_recipe("vision/v2-tiny").train.lr)
    assert result["as released"].valid_loss is not None


def test_fine_tuned_model_takes_batch_and_rate_of_the_shipped_recipe(
    released: Run, labelled: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = SMALL | {"train.steps": 2, "data.batch_size": 8, "data.micro_batch_size": 8}
    data2vec.finetune("vision/classify-tiny", released.folder, labelled, labelled, small, tmp_path / "classes")
    capfd.readouterr()
    with pytest.raises(UserError, match=r"data.batch_size: a step has 64 examples, but the training data only has 36"):
        plan_adaptation(tmp_path / "classes", labelled, SMALL, tmp_path / "run", steps=10)
    note = capfd.readouterr().err
    assert "the model is fine-tuned: batch and training are of vision/v2-tiny" in note
    assert "learning rate 0.0009, not 0.003" in note


def test_model_trained_on_labels_alone_is_refused(labelled: Path, tmp_path: Path) -> None:
    small = SMALL | {"train.steps": 1, "data.batch_size": 8, "data.micro_batch_size": 8}
    data2vec.finetune("vision/classify-tiny", None, labelled, labelled, small, tmp_path / "classes")
    with pytest.raises(UserError, match="was trained on labels alone"):
        data2vec.adapt(tmp_path / "classes", labelled, SMALL, tmp_path / "run")


def test_steps_are_chosen_for_the_data_and_other_counts_scaled_with_them(released: Run, pictures: Path, tmp_path: Path) -> None:
    plan = plan_adaptation(released.folder, pictures, SMALL, tmp_path / "run")
    assert (plan.steps, plan.warmup_steps) == (500, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": None}, "data.train: no training data"),
        ({"steps": 5, "overrides": {"train.steps": 6}}, "--steps 5 and train.steps=6 name two lengths"),
        ({"keep_labels": "x"}, "--keep-labels x has no effect without --keep"),
        ({"labels": "colour"}, "probe.label: .*colour"),
        ({"overrides": {"data.streaming": True}}, "data.valid: a part of streamed data cannot be held out"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(
    arguments: dict[str, Any], message: str, released: Run, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        data2vec.adapt(**{"model": released.folder, "data": pictures, "out": tmp_path / "run"} | arguments)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_data_of_too_few_files_to_hold_out_a_tenth_are_refused(released: Run, pictures: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(pictures.iterdir())[:9]:
        shutil.copy(path, few)
    with pytest.raises(UserError, match=r"data.valid: .*few has 9 files or rows, of which no tenth can be held out"):
        data2vec.adapt(released.folder, few, SMALL, tmp_path / "run", steps=2)
    assert not (tmp_path / "run").exists()


def test_keep_without_labels_is_refused_before_anything_is_trained(released: Run, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--keep: probe"):
        data2vec.adapt(released.folder, pictures, SMALL, tmp_path / "run", steps=2, keep=pictures)
    assert not (tmp_path / "run").exists()


def test_run_that_started_from_no_model_is_not_measured(released: Run) -> None:
    with pytest.raises(UserError, match="is not the run of an adaptation"):
        data2vec.adapt(out=released.folder, resume=True)


@pytest.mark.slow
def test_two_processes_adapt_and_measure_as_one_does(released: Run, pictures: Path, tmp_path: Path) -> None:
    one = data2vec.adapt(released.folder, pictures, SMALL, tmp_path / "one", steps=3)
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "data2vec", "adapt")
    words = (str(released.folder), "--data", str(pictures), "--out", str(tmp_path / "two"), "--steps", "3", "--device", "cpu")
    done = subprocess.run(
        [*start, *words, "data.workers=0", "log.report=false"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("adapt: held out for the loss") == 1 and done.stdout.count("as released") == 2  # row and note
    rows = json.loads((tmp_path / "two" / "adapt.json").read_text())["rows"]
    for row, alone in zip(rows, one.rows, strict=True):
        assert row["valid_loss"] == pytest.approx(alone.valid_loss, rel=1e-3)
        assert row["flops"] == pytest.approx(alone.flops, rel=0.2)
