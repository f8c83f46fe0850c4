"""A folder of small pictures, and a recipe so small that a run of it takes a second."""

from pathlib import Path
from typing import Any

import pytest

from helpers.pictures import write_pictures

TINY: dict[str, Any] = {
    "train.steps": 8,
    "train.checkpoint_every": 3,
    "train.schedule.warmup_steps": 2,
    "encoder.width": 16,
    "encoder.layers": 3,
    "encoder.heads": 2,
    "encoder.ffn_width": 32,
    "encoder.dropout": 0.1,
    "encoder.drop_path": 0.1,
    "objective.teacher.decay": 0.99,
    "objective.teacher.end_decay": 0.999,
    "objective.teacher.anneal_steps": 4,
    "data.batch_size": 16,
    "data.micro_batch_size": 8,
    "data.workers": 0,
    "train.device": "cpu",
    "log.every": 1,
    "log.report": False,
}
TINY_2: dict[str, Any] = TINY | {
    "objective.masks_per_sample": 3,
    "objective.decoder.width": 16,
    "objective.decoder.dropout": 0.1,
    "objective.target.top_k": 2,
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 40, digits=2)


@pytest.fixture(scope="session")
def tiny(pictures: Path) -> dict[str, Any]:
    """Overrides that make vision/v1-tiny tiny."""
    return TINY | {"data.train": str(pictures)}


@pytest.fixture(scope="session")
def tiny2(pictures: Path) -> dict[str, Any]:
    """Overrides that make vision/v2-tiny tiny."""
    return TINY_2 | {"data.train": str(pictures)}
