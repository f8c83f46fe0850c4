from pathlib import Path
from typing import Any

import pytest

import data2vec
from data2vec.data.sources.library import data_path
from data2vec.errors import UserError
from data2vec.nn.transformer_decoder import TransformerDecoderSettings
from data2vec.recipe.joint import JointRecipe
from data2vec.recipe.loading import load_recipe, validate_recipe
from data2vec.recipe.recipe import MODALITIES, Recipe, data_name, recipe_class
from data2vec.recipe.renamed_keys import RENAMED
from data2vec.recipe.shipped import recipe_names, recipe_summary
from data2vec.recipe.yaml_format import dump_yaml, parse_yaml
from data2vec.settings import iter_settings


def load_errors(*overrides: str, name: str = "vision/v1-tiny") -> list[str]:
    with pytest.raises(UserError) as raised:
        load_recipe(name, overrides)
    return str(raised.value).splitlines()


@pytest.mark.parametrize("name", recipe_names())
def test_to_yaml_of_a_shipped_recipe_is_complete_and_loads_equal(name: str) -> None:
    recipe = load_recipe(name)
    printed = parse_yaml(recipe.to_yaml(), name)
    assert validate_recipe(printed, name) == recipe
    assert printed.keys() == Recipe.model_fields.keys()
    assert recipe_summary(name).count(". ") == 0
    for part in recipe.parts.values() if isinstance(recipe, JointRecipe) else [recipe]:
        part.build_modality()


def test_recipe_names_include_those_promised() -> None:
    promised = "speech/v1-base speech/v1-large speech/v1-audioset vision/v1-base vision/v1-large text/v1-base text/v1-base-bert"
    assert {*promised.split(), "speech/v1-tiny", "vision/v1-tiny", "text/v1-tiny"} <= set(recipe_names())


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
        ("~", None),
        ("on", "on"),
        ("1_000", 1000),
        ("017", 17),
        ("0o17", 15),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
        ("'1e-3'", "1e-3"),
        (".inf", float("inf")),
    ],
)
def test_parse_yaml_of_a_scalar_follows_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(text, "recipe")
    assert read == value
    assert type(read) is type(value)


def test_parse_yaml_merges_an_alias() -> None:
    text = "a: &shared {lr: 1}\nb:\n  <<: *shared\n  seed: 2\nc: *shared"
    assert parse_yaml(text, "recipe") == {"a": {"lr": 1}, "b": {"lr": 1, "seed": 2}, "c": {"lr": 1}}


EXPLODING = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EXPLODING, "values after aliases are expanded"),
        ("a: &x [*x]", "an alias contains itself"),
        ("a: *x", "undefined alias"),
        ("[" * 5000, "nested too deeply"),
        ("a: {b: 1, b: 1}", "duplicate key"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !!int x", "invalid literal"),
        ("1\n---\n2", "another document"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_parse_yaml_of_hostile_or_invalid_text_raises_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        parse_yaml(text, "recipe")
    assert str(raised.value).startswith("recipe")
    assert "\n" not in str(raised.value)


def test_dump_yaml_loads_equal_and_keeps_the_order_of_keys() -> None:
    shared = [1, 2.0]
    texts = ["1e-3", "on", "true", "2020-01-01", "017", "=", "<<", "a: b", "é\nü", "", "x y " * 60]
    value = {"z": 1e-6, "a": {"texts": texts, "none": None, "large": 1e20, "inf": float("inf")}, "b": [shared, shared], "c": {}}
    dumped = dump_yaml(value)
    assert parse_yaml(dumped, "recipe") == value
    assert list(parse_yaml(dumped, "recipe")) == list(value)
    assert "&" not in dumped


def test_load_recipe_takes_overrides_as_strings_or_mapping() -> None:
    words = load_recipe("vision/v1-tiny", ["train.lr=1e-2", "data.train=a/b", "objective.mask={kind: span, length: 3}"])
    given = {"train.lr": 1e-2, "data.train": Path("a/b"), "objective.mask": {"kind": "span", "length": 3}}
    assert words == load_recipe("vision/v1-tiny", given)
    assert words.train.lr == 0.01
    assert load_recipe(words, ["data.train="]).data.train is None


def test_load_recipe_of_a_file_fills_in_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("modality: {name: speech}\ntrain:\nencoder: {layers: 2}\n")
    recipe = load_recipe(path, ["train.steps=5"])
    assert recipe.encoder.layers == 2
    assert recipe.train.steps == 5
    assert recipe.data.train is None


def test_load_recipe_reports_all_errors_a_line_each() -> None:
    lines = load_errors("train.stepz=3", "lr=3", "encoder.width=wide", "objective.loss_scale=foo", "train.precision=bf17")
    assert lines == [
        "vision/v1-tiny: encoder.width: should be a valid integer, not 'wide'",
        "vision/v1-tiny: objective.loss_scale: should be a valid number, or should be '1/sqrt(width)' or '1/width', not 'foo'",
        "vision/v1-tiny: train.precision: should be 'fp32', 'bf16' or 'fp16', not 'bf17'; did you mean 'bf16'?",
        "vision/v1-tiny: train.stepz: unknown setting; did you mean 'steps'?",
        "vision/v1-tiny: lr: unknown setting; did you mean 'train.lr'?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.mask.lenght=3", "objective.mask.lenght: unknown setting; allowed are kind, patches,"),
        ("objective.mask.patchs=3", "objective.mask.patchs: unknown setting; did you mean 'patches'?"),
        (
            "objective.mask.kind=blok",
            "objective.mask.kind: 'blok' is not one of 'span', 'token', 'block', 'fixed-block', 'random'; did you mean 'block'",
        ),
        (
            "objective.name=data2vec3",
            "objective.name: 'data2vec3' is not one of 'data2vec', 'data2vec2', ",
        ),
        ("objective.mask={}", "objective.mask.kind: is missing; one of span, token, block, fixed-block, random"),
        ("train.schedule.name=cosin", "train.schedule.name: 'cosin' is not one of"),
        (
            "train.schedule.warmup_stepz=1",
            "train.schedule.warmup_stepz: unknown setting; did you mean 'warmup_steps'?",
        ),
        ("train.decay=all", "train.decay: unknown setting; train.decay is now train.weight_decay_on"),
        ("objective.health={}", "objective.health: unknown setting; objective.health is now health"),
        ("objective.fill=noise", "objective.fill: unknown setting; allowed are"),
        ("modality.imag=3", "modality.imag: unknown setting; did you mean 'image'?"),
        ("data.batch_seconds=3", "data.batch_seconds: unknown setting; did you mean 'batch_size'?"),
        ("modality.mean=[1, 2]", "modality.mean.2: is missing"),
        ("modality.name=vison", "modality.name: 'vison' is not one of speech, vision, text"),
        ("modality.name=", "modality.name: is missing; one of speech"),
        ("modality.name=nowhere:Thing", "modality.name: 'nowhere:Thing' cannot be imported"),
        ("train.lr=-1", "train.lr: should be greater than 0, not -1"),
        ("train.lr=", "train.lr: should be a valid number, not empty"),
        ("data.split=null", "data.split: is null or empty; set it to a text"),
        ("data.split=5", "data.split: 5 is no text; to name what reads as a number, quote it: 'data.split=\"5\"'"),
        ("data.split=true", "data.split: True is no text; to name what reads as a number, quote it: 'data.split=\"true\"'"),
        ("data.split=[a]", "data.split: ['a'] is no text"),
        ("train.betas=[0.9, two]", "train.betas.1: should be a valid number, not 'two'"),
        ("train.betas=3", "train.betas: should be a list in brackets, not 3"),
        ("train.betas=[1, 2, 3]", "train.betas: should have at most 2 entries, not 3"),
        ("data.train_rows={where: {speaker: []}}", "data.train_rows.where.speaker: should have at least 1 entry, not 0"),
        ("train.compile=yes", "train.compile: should be a valid boolean, or should be 'auto', not 'yes'"),
        ("train.schedule={name: tri_stage, warmup: 0.5, hold: 0.6}", "train.schedule: warmup + hold"),
        ("encoder=3", "encoder: should be a section with settings, not 3"),
        ("encoder.heads=3", "encoder: width 64 is not a multiple of heads 3"),
        ("foo.bar=1", "foo: unknown setting; allowed are modality, encoder"),
    ],
)
def test_load_recipe_with_a_wrong_override_raises_one_line(override: str, message: str) -> None:
    lines = load_errors(override)
    assert len(lines) == 1
    assert lines[0].startswith(f"vision/v1-tiny: {message}")


def test_load_recipe_with_unknown_modality_reports_other_errors_too() -> None:
    assert len(load_errors("modality.name=vison", "encoder.wdth=3")) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lr"], "'train.lr' is not an override: write key=value"),
        (["=3"], "'=3' is not an override"),
        (["train.lr.x=3"], "train.lr.x: train.lr is a value, not a section"),
        (["train.lr=[1"], "train.lr, line 1: not valid YAML"),
    ],
)
def test_load_recipe_with_a_malformed_override_raises(overrides: list[str], message: str) -> None:
    assert load_errors(*overrides)[0].startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vision/v1-tin", "there is no recipe 'vision/v1-tin'; did you mean 'vision/v1-tiny'?"),
        ("nowhere.yaml", "recipe nowhere.yaml cannot be read: No such file or directory"),
    ],
)
def test_load_recipe_with_an_unknown_name_raises(name: str, message: str) -> None:
    assert load_errors(name=name)[0].startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"train: {lr: [}", "line 1: not valid YAML"),
        (b"- a\n- b", "a recipe is a mapping with the sections modality"),
        (b"", "a recipe is a mapping"),
        (b"train: {}\ntrain: {}\n", "line 2: not valid YAML: found duplicate key"),
        ("modality: {name: vision} # \xe9".encode("latin-1"), "is not UTF-8"),
        (b"{}", "modality.name: is missing"),
        (b"modality: vision", "modality.name: is missing"),
    ],
)
def test_load_recipe_of_an_invalid_file_raises_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    lines = load_errors(name=str(path))
    assert len(lines) == 1
    assert str(path) in lines[0]
    assert message in lines[0]


def test_every_setting_has_a_description() -> None:
    for modality in MODALITIES:
        for key, field in iter_settings(recipe_class(modality)):
            assert field.description or key.endswith((".name", ".kind")), key


def test_recipe_built_in_python_loads() -> None:
    from data2vec.modalities.vision import VisionData, VisionSettings

    recipe = data2vec.Recipe(modality=VisionSettings(image=32, patch=4), data=VisionData(batch_size=8))
    assert load_recipe(recipe).data.batch == 8


def test_override_that_empties_a_section_is_refused() -> None:
    with pytest.raises(UserError, match=r"train: is a section and cannot be emptied; set its keys, such as train\.\w+=VALUE"):
        load_recipe("vision/v2-tiny", ["train="])


def test_override_that_turns_off_an_optional_setting_is_taken() -> None:
    assert load_recipe("speech/ctc-v1-base-10h", ["objective.channel_mask=null"]).objective.channel_mask is None


def test_renamed_keys_are_unknown_and_their_new_names_known() -> None:
    known = {key for name in recipe_names() for key, _ in iter_settings(type(load_recipe(name)))}
    assert not known & RENAMED.keys()
    assert set(RENAMED.values()) <= known


@pytest.mark.parametrize("overrides", [["objective.teacher.half_life=0.05"], {"objective.teacher.half_life": 0.05}])
def test_half_life_as_an_override_replaces_the_decays_of_a_recipe(overrides: Any) -> None:
    teacher = load_recipe("vision/v2-base", overrides).objective.teacher
    assert (teacher.half_life, teacher.decay, teacher.end_decay, teacher.anneal_steps) == (0.05, None, None, None)


def test_decays_as_overrides_replace_the_half_lives_of_a_recipe() -> None:
    decays = {"objective.teacher.decay": 0.9, "objective.teacher.end_decay": 0.99, "objective.teacher.anneal_steps": 10}
    teacher = load_recipe("vision/v2-tiny", decays).objective.teacher
    assert (teacher.half_life, teacher.end_half_life, teacher.anneal) == (None, None, None)
    assert teacher.schedule(100)._asdict() == {"decay": 0.9, "end_decay": 0.99, "anneal_steps": 10}


def test_one_of_three_decays_as_an_override_of_half_lives_is_refused() -> None:
    with pytest.raises(UserError, match=r"also set objective\.teacher\.decay and objective\.teacher\.anneal_steps"):
        load_recipe("vision/v2-tiny", ["objective.teacher.end_decay=0.99"])


def test_half_life_and_decay_as_overrides_are_refused() -> None:
    with pytest.raises(UserError, match="half_life and decay are two schedules; set decay to null, or half_life to null"):
        load_recipe("vision/v2-tiny", ["objective.teacher.half_life=0.05", "objective.teacher.decay=0.9"])


@pytest.mark.parametrize("base", ["vision/v2-tiny", load_recipe("vision/v2-tiny")], ids=["name", "recipe"])
def test_another_kind_as_an_override_starts_its_section_anew(base: Any) -> None:
    decoder = load_recipe(base, ["objective.decoder.layers=2", "objective.decoder.kind=transformer"]).objective.decoder
    assert decoder == TransformerDecoderSettings(layers=2)
    same = load_recipe(base, ["objective.decoder.kind=conv"])
    assert same.objective.decoder == load_recipe(base).objective.decoder


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/clips/", "clips"),
        ("file:///home/me/clips", "clips"),
        ("hf://owner/name@main", "hf://owner/name@main"),
        ("s3://bucket/set", "s3://bucket/set"),
        ("https://me:secret@host/a.tar?signature=x", "https://host/a.tar"),
    ],
)
def test_data_name_has_no_path_of_this_machine_and_no_secret(path: str, name: str) -> None:
    assert data_name(path) == name


def test_data_name_of_a_dataset_object_is_not_that_of_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("DATA2VEC_CACHE", str(tmp_path))
    assert data_name(data_path(datasets.Dataset.from_dict({"text": ["a"]}))) == "a dataset in memory"


def test_names_of_channels_and_columns_in_keys_may_have_dots_and_spaces() -> None:
    overrides = ["modality.aliases.EEG Fp1.A2=Fp1", "data.train_rows.where.id.person=1", "data.train_rows.fraction=0.5"]
    recipe: Any = load_recipe("signal/v2-tiny", overrides)
    assert recipe.modality.aliases == {"EEG Fp1.A2": "Fp1"}
    assert recipe.data.train_rows.where == {"id.person": (1,)} and recipe.data.train_rows.fraction == 0.5
    assert load_recipe("signal/v2-tiny", recipe.flat()) == recipe
