"""Runs of the objectives that data2vec is compared with: pre-training, resuming, the model, and what is done with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import data2vec
from data2vec.errors import UserError
from data2vec.interop.convert import convert
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.shipped import recipe_names
from data2vec.report.page import build_report
from data2vec.run_dir import Run
from helpers.runs import crash_before, measured

RIVALS = [
    name
    for name in recipe_names()
    if load_recipe(name).objective.name not in ("data2vec", "data2vec2", "joint", "ctc", "classify") and name.endswith("-tiny")
]
SMALL: dict[str, Any] = {
    **{"train.steps": 5, "train.checkpoint_every": 2, "train.device": "cpu", "log.every": 1, "log.report": False},
    **{"encoder.width": 16, "encoder.heads": 2, "encoder.ffn_width": 32, "encoder.dropout": 0.1, "data.workers": 0},
}
BY_MODALITY: dict[str, dict[str, Any]] = {
    "vision": {"data.batch_size": 16, "data.micro_batch_size": 8, "train.schedule.warmup_steps": 2},
    "speech": {"data.batch_seconds": 4, "data.micro_batch_seconds": 2, "data.max_seconds": 1},
    "sound": {"data.batch_seconds": 4, "data.micro_batch_seconds": 2, "data.max_seconds": 1, "data.min_seconds": 0.2},
    "signal": {"data.batch_size": 16, "data.micro_batch_size": 8, "data.time_axis": "first"},
    "text": {
        **{"data.block_size": 32, "data.batch_size": 8, "data.micro_batch_size": 4, "train.schedule.warmup_steps": 2},
        **{"modality.vocab_size": 300},
    },
}


@pytest.fixture(scope="session")
def unlabelled(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Training data of each modality."""
    folder, rng = tmp_path_factory.mktemp("unlabelled"), np.random.default_rng(0)
    (folder / "clips").mkdir()
    for i in range(12):
        soundfile.write(folder / "clips" / f"{i}.wav", 0.1 * rng.standard_normal(8000), 16000)
    (folder / "text.txt").write_text("\n\n".join("".join(rng.choice(list("abcde "), 60)) for _ in range(60)))
    (folder / "signals").mkdir()
    for i in range(12):
        np.savez(folder / "signals" / f"{i}.npz", x=rng.standard_normal((400, 3)), fs=50)
    clips = folder / "clips"
    return {"signal": folder / "signals", "vision": pictures, "speech": clips, "sound": clips, "text": folder / "text.txt"}


def run(name: str, unlabelled: dict[str, Path], out: Path, resume: bool = False, **more: Any) -> Run:
    kind = name.partition("/")[0]
    settings = SMALL | BY_MODALITY[kind] | {"data.train": str(unlabelled[kind])} | SETTINGS.get(name, {}) | more
    settings = {key: value for key, value in settings.items() if value is not None}
    return data2vec.pretrain(name, overrides=settings, out=out, resume=resume)


SETTINGS: dict[str, dict[str, Any]] = {
    "speech/hubert-tiny": {"objective.clusters": 8, "objective.fit_positions": 200},
    "vision/beit-tiny": {"objective.clusters": 8, "objective.fit_positions": 200},
}


SLOW = ("simmim-tiny", "hubert-tiny", "logmel-tiny")  # their objectives are also those of other, quicker recipes


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith(SLOW)) for name in RIVALS])
def test_rival_run_can_be_resumed_and_its_model_used(name: str, unlabelled: dict[str, Path], tmp_path: Path) -> None:
    unharmed = run(name, unlabelled, tmp_path / "unharmed")
    with crash_before(4):
        run(name, unlabelled, tmp_path / "halted")
    resumed = run(name, unlabelled, tmp_path / "halted", resume=True)
    assert measured(resumed) == measured(unharmed) and len(resumed.metrics) == 5
    assert all(np.isfinite(line["loss"]) for line in resumed.metrics)

    model, other = data2vec.load(resumed.folder), data2vec.load(unharmed.folder)
    both = [one.encoder.state_dict() | dict(one.pretraining) for one in (model, other)]
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0]) and len(both[0]) == len(both[1])
    objective = model.recipe.objective.name
    assert f"# {objective} encoder for" in (resumed.model / "README.md").read_text()
    for form in ("fairseq", "transformers"):
        with pytest.raises(UserError, match=rf"^objective\.name: {objective} has no form as {form}[^\n]*$"):
            convert(model, tmp_path / form, form)  # type: ignore[arg-type]

    assert "no complete checkpoint" not in build_report(resumed.folder).read_text()
    again = run(name, unlabelled, tmp_path / "again", init=str(resumed.folder), **{"train.steps": 1})
    assert np.isfinite(again.metrics[0]["loss"])
