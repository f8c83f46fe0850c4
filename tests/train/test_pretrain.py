"""Pre-training and what follows it on a dataset in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import data2vec
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe


def rows_of(paths: list[Path]) -> Dataset:
    return Dataset.from_dict({"image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths]})


def test_dataset_in_memory_trains_as_its_files_do(tiny2: dict[str, Any], pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.glob("*.png"))
    data = DatasetDict({"train": rows_of(paths), "test": rows_of(paths[:3])})
    changes = {key: value for key, value in tiny2.items() if key != "data.train" and not key.startswith("objective.teacher.")}
    changes["train.steps"] = 4
    run = data2vec.pretrain("vision/v2-tiny", data, changes, tmp_path / "run")
    of_files = data2vec.pretrain("vision/v2-tiny", str(pictures), changes, tmp_path / "files")
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in of_files.metrics]
    assert "/datasets/" in str(load_recipe(run.recipe).data.train), "the run can be resumed from the cache"
    model = data2vec.load(run.folder)
    found = data2vec.features(model, data, tmp_path / "test.npy", pool=True, split="test")
    assert found.inputs == 3
    data2vec.features(model, paths[:3], tmp_path / "files.npy", pool=True)
    assert np.array_equal(np.load(tmp_path / "test.npy"), np.load(tmp_path / "files.npy"))


def test_pretrain_of_a_recipe_object_for_fine_tuning_is_refused_without_printing_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^recipe: is a recipe for fine-tuning; use 'data2vec finetune' with --model$"):
        data2vec.pretrain(load_recipe("vision/classify-tiny"), "data", out=tmp_path)
