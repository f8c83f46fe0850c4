"""Weights of a run other than its model: RUN@step-N, RUN@last, RUN@best, a checkpoint's folder, a run without a model."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run, checkpoint_damage, crc32, result_file, run_of_model

SMALL = {
    **{"encoder.width": 16, "encoder.heads": 2, "encoder.ffn_width": 32},
    **{"train.device": "cpu", "train.checkpoint_every": 2, "train.keep_checkpoints": 9},
    **{"data.workers": 0, "log.every": 1, "log.report": False, "data.batch_size": 8, "data.micro_batch_size": 8},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright pictures, in a folder per class."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(24):
        folder = root / ("dark", "bright")[i % 2]
        folder.mkdir(exist_ok=True)
        low = 128 * (i % 2)
        Image.fromarray(rng.integers(low, low + 128, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of pre-training, with checkpoints at 0, 2 and 4."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return data2vec.pretrain("vision/v2-tiny", pictures, SMALL | {"train.steps": 4}, out)


@pytest.fixture(scope="module")
def tuned(pictures: Path, whole: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of fine-tuning with validation, with checkpoints at 0, 2 and 4."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    settings = SMALL | {"train.steps": 4, "objective.validate_every": 2}
    settings = {key: value for key, value in settings.items() if not key.startswith("encoder.")}
    return data2vec.finetune("vision/classify-tiny", whole.folder, pictures, pictures, settings, out)


@pytest.fixture
def run(whole: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(whole.folder, tmp_path / "run")))


def same(one: Model, other: Model) -> bool:
    parts = zip((one.encoder, one.head), (other.encoder, other.head), strict=True)
    return all(
        torch.equal(x, y)
        for a, b in parts
        if a is not None and b is not None
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_last_weights_of_a_finished_run_are_its_model_with_teacher_and_head(
    whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    last, model = data2vec.load(f"{whole.folder}@last"), data2vec.load(whole.folder)
    assert capsys.readouterr().err == f"data2vec: {whole.folder}/checkpoints/step-4: weights of step 4 of 4\n"
    assert same(last, model) and last.training[-1].step == model.training[-1].step == 4
    assert last.pretraining.keys() == model.pretraining.keys() and len(model.pretraining) > 0
    assert all(torch.equal(last.pretraining[name], weight) for name, weight in model.pretraining.items())


def test_step_of_a_run_is_the_model_of_that_step_by_both_of_its_names(whole: Run, tmp_path: Path) -> None:
    step, folder = data2vec.load(f"{whole.folder}@step-2"), data2vec.load(whole.folder / "checkpoints" / "step-2")
    assert same(step, folder) and step.training[-1].step == 2
    assert not same(step, data2vec.load(whole.folder))
    step.save_pretrained(tmp_path / "saved")
    assert same(data2vec.load(tmp_path / "saved"), step) and data2vec.load(tmp_path / "saved").training == step.training
    card = (tmp_path / "saved" / "README.md").read_text()
    assert re.search(r"Pre-trained without labels by `data2vec2` on `pictures\d` for 2 of 4 steps\.", card)


def test_run_without_a_model_is_opened_from_its_latest_complete_checkpoint(
    run: Run, whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.model)
    weights = run.folder / "checkpoints" / "step-4" / "objective.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    model = data2vec.load(run.folder)
    assert same(model, data2vec.load(f"{whole.folder}@step-2"))
    said = capsys.readouterr().err
    assert "skipping damaged checkpoint" in said and "step-2: weights of step 2 of 4" in said


def test_missing_and_damaged_steps_list_the_ones_there_are(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", f"{run.folder}@step-3", str(run.folder / "x"), "--to", "data2vec"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{run.folder}@step-3: there is no such checkpoint; the run has step-0, step-2, step-4")
    (run.folder / "checkpoints" / "step-2" / "objective.safetensors").unlink()
    with pytest.raises(UserError, match=r"objective\.safetensors is missing; the run has step-0, step-4"):
        data2vec.load(f"{run.folder}@step-2")


def test_best_weights_of_pretraining_are_refused(whole: Run) -> None:
    with pytest.raises(UserError, match=r"pre-training has no score to choose weights by; use .*@last or a step"):
        data2vec.load(f"{whole.folder}@best")


def test_best_weights_of_a_run_without_its_recipe_are_refused_with_the_steps_there_are(run: Run) -> None:
    run.recipe.unlink()
    with pytest.raises(UserError, match=r"the run has no recipe\.yaml.*; use .*@last or a step; the run has step-0, step-2"):
        data2vec.load(f"{run.folder}@best")


def test_best_weights_of_fine_tuning_are_its_model_and_last_are_those_of_the_last_step(tuned: Run) -> None:
    best, last = data2vec.load(f"{tuned.folder}@best"), data2vec.load(f"{tuned.folder}@last")
    assert same(best, data2vec.load(tuned.folder))
    assert last.head is not None and best.head is not None
    assert last.head.settings == best.head.settings
    assert last.recipe.objective == best.recipe.objective
    assert last.training[-1].step == 4
    state = json.loads((tuned.folder / "checkpoints" / "step-4" / "state.json").read_text())
    assert best.training[-1].step == state["task"]["best"]["step"]


def test_step_of_fine_tuning_is_evaluated_on_the_data_of_its_run_and_its_result_is_named_by_it(tuned: Run) -> None:
    logged = {line["step"]: line["valid_accuracy"] for line in tuned.metrics if "valid_accuracy" in line}
    for step in (2, 4):
        assert data2vec.evaluate(f"{tuned.folder}@step-{step}").scores["accuracy"] == pytest.approx(logged[step])
        assert (tuned.folder / f"evaluation-step-{step}.json").is_file()
    assert not (tuned.folder / "evaluation.json").exists()


def test_checkpoint_of_text_has_the_tokenizer_that_was_trained_on_the_text(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    text = "\n\n".join(f"the {word} sat on the mat {i}" for i in range(40) for word in "abc")
    (tmp_path / "books" / "a.txt").write_text(text)
    small = SMALL | {"modality.vocab_size": 300, "modality.max_length": 32, "data.block_size": 32, "train.steps": 2}
    run = data2vec.pretrain("text/v2-tiny", tmp_path / "books", small, tmp_path / "run")
    texts = ["the cat sat on the mat"]
    expected = data2vec.load(run.folder).features(texts).hidden
    shutil.rmtree(run.model)
    shutil.rmtree(tmp_path / "books")
    assert torch.equal(data2vec.load(run.folder).features(texts).hidden, expected)


def test_step_can_be_the_model_that_another_run_starts_from(
    whole: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole.folder.parent)
    settings = SMALL | {"train.steps": 1, "init": "run@step-2"}
    out = data2vec.pretrain("vision/v2-tiny", pictures, settings, tmp_path / "next")
    assert load_recipe(out.recipe).init == f"{whole.folder}@step-2"


def test_folder_whose_own_name_ends_like_a_step_is_opened_as_it_is(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.model, tmp_path / "run@step-2")
    (tmp_path / "run").mkdir()
    assert data2vec.load(tmp_path / "run@step-2").training[-1].step == 4
    assert result_file(tmp_path / "run@step-2", "probe") == tmp_path / "run@step-2" / "probe.json"


def test_run_of_a_model_is_known_by_each_of_its_names(whole: Run) -> None:
    folder = whole.folder
    names = (folder, f"{folder}@last", folder / "checkpoints" / "step-2")
    assert [run_of_model(name) for name in names] == [folder] * 3
    files = [result_file(name, "probe") for name in names]
    assert files == [folder / name for name in ("probe.json", "probe-last.json", "probe-step-2.json")]


def damage_state(checkpoint: Path, **changes: Any) -> None:
    """A state.json that the list of files vouches for, as a stranger can write."""
    file = checkpoint / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    listed = json.loads((checkpoint / "complete.json").read_text())
    listed["state.json"] = {"bytes": file.stat().st_size, "crc32": crc32(file)}
    (checkpoint / "complete.json").write_text(json.dumps(listed))


def test_checkpoint_of_a_stranger_imports_nothing_and_reads_no_file_outside(run: Run) -> None:
    checkpoint = run.folder / "checkpoints" / "step-2"
    recipe = json.loads((checkpoint / "state.json").read_text())["recipe"]
    damage_state(checkpoint, recipe=recipe | {"modality": recipe["modality"] | {"name": "sneaky:Class"}})
    with pytest.raises(UserError, match="never imported because a file names it"):
        data2vec.load(checkpoint)
    damage_state(checkpoint, recipe=recipe, files={"tokenizer": "../../secret"})
    with pytest.raises(UserError, match="names files outside of the checkpoint"):
        data2vec.load(checkpoint)
    damage_state(checkpoint, recipe=recipe | {"encoder": recipe["encoder"] | {"width": 8192, "ffn_width": 65536}}, files={})
    with pytest.raises(UserError, match="MiB"):
        data2vec.load(checkpoint)


def test_checkpoint_of_fine_tuning_without_a_record_of_its_head_is_refused(tuned: Run, tmp_path: Path) -> None:
    shutil.copytree(tuned.folder, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-4"
    damage_state(checkpoint, task={"best": None})
    with pytest.raises(UserError, match="it is of fine-tuning, and has no record of the head"):
        data2vec.load(checkpoint)


def test_weights_that_a_checkpoint_does_not_list_are_damage_and_are_not_waited_for(run: Run) -> None:
    checkpoint = run.folder / "checkpoints" / "step-2"
    os.mkfifo(checkpoint / "more.safetensors")
    assert checkpoint_damage(checkpoint) == "more.safetensors is not of it"
    with pytest.raises(UserError, match=r"more\.safetensors is not of it"):
        data2vec.load(checkpoint)
