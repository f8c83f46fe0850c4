"""Our recipes and the official configurations say the same, there and back."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data2vec.errors import UserError
from data2vec.interop.fairseq.models import BEIT, ratio
from data2vec.interop.fairseq.recipe_to_config import differences, family_of, official_config, sections
from data2vec.recipe.loading import load_recipe, recipe_names, validate_recipe
from data2vec.recipe.recipe import Recipe

RELEASED = [name for name in recipe_names() if "tiny" not in name and "/v" in name]
WITHOUT_PLACE = {"modality.position_padding", "objective.cls_loss", "objective.cls_reduction"}
"""Of the shipped recipes: told as lost where they differ."""


def back(recipe: Recipe) -> Recipe:
    model, task, _ = official_config(recipe)
    found = sections(family_of(recipe), model, getattr(recipe.modality, "vocab_size", 0), task)
    return validate_recipe(found | {"data": {}}, "back")


@pytest.mark.parametrize("name", RELEASED)
def test_every_shipped_recipe_of_a_released_model_comes_back(name: str) -> None:
    recipe = load_recipe(name)
    changed = {key for key, _, _ in differences(recipe, back(recipe))}
    assert changed <= WITHOUT_PLACE
    lost = official_config(recipe)[2]
    unused = set() if name.startswith("vision") else {"objective.cls_reduction"}
    assert {line.partition(":")[0] for line in lost} == changed - unused


def test_the_weight_of_the_class_token_becomes_that_of_the_sum() -> None:
    assert official_config(load_recipe("vision/v2-base"))[0]["cls_loss"] == pytest.approx(0.01)
    assert official_config(load_recipe("vision/v2-huge"))[0]["cls_loss"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("speech/v1-tiny", "objective.target.state: 'block'"), ("speech/v2-tiny", "encoder.norm: 'pre'"),
        ("text/v1-tiny", "objective.target.state: 'block'"), ("text/v2-tiny", "encoder.norm: 'pre'"),
        ("vision/v1-tiny", "modality.positions: 'sincos'"), ("vision/v2-tiny", "encoder.key_bias: False"),
    ],
)  # fmt: skip
def test_what_the_official_model_lacks_is_named(name: str, wanted: str) -> None:
    with pytest.raises(UserError, match=rf"{wanted} has no counterpart in the official data2vec \d"):
        official_config(load_recipe(name))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("speech/v1-base", {"objective.mask": {"kind": "token"}}), ("speech/v1-base", {"modality.position_kernel": 2}),
        ("speech/v1-base", {"objective.target.layer_norms": ["layer", "instance"]}),
        ("speech/v1-base", {"objective.teacher.local_encoder": "averaged"}),  # then all layers are averaged there
        ("speech/v1-base", {"modality.mask_vector": False}), ("text/v1-base", {"objective.mask": {"kind": "span"}}),
        ("vision/v1-base", {"objective.teacher.end_decay": 1.0}), ("vision/v1-base", {"encoder.extra_tokens": 0}),
        ("vision/v2-base", {"objective.decoder.kernel": [3, 5]}), ("vision/v2-base", {"encoder.drop_path": 0.1}),
        ("speech/v2-base", {"objective.teacher.position_encoder": "shared"}), ("text/v2-base", {"encoder.activation": "relu"}),
    ],
)  # fmt: skip
def test_a_setting_without_counterpart_is_named(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has no counterpart"):
        official_config(load_recipe(name, change))


def test_a_modality_of_ones_own_has_no_official_form() -> None:
    recipe = load_recipe("speech/v1-base")
    modality = recipe.modality.model_copy(update={"name": "mine:Radar"})
    with pytest.raises(UserError, match="'mine:Radar' has no official form"):
        official_config(recipe.model_copy(update={"modality": modality}))


RATES = st.sampled_from([0.0, 0.05, 0.1, 0.25])
NORMS = st.sampled_from([("instance",), ("layer",), ("batch",), ("instance", "layer"), ("batch", "layer"), ()])
TEACHERS = {
    "speech1": [("shared", "shared"), ("shared", "averaged")], "text1": [("copied", "shared"), ("averaged", "averaged")],
    "vision1": [("averaged", "averaged")], "speech2": [("shared", "averaged"), ("averaged", "averaged")],
    "vision2": [("averaged", "averaged"), ("shared", "shared")], "text2": [("shared", "shared"), ("averaged", "averaged")],
}  # fmt: skip


@settings(max_examples=60)
@given(st.data())
def test_whatever_has_a_counterpart_comes_back(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(RELEASED))
    recipe = load_recipe(name)
    family = family_of(recipe)
    layers = data.draw(st.integers(recipe.encoder.prenet_layers + 1, 14))
    heads = data.draw(st.sampled_from([1, 2, 4]))
    features, positions = data.draw(st.sampled_from(TEACHERS[f"{family.modality}{family.version}"]))
    changes: dict[str, Any] = {
        "encoder.width": heads * 16 * data.draw(st.integers(1, 5)),
        "encoder.heads": heads,
        "encoder.layers": layers,
        "encoder.ffn_width": data.draw(st.integers(1, 4000)),
        "encoder.attention_dropout": data.draw(RATES),
        "objective.beta": data.draw(st.sampled_from([0.0, 0.5, 4.0])),
        "objective.target.top_k": data.draw(st.integers(1, layers - recipe.encoder.prenet_layers)),
        "objective.target.layer_norms": data.draw(NORMS),
        "objective.teacher.local_encoder": features,
        "objective.teacher.position_encoder": positions,
        "objective.teacher.decay": (decay := data.draw(st.floats(0.5, 1))),
        "objective.teacher.end_decay": decay if family == BEIT else data.draw(st.floats(0.5, 1)),
    }
    if family.modality == "speech":
        changes |= {"modality.position_depth": data.draw(st.integers(2, 6)), "modality.position_kernel": 2 * layers + 1}
        changes |= {"modality.conv_norm": data.draw(st.sampled_from(["layer", "group"]))}
    if family.version == 1 and family.modality != "vision":
        pre = data.draw(st.booleans())
        norms = {"encoder.norm": "pre" if pre else "post", "encoder.final_norm": pre}
        changes |= norms | ({"encoder.input_norm": not pre} if family.modality == "speech" else {})
    recipe = load_recipe(name, changes)
    assert {key for key, _, _ in differences(recipe, back(recipe))} <= WITHOUT_PLACE


@given(st.integers(1, 5000), st.integers(1, 20000))
def test_the_ratio_gives_the_very_inner_width(width: int, inner: int) -> None:
    assert int(width * ratio(width, inner)) == inner
