from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec.errors import UserError
from data2vec.recipe import recipe as recipes
from data2vec.recipe.recipe import Recipe


def mistakes(*overrides: str, name: str = "vision/v1-tiny") -> list[str]:
    with pytest.raises(UserError) as told:
        recipes.load(name, overrides)
    return str(told.value).splitlines()


@pytest.mark.parametrize("name", recipes.names())
def test_a_shipped_recipe_is_complete_when_printed(name: str) -> None:
    recipe = recipes.load(name)
    printed = recipes.parse(recipe.to_yaml(), name)
    assert recipes.validate(printed, name) == recipe
    assert printed.keys() == Recipe.model_fields.keys()
    assert recipes.summary(name)
    recipe.build_modality()


def test_the_names_that_users_rely_on() -> None:
    promised = "speech/v1-base speech/v1-large speech/v1-audioset vision/v1-base vision/v1-large text/v1-base text/v1-base-bert"
    assert {*promised.split(), "speech/v1-tiny", "vision/v1-tiny", "text/v1-tiny"} <= set(recipes.names())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e5", 1e5),
        (".5", 0.5),
        ("3", 3),
        ("-2.5e+1", -25.0),
        ("true", True),
        ("no", "no"),
        ("1e", "1e"),
        ("", None),
    ],
)
def test_values_are_read_as_one_expects(text: str, value: Any) -> None:
    read = recipes.parse(text, "here")
    assert read == value
    assert type(read) is type(value)


def test_overrides_as_words_and_as_a_mapping() -> None:
    words = recipes.load("vision/v1-tiny", ["train.lr=1e-2", "data.train=a/b", "objective.mask={kind: span, length: 3}"])
    given = {"train.lr": 1e-2, "data.train": Path("a/b"), "objective.mask": {"kind": "span", "length": 3}}
    assert words == recipes.load("vision/v1-tiny", given)
    assert words.train.lr == 0.01
    assert recipes.load(words, ["data.train="]).data.train is None


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("modality: {name: speech}\ntrain:\nencoder: {layers: 2}\n")
    recipe = recipes.load(path, ["train.steps=5"])
    assert recipe.encoder.layers == 2
    assert recipe.train.steps == 5
    assert recipe.data.train is None


def test_every_mistake_is_told_at_once_in_a_line_each() -> None:
    lines = mistakes("train.stepz=3", "lr=3", "encoder.width=wide", "objective.scale=foo", "train.precision=bf17")
    assert lines == [
        "vision/v1-tiny: encoder.width: should be a valid integer, not 'wide'",
        "vision/v1-tiny: objective.scale: should be a valid number, or should be '1/sqrt(width)' or '1/width', not 'foo'",
        "vision/v1-tiny: train.precision: should be 'fp32', 'bf16' or 'fp16', not 'bf17'; did you mean 'bf16'?",
        "vision/v1-tiny: train.stepz: there is no such setting; did you mean 'steps'?",
        "vision/v1-tiny: lr: there is no such setting; did you mean 'train.lr'?",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.mask.lenght=3", "objective.mask.lenght: there is no such setting; here are kind, patches,"),
        ("objective.mask.patchs=3", "objective.mask.patchs: there is no such setting; did you mean 'patches'?"),
        (
            "objective.mask.kind=blok",
            "objective.mask.kind: 'blok' is none of 'span', 'token', 'block', 'fixed-block', 'random'; did you mean 'block'?",
        ),
        (
            "objective.name=data2vec3",
            "objective.name: 'data2vec3' is none of 'data2vec', 'data2vec2', 'ctc', 'classify'; did you mean 'data2vec'?",
        ),
        ("objective.mask={}", "objective.mask.kind: is missing; one of span, token, block, fixed-block, random"),
        ("train.schedule.name=cosin", "train.schedule.name: 'cosin' is none of"),
        (
            "train.schedule.warmup_stepz=1",
            "train.schedule.warmup_stepz: there is no such setting; did you mean 'warmup_steps'?",
        ),
        ("modality.imag=3", "modality.imag: there is no such setting; did you mean 'image'?"),
        ("data.batch_seconds=3", "data.batch_seconds: there is no such setting; did you mean 'batch_size'?"),
        ("modality.mean=[1, 2]", "modality.mean.2: is missing"),
        ("modality.name=vison", "modality.name: 'vison' is none of speech, vision, text"),
        ("modality.name=", "modality.name: is missing; one of speech"),
        ("modality.name=nowhere:Thing", "modality.name: 'nowhere:Thing' cannot be imported"),
        ("train.lr=-1", "train.lr: should be greater than 0, not -1"),
        ("train.lr=", "train.lr: should be a valid number, not empty"),
        ("train.betas=[0.9, two]", "train.betas.1: should be a valid number, not 'two'"),
        ("train.compile=yes", "train.compile: should be a valid boolean, not 'yes'"),
        ("train.schedule={name: tri_stage, warmup: 0.5, hold: 0.6}", "train.schedule: warmup and hold"),
        ("encoder=3", "encoder: should be a section with settings of its own, not 3"),
        ("encoder.heads=3", "encoder: width 64 is not a multiple of heads 3"),
        ("foo.bar=1", "foo: there is no such setting; here are modality, encoder"),
    ],
)
def test_a_mistake_is_one_line_with_the_mend(override: str, said: str) -> None:
    lines = mistakes(override)
    assert len(lines) == 1
    assert lines[0].startswith(f"vision/v1-tiny: {said}")


def test_an_unknown_modality_does_not_hide_other_mistakes() -> None:
    assert len(mistakes("modality.name=vison", "encoder.wdth=3")) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.lr"], "'train.lr' is not an override: write key=value"),
        (["=3"], "'=3' is not an override"),
        (["train.lr.x=3"], "train.lr.x: train.lr is a value, not a section"),
        (["train.lr=[1"], "train.lr, line 1: not valid YAML"),
    ],
)
def test_what_is_no_override(overrides: list[str], said: str) -> None:
    assert mistakes(*overrides)[0].startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vision/v1-tin", "there is no recipe 'vision/v1-tin'; did you mean 'vision/v1-tiny'?"),
        ("nowhere.yaml", "recipe nowhere.yaml cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_recipe(name: str, said: str) -> None:
    assert mistakes(name=name)[0].startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"train: {lr: [}", "line 1: not valid YAML"),
        (b"- a\n- b", "a recipe is a mapping with the sections modality"),
        (b"", "a recipe is a mapping"),
        (b"train: {}\ntrain: {}\n", "line 2: not valid YAML: 'train' stands here twice"),
        ("modality: {name: vision} # \xe9".encode("latin-1"), "is not UTF-8"),
        (b"{}", "modality.name: is missing"),
        (b"modality: vision", "modality.name: is missing"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    lines = mistakes(name=str(path))
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert said in lines[0]


def test_every_setting_says_what_it_is() -> None:
    for modality in recipes.MODALITIES:
        for key, field in recipes.settings(recipes.schema(modality)):
            assert field.description or key.endswith((".name", ".kind")), key


def test_a_recipe_can_be_made_in_python() -> None:
    from data2vec.data.image import VisionData
    from data2vec.modalities.vision import VisionSettings

    recipe = data2vec.Recipe(modality=VisionSettings(image=32, patch=4), data=VisionData(batch_size=8))
    assert recipes.load(recipe).data.batch == 8
