"""The recipe of a joint run, and those of its parts."""

import pickle

import pytest

from data2vec.errors import UserError
from data2vec.recipe.joint import SECTIONS, JointRecipe, errors_of_part, with_keys_of_part
from data2vec.recipe.loading import load_recipe, with_absolute_paths
from data2vec.recipe.recipe import MODALITIES, recipe_class
from data2vec.settings import iter_settings

TINY = "joint/v2-tiny"


def joint(**overrides: object) -> JointRecipe:
    recipe = load_recipe(TINY, {key.replace("__", "."): value for key, value in overrides.items()})
    assert isinstance(recipe, JointRecipe)
    return recipe


def test_a_part_is_the_recipe_of_its_modality_with_what_all_parts_have_in_common() -> None:
    recipe = joint(modality__parts__text__lr=None)
    speech, text = recipe.parts["speech"], recipe.parts["text"]
    own = load_recipe("speech/v2-tiny")
    assert (speech.modality, speech.objective.mask, speech.data) == (own.modality, own.objective.mask, own.data)
    assert speech.encoder == text.encoder == recipe.encoder
    assert (speech.train.lr, text.train.lr) == (2e-3, recipe.train.lr)
    assert speech.train.model_copy(update={"lr": recipe.train.lr}) == recipe.train
    assert load_recipe(speech) == speech


def test_shares_are_equal_unless_they_are_given() -> None:
    assert joint().shares == {"speech": 0.34, "vision": 0.33, "text": 0.33}
    assert joint(modality__shares={}).shares == pytest.approx({"speech": 1 / 3, "vision": 1 / 3, "text": 1 / 3})


def test_part_that_is_null_is_left_out() -> None:
    shares = {"speech": 0.5, "vision": 0.5}
    assert list(joint(modality__parts__text=None, modality__shares=shares).parts) == ["speech", "vision"]
    with pytest.raises(UserError, match=r"modality\.shares: give each of speech, vision a share"):
        joint(modality__parts__text=None)


def test_recipe_survives_being_copied_to_another_process_or_made_absolute(tmp_path, monkeypatch) -> None:
    (tmp_path / "clips").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = joint(modality__parts__speech__data__train="clips")
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    absolute = with_absolute_paths(recipe)
    assert isinstance(absolute, JointRecipe)
    assert absolute.parts["speech"].data.train == str(tmp_path / "clips")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.train", "x", "data.train: each part has its own: set modality.parts.speech.data.train"),
        ("objective.masks_per_sample", 3, "set modality.parts.speech.objective.masks_per_sample"),
        ("probe.every", 3, "set modality.parts.speech.probe.every"),
        ("init", "run", "init: a joint run starts from new weights"),
        ("modality.shares", {"speech": 1.0}, "modality.shares: give each of speech, vision, text a share"),
        ("modality.shares", {"speech": 0.5, "vision": 0.5, "text": 0.5}, "such that they add up to 1"),
        ("modality.parts", {"speech": {}}, "modality.parts: a joint run has two parts or more"),
        ("modality.parts", 3, "modality.parts: is missing"),
        ("modality.parts.speech", 3, "modality.parts.speech: should be a section with settings"),
        ("modality.parts.keys", {}, "modality.parts: 'keys' cannot name a part"),
        ("modality.parts.eeg", {}, "modality.parts.eeg.modality.name: is missing"),
        ("modality.parts.speech.data.batch_sec", 3, "did you mean 'batch_seconds'?"),
        ("modality.parts.speech.data.batch_seconds", 0, "modality.parts.speech.data.batch_seconds: should be greater than 0"),
        ("modality.parts.text.objective", {"name": "mlm"}, "mlm has no teacher for the parts to share"),
        ("modality.parts.text.objective.teacher.prenet", "shared", "objective.teacher.prenet: is not the same in all parts"),
    ],
)
def test_a_recipe_whose_parts_do_not_go_together_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as raised:
        load_recipe(TINY, {key: value})
    assert message in str(raised.value)
    assert f"{TINY}: " in str(raised.value)


def test_a_joint_recipe_is_not_one_of_a_modality() -> None:
    with pytest.raises(UserError, match="use a part: speech, vision, text"):
        joint().build_modality()


@pytest.mark.parametrize(
    ("sentence", "reworded"),
    [
        ("train.lr=1e-3, or more train.steps", "modality.parts.text.lr=1e-3, or more train.steps"),
        ("lower data.min_seconds (clips/data.wav)", "lower modality.parts.text.data.min_seconds (clips/data.wav)"),
        ("objective.teacher.half_life: low", "modality.parts.text.objective.teacher.half_life: low"),
        ("data.wav, data.train/1.png, train.lr/2, probe.csv, data.frame.parquet and data.tar.gz: cut off", None),
        ("modality.parts.text.probe.every, train.lr_scale and metadata.csv of other data. health.grace_steps", None),
    ],
)
def test_a_sentence_on_a_part_names_the_settings_of_the_joint_recipe(sentence: str, reworded: str | None) -> None:
    assert with_keys_of_part("text", sentence) == (reworded or sentence)


def test_an_error_of_a_part_names_the_part_and_all_its_lines() -> None:
    with pytest.raises(UserError) as raised, errors_of_part("text"):
        raise UserError("data.train: empty", "data.valid: empty")
    assert str(raised.value) == "text: modality.parts.text.data.train: empty\nmodality.parts.text.data.valid: empty"


def test_all_settings_of_a_part_are_named_as_the_joint_recipe_has_them() -> None:
    for modality in MODALITIES:
        for key, _ in iter_settings(recipe_class(modality)):
            if "." in key and key.startswith(SECTIONS):
                assert with_keys_of_part("data", f"raise {key}.") == f"raise modality.parts.data.{key}."
