"""Folders of small labelled pictures, and a recipe so small that a step of it takes milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

TINY: dict[str, Any] = {
    "encoder.width": 16,
    "encoder.layers": 2,
    "encoder.heads": 2,
    "encoder.ffn_width": 32,
    "objective.target.top_k": 2,
    "data.batch_size": 16,
    "data.micro_batch_size": 8,
    "data.workers": 0,
    "train.steps": 8,
    "train.schedule.warmup_steps": 2,
    "train.device": "cpu",
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `train`, `dev` and `test`, each with class folders `dark` and `light` of small noise pictures."""
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, count in (("train", 20), ("dev", 10), ("test", 10)):
        for label, level in (("dark", 0), ("light", 100)):
            (folder / name / label).mkdir(parents=True)
            for i in range(count):
                picture = level + rng.integers(0, 156, (4, 4, 3), dtype=np.uint8)
                Image.fromarray(picture.astype(np.uint8)).resize((32, 32)).save(folder / name / label / f"{i:02}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(pictures: Path) -> dict[str, Any]:
    """Overrides that make vision/v1-tiny tiny."""
    return TINY | {"data.train": str(pictures / "train")}
