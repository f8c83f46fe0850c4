"""An objective outside the package, by its name on the command line."""

from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec import cli
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run

NAME = "helpers.sign_objective:Sign"
RECIPE = """\
modality: {name: vision, image: 32, patch: 4, positions: sincos}
encoder: {width: 16, layers: 2, heads: 2, ffn_width: 32}
objective: {name: "helpers.sign_objective:Sign", mask: {kind: random, prob: 0.5}}
data: {batch_size: 16, micro_batch_size: 8, workers: 0}
train: {steps: 3, device: cpu, checkpoint_every: 3}
log: {every: 1, report: false}
"""


def test_custom_objective_trains_from_the_command_line(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "sign.yaml").write_text(RECIPE)
    out = tmp_path / "run"
    words = ["--out", str(out), f"data.train={pictures}", "objective.weight=0.5"]
    assert cli.main(["pretrain", str(tmp_path / "sign.yaml"), *words]) == 0
    lines = Run(out).metrics
    assert len(lines) == 3 and lines[0]["loss"] == pytest.approx(0.5 * 0.693, abs=0.05)
    model = data2vec.load(out)
    assert model.recipe.objective.name == NAME and model.recipe.objective.weight == 0.5
    assert f"# {NAME} encoder for vision" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective.weigth": 1}, "objective.weigth: unknown setting; did you mean 'weight'"),
        ({"objective.name": "helpers.sign_objective:Sine"}, "cannot be imported"),
        ({"objective.name": "sign"}, "objective.name"),
    ],
)
def test_custom_objective_with_a_wrong_setting_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "sign.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match=message) as raised:
        load_recipe(tmp_path / "sign.yaml", changes)
    assert len(str(raised.value).splitlines()) == 1
