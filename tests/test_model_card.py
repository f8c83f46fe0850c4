"""The code in the card of a model runs on an input that the model takes."""

from typing import Any

import pytest

from data2vec.model import Model
from data2vec.model_card import usage_code
from data2vec.nn.encoder import build_encoder
from data2vec.recipe.loading import load_recipe

SIGNAL = {"channels": ["ax", "ay"], "rate": 50.0, "scale.mean": [0.0, 0.0], "scale.std": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("recipe", "changes", "shape"),
    [
        ("video/v2-tiny", {"data.frame_stride": 2}, (1, 15, 32, 32, 3)),
        ("signal/v2-tiny", {f"modality.{key}": value for key, value in SIGNAL.items()}, (1, 200, 2)),
        ("sound/v2-tiny", {"modality.mean": 0.0, "modality.std": 1.0}, (1, 16000)),
    ],
)
def test_code_of_the_card_runs(
    recipe: str, changes: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_recipe(recipe, changes)
    model = Model(build_encoder(found.build_modality(), found.encoder).eval(), found.build_modality(), found)
    monkeypatch.setattr("data2vec.load", lambda where: model)
    names: dict[str, Any] = {}
    exec(usage_code(model, has_tokenizer=False), names)
    assert (1, *names["inputs"][0].shape) == shape and names["features"].hidden.shape[1] == 1
