"""Pre-training in a loop of one's own: the same weights, batches and losses as of a run."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data2vec
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.model import Model
from data2vec.train.pretrain import PretrainTask, resolve_recipe

SMALL: dict[str, Any] = {
    "encoder.width": 16,
    "encoder.layers": 2,
    "encoder.heads": 2,
    "encoder.ffn_width": 32,
    "encoder.dropout": 0.0,
    "encoder.attention_dropout": 0.0,
    "encoder.activation_dropout": 0.0,
    "encoder.drop_path": 0.0,
    "objective.masks_per_sample": 2,
    "objective.target.top_k": 2,
    "objective.decoder.width": 16,
    "objective.decoder.dropout": 0.0,
    "objective.decoder.noise_std": 0.0,
    "data.batch_size": 8,
    "data.micro_batch_size": 4,
    "data.workers": 0,
    "train.device": "cpu",
    "train.steps": 3,
    "log.every": 1,
    "log.report": False,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_objective_and_batches_are_those_of_a_run(images: Path) -> None:
    recipe = resolve_recipe("vision/v2-tiny", images, SMALL, None)
    task = PretrainTask(recipe, Process(torch.device("cpu")))
    before = torch.random.get_rng_state()
    objective = data2vec.build_objective("vision/v2-tiny", images, SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {name: value.tolist() for name, value in objective.state_dict().items()} == {
        name: value.tolist() for name, value in task.objective.state_dict().items()
    }
    loader = data2vec.build_loader("vision/v2-tiny", images, SMALL)
    assert loader.accumulate == 2 and loader.recipe == recipe
    steps = list(islice(task.loader.steps(), 2))
    expected = [batch for step in steps for batch in step]
    for found, batch in zip(islice(loader, 4), expected, strict=True):
        assert torch.equal(found.input, batch.input) and torch.equal(found.mask, batch.mask)


def test_processes_share_the_batches_of_a_step(images: Path) -> None:
    parts = [data2vec.build_loader("vision/v2-tiny", images, SMALL, rank=rank, world_size=2) for rank in (0, 1)]
    whole = list(islice(data2vec.build_loader("vision/v2-tiny", images, SMALL), 2))
    assert [part.accumulate for part in parts] == [1, 1]
    shared = [next(iter(part)).input for part in parts]
    assert all(torch.equal(one, batch.input) for one, batch in zip(shared, whole, strict=True))
    with pytest.raises(UserError, match="rank: 2 is not a process of 2"):
        data2vec.build_loader("vision/v2-tiny", images, SMALL, rank=2, world_size=2)


def test_a_plain_torch_loop_has_the_loss_of_a_run_and_moves_the_teacher(images: Path, tmp_path: Path) -> None:
    run = data2vec.pretrain("vision/v2-tiny", images, SMALL, tmp_path / "run")
    objective, loader = (build("vision/v2-tiny", images, SMALL) for build in (data2vec.build_objective, data2vec.build_loader))
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)
    teacher = {name: value.clone() for name, value in objective.state_dict().items() if name.startswith("teacher.ema")}
    objective.before_step(1)
    outputs = [objective(batch) for batch in islice(loader, loader.accumulate)]
    loss = torch.stack([output.mean_loss for output in outputs]).mean()
    loss.backward()
    optimizer.step()
    objective.after_step(1)
    assert loss.item() == pytest.approx(run.metrics[0]["loss"], rel=1e-4)
    moved = [name for name, value in teacher.items() if not torch.equal(objective.state_dict()[name], value)]
    assert moved


def test_a_student_trained_elsewhere_is_saved_as_a_model(images: Path, tmp_path: Path) -> None:
    objective, loader = (build("vision/v2-tiny", images, SMALL) for build in (data2vec.build_objective, data2vec.build_loader))
    model = data2vec.Model(objective.student.eval(), objective.modality, loader.recipe)
    model.save_pretrained(tmp_path / "model")
    path = str(images / "0.png")
    assert torch.equal(data2vec.load(tmp_path / "model").features(path).hidden, model.features(path).hidden)


def test_targets_that_are_fitted_to_the_data_are_fitted(images: Path) -> None:
    with pytest.raises(UserError, match="data: the targets of objective codes are fitted to the training data"):
        data2vec.build_objective("vision/beit-tiny")
    codes = {"objective.clusters": 4, "objective.fit_positions": 100}
    shared = {key: value for key, value in SMALL.items() if not key.startswith("objective.")}
    objective = data2vec.build_objective("vision/beit-tiny", images, shared | codes)
    assert all(value.isfinite().all() for value in objective.state_dict().values())


def test_recipes_of_fine_tuning_have_no_pretraining_objective() -> None:
    with pytest.raises(UserError, match=r"objective\.name: classify is of a recipe for fine-tuning"):
        data2vec.build_objective("vision/classify-tiny")


def test_an_objective_without_data_has_the_settings_of_its_recipe() -> None:
    assert data2vec.build_objective("speech/v2-tiny").settings.name == "data2vec2"
    with pytest.raises(UserError, match=r"data\.train: no training data"):
        data2vec.build_loader("speech/v2-tiny")


POOLED = methodcaller("features", np.zeros((32, 32, 3), np.uint8), "last", True)
"""The pooled features of an image, of a model."""


@pytest.fixture
def model() -> Model:
    objective = data2vec.build_objective("vision/v2-tiny", overrides=SMALL)
    recipe = data2vec.load_recipe("vision/v2-tiny", SMALL)
    return Model(objective.student.eval().requires_grad_(False), objective.modality, recipe)


def test_models_recipes_features_and_predictions_survive_pickle(model: Model) -> None:
    batch = POOLED(model)
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.hidden, batch.hidden) and again.seconds is None
    assert pickle.loads(pickle.dumps(model.recipe)) == model.recipe
    prediction = data2vec.Prediction("a.png", "cat", 0.75, (("cat", 0.75), ("dog", 0.25)))
    assert pickle.loads(pickle.dumps(prediction)) == prediction


def test_models_and_features_pass_to_spawned_processes(model: Model) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(POOLED, model).result(timeout=120)
    assert torch.equal(found.hidden, POOLED(model).hidden)


@pytest.mark.slow
def test_models_and_features_pass_to_joblib(model: Model) -> None:
    from joblib import Parallel, delayed

    (found,) = Parallel(n_jobs=2)([delayed(POOLED)(model)])
    torch.testing.assert_close(found.hidden, POOLED(model).hidden)
