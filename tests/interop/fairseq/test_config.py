"""Recipes survive the way to an official configuration and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data2vec.errors import UserError
from data2vec.interop.fairseq.config import (
    fairseq_config,
    family_of_recipe,
    mlp_ratio,
    own_settings,
    parse_conv_layers,
    recipe_sections,
    setting_differences,
)
from data2vec.interop.fairseq.key_mapping import BEIT
from data2vec.recipe.loading import load_recipe, validate_recipe
from data2vec.recipe.recipe import Recipe
from helpers.fuzzing import examples
from helpers.released_models import RELEASED

NOT_IN_FAIRSEQ = {"modality.position_padding", "objective.cls_loss", "objective.cls_reduction"}
"""Settings of the shipped recipes that are listed as lost where they differ."""


def back(recipe: Recipe) -> Recipe:
    model, task, _ = fairseq_config(recipe)
    sections = recipe_sections(family_of_recipe(recipe), model, getattr(recipe.modality, "vocab_size", 0), task)
    for section, settings in own_settings(recipe).items():
        sections[section] |= settings
    return validate_recipe(sections | {"data": {}}, "back")


@pytest.mark.parametrize("name", RELEASED)
def test_shipped_recipe_of_a_released_model_survives_the_round_trip(name: str) -> None:
    recipe = load_recipe(name)
    changed = {key for key, _, _ in setting_differences(recipe, back(recipe))}
    assert changed <= NOT_IN_FAIRSEQ
    lost = fairseq_config(recipe)[2]
    unused = set() if name.startswith(("vision", "sound")) else {"objective.cls_reduction"}
    assert {line.partition(":")[0] for line in lost} == changed - unused


def test_class_token_loss_weight_is_converted_from_mean_to_sum() -> None:
    assert fairseq_config(load_recipe("vision/v2-base"))[0]["cls_loss"] == pytest.approx(0.01)
    assert fairseq_config(load_recipe("vision/v2-huge"))[0]["cls_loss"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("speech/v1-tiny", "objective.target.source: 'block'"), ("speech/v2-tiny", "encoder.norm: 'pre'"),
        ("text/v1-tiny", "objective.target.source: 'block'"), ("text/v2-tiny", "encoder.norm: 'pre'"),
        ("vision/v1-tiny", "modality.positions: 'sincos'"), ("vision/v2-tiny", "encoder.key_bias: False"),
    ],
)  # fmt: skip
def test_tiny_recipe_is_refused_with_the_unsupported_setting(name: str, wanted: str) -> None:
    with pytest.raises(UserError, match=rf"{wanted} is not supported by the official data2vec \d"):
        fairseq_config(load_recipe(name))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("speech/v1-base", {"objective.mask": {"kind": "token"}}), ("speech/v1-base", {"modality.position_kernel": 2}),
        ("speech/v1-base", {"objective.target.per_layer_norms": ["layer", "instance"]}),
        ("speech/v1-base", {"objective.teacher.local_encoder": "averaged"}),  # then all layers are averaged there
        ("speech/v1-base", {"modality.mask_vector": False}), ("text/v1-base", {"objective.mask": {"kind": "span"}}),
        ("vision/v1-base", {"objective.teacher.end_decay": 1.0}), ("vision/v1-base", {"encoder.extra_tokens": 0}),
        ("vision/v2-base", {"objective.decoder.kernel": [3, 5]}),
        ("speech/v2-base", {"objective.teacher.position_encoder": "shared"}), ("text/v2-base", {"encoder.activation": "relu"}),
    ],
)  # fmt: skip
def test_unsupported_setting_is_refused_by_name(name: str, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is not supported by the official"):
        fairseq_config(load_recipe(name, change))


def test_custom_modality_is_refused() -> None:
    recipe = load_recipe("speech/v1-base")
    modality = recipe.modality.model_copy(update={"name": "mine:Radar"})
    with pytest.raises(UserError, match="'mine:Radar' has no official counterpart"):
        fairseq_config(recipe.model_copy(update={"modality": modality}))


RATES = st.sampled_from([0.0, 0.05, 0.1, 0.25])
NORMS = st.sampled_from([("instance",), ("layer",), ("batch",), ("instance", "layer"), ("batch", "layer"), ()])
TEACHERS = {
    "speech1": [("shared", "shared"), ("shared", "averaged")], "text1": [("copied", "shared"), ("averaged", "averaged")],
    "vision1": [("averaged", "averaged")], "speech2": [("shared", "averaged"), ("averaged", "averaged")],
    "vision2": [("averaged", "averaged"), ("shared", "shared")], "text2": [("shared", "shared"), ("averaged", "averaged")],
    "sound2": [("averaged", "averaged"), ("shared", "shared")],
}  # fmt: skip


@examples(60)
@given(st.data())
def test_random_supported_recipe_survives_the_round_trip(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(RELEASED))
    recipe = load_recipe(name)
    family = family_of_recipe(recipe)
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
        "objective.target.per_layer_norms": data.draw(NORMS),
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
    assert {key for key, _, _ in setting_differences(recipe, back(recipe))} <= NOT_IN_FAIRSEQ


@given(st.integers(1, 5000), st.integers(1, 20000))
def test_mlp_ratio_gives_exactly_the_inner_width(width: int, inner: int) -> None:
    assert int(width * mlp_ratio(width, inner)) == inner


def test_conv_layers_are_parsed_without_running_code() -> None:
    assert parse_conv_layers("[(8, 10, 5)] + [(8, 3, 2)] * 2") == [[8, 10, 5], [8, 3, 2], [8, 3, 2]]
    for text in ("[(8, 3, 2)] * 10**9", "[(8, 3, 2)] * 1000000000", "__import__('os').getcwd()", "[(8, 3, 2)] * 9 * 9 * 9"):
        with pytest.raises(ValueError, match=r"malformed|conv layers"):
            parse_conv_layers(text)
