import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import data2vec
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.train.pretrain import PretrainTask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tiny2: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return data2vec.pretrain(
        "vision/v2-tiny", overrides=tiny2 | {"train.steps": 3}, out=tmp_path_factory.mktemp("runs") / "first"
    )


def begin(where: Path, settings: dict[str, Any]) -> Any:
    return PretrainTask(load_recipe("vision/v2-tiny", settings | {"init": str(where), "train.seed": 9}), Process(CPU))


def test_init_loads_student_teacher_and_decoder(run: Run, tiny2: dict[str, Any]) -> None:
    task = begin(run.folder, tiny2)
    model = data2vec.load(run.folder)
    state = task.objective.state_dict()
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(state.pop(f"student.{name}"), weight)
    assert state.keys() == model.pretraining.keys()
    assert all(torch.equal(weight, model.pretraining[name]) for name, weight in state.items())
    assert any(not torch.equal(weight, model.encoder.state_dict().get(name[12:], weight)) for name, weight in state.items())
    assert task.init_message.endswith("its teacher and head are loaded too")


def test_init_without_pretraining_weights_copies_the_student_to_the_teacher(
    run: Run, tiny2: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(run.model, tmp_path / "model")
    (tmp_path / "model" / "pretraining.safetensors").unlink()
    task = begin(tmp_path / "model", tiny2)
    state = task.objective.state_dict()
    teacher = [name for name in state if name.startswith("teacher.ema.")]
    assert teacher and all(torch.equal(state[name], state[f"student.{name[12:]}"]) for name in teacher)
    _, of_teacher, of_decoder = task.init_message.splitlines()
    assert of_teacher == "init: the teacher is a copy of the student, where the model has none that fits"
    assert of_decoder == "init: the decoder is new, since the model has none that fits"


def test_run_with_init_resumes_without_the_init_model(
    run: Run, tiny2: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.model, tmp_path / "model")
    settings = tiny2 | {"init": str(tmp_path / "model"), "train.steps": 6}
    whole = data2vec.pretrain("vision/v2-tiny", overrides=settings, out=tmp_path / "whole")
    assert "init: the student of" in capfd.readouterr().err
    shutil.copytree(whole.folder, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-6")
    (tmp_path / "model" / "model.safetensors").unlink()
    parts = data2vec.pretrain("vision/v2-tiny", overrides=settings, out=tmp_path / "parts", resume=True)
    assert [line["loss"] for line in parts.metrics] == [line["loss"] for line in whole.metrics]


def test_continued_pretraining_keeps_source_licence_and_stages_of_the_init_model_also_when_resumed(
    run: Run, tiny2: dict[str, Any], pictures: Path, tmp_path: Path
) -> None:
    first = data2vec.load(run.folder)
    (stage,) = first.training
    assert (stage.task, stage.data, stage.step, stage.steps, stage.chosen_by) == ("data2vec2", pictures.name, 3, 3, None)
    assert {score.name: score.value for score in stage.scores}["loss"] == run.metrics[-1]["loss"]
    replace(first, source="the attic", license="mit").save_pretrained(tmp_path / "model")
    settings = tiny2 | {"init": str(tmp_path / "model"), "train.steps": 6, "data.valid": str(pictures), "probe.every": 3}
    whole = data2vec.pretrain("vision/v2-tiny", overrides=settings, out=tmp_path / "run")
    second = data2vec.load(whole.folder)
    assert (second.source, second.license, second.training[:-1]) == ("the attic", "mit", (stage,))
    scores = {score.name: (score.value, score.data) for score in second.training[-1].scores}
    assert scores["valid_loss"] == (whole.metrics[-1]["valid_loss"], pictures.name) and scores["loss"][1] is None
    shutil.rmtree(whole.checkpoints[0])
    shutil.rmtree(whole.model)
    shutil.rmtree(tmp_path / "model")
    again = data2vec.pretrain("vision/v2-tiny", overrides=settings, out=tmp_path / "run", resume=True)
    resumed = data2vec.load(again.folder)
    assert (resumed.source, resumed.license, resumed.training[:-1]) == ("the attic", "mit", (stage,))


def test_init_of_another_shape_is_refused_with_the_difference(run: Run, tiny2: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"init: .* does not fit this recipe: encoder.layers is 4 in the recipe and 3 in the model"
    ):
        begin(run.folder, tiny2 | {"encoder.layers": 4})


def test_init_with_other_settings_of_the_same_shape_warns(
    run: Run, tiny2: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    begin(run.folder, tiny2 | {"encoder.heads": 4, "encoder.dropout": 0.3})
    assert "trained with other settings: encoder.heads is 4 in the recipe and 2 in the model" in caplog.text
    assert "dropout" not in caplog.text


def test_init_of_text_uses_the_tokenizer_of_the_model(tiny2: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line of some words, and then another one\n" * 200)
    small = tiny2 | {"data.block_size": 32, "data.batch_size": 4, "data.micro_batch_size": 4, "train.steps": 1}
    small |= {"modality.vocab_size": 300, "modality.max_length": 32, "encoder.drop_path": 0.0, "objective.masks_per_sample": 2}
    small.pop("data.train")
    first = data2vec.pretrain("text/v2-tiny", str(tmp_path / "text.txt"), small, tmp_path / "first")
    (tmp_path / "more.txt").write_text("quite different words that it has never seen before\n" * 200)
    second = data2vec.pretrain(
        "text/v2-tiny", str(tmp_path / "more.txt"), small | {"init": str(first.folder)}, tmp_path / "second"
    )
    assert (second.model / "tokenizer.json").read_bytes() == (first.model / "tokenizer.json").read_bytes()
    shutil.copytree(first.model, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config | {"files": {}}))
    with pytest.raises(UserError, match=r"data\.tokenizer: .*bare has no tokenizer"):
        data2vec.pretrain(
            "text/v2-tiny", str(tmp_path / "more.txt"), small | {"init": str(tmp_path / "bare")}, tmp_path / "third"
        )
