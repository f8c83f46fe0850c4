"""The comparison file: what is refused, and how."""

import json
from pathlib import Path
from typing import Any

import pytest

from data2vec.comparison.settings import (
    arm_recipe,
    load_comparison,
    recipes_as_arms,
)
from data2vec.comparison.shipped import comparison_names, comparison_summary, is_comparison
from data2vec.errors import UserError

PROBE = {"kind": "probe", "train": "train", "dev": "dev", "test": {"test": "test"}}
SETS = {"train": "train", "dev": "dev", "test": {"test": "test"}}
FINETUNE = {"kind": "finetune", "recipe": "vision/classify-tiny", **SETS}
RAW: dict[str, Any] = {"budget": {"flops": 1e9}, "arms": {"a": {"recipe": "vision/v1-tiny"}}, "evaluations": {"shade": PROBE}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {}}, "comparison: arm: unknown setting; did you mean 'arms'"),
        ({"arms": {"a": {"recipe": "vision/v1-tiny", "gird": {}}}}, "arms.a.gird: unknown setting; did you mean 'grid'"),
        ({"arms": {"a": {}}}, "arms.a: has no recipe"),
        ({"budget": {"flops": 1e9, "steps": 3}}, "set exactly one of flops, seconds and steps, not flops and steps"),
        ({"budget": {}}, "not none"),
        ({"reference": "b"}, "reference: there is no arm 'b'"),
        ({"seeds": [1, 1]}, "must all differ"),
        ({"seeds": [101]}, "must all differ"),
        ({"tune": {"by": "digits"}}, "tune.by: there is no evaluation 'digits'"),
        ({"arms": {"a": {"scratch": True}}}, "no evaluation is of kind finetune"),
        ({"arms": {"a": {"equal_flops": True}}}, "equal_flops needs scratch: true"),
        (
            {"evaluations": {"few": FINETUNE}, "arms": {"a": {"scratch": True, "recipe": "x", "settings": {"train.lr": 0.1}}}},
            "arms.a: train.lr changes nothing where nothing is pre-trained; for fine-tuning, set it in grid, or in settings of",
        ),
        (
            {"evaluations": {"shade": PROBE}, "arms": {"a": {"untrained": True, "recipe": "x", "settings": {"init": "model"}}}},
            "arms.a: init changes nothing where nothing is pre-trained",
        ),
        ({"evaluations": {"shade": {"kind": "prob"}}}, "evaluations.shade.kind: 'prob' is not one of probe, finetune"),
        ({"evaluations": {"few": FINETUNE}, "arms": {"a": {"recipe": "x", "untrained": True}}}, "use scratch: true"),
        (
            {"evaluations": {"few": FINETUNE}, "arms": {"a": {"scratch": True, "settings": {"encoder.width": 32}}}},
            "arms.a.settings: there is no recipe that they change; set arms.a.recipe",
        ),
        (
            {"evaluations": {"shade": PROBE, "few": FINETUNE}, "arms": {"a": {"scratch": True}}},
            "evaluations.shade: no arm takes part in it; add one that is pre-trained, or untrained",
        ),
        (
            {"evaluations": {"shade": PROBE, "few": FINETUNE}, "arms": {"a": {"untrained": True, "recipe": "x"}}},
            "evaluations.few: no arm takes part in it; add one that is pre-trained, or scratch",
        ),
        ({"seeds": [-1]}, "seeds.0: should be greater than or equal to 0, not -1"),
        (
            {"arms": {"a": {"recipe": "x", "settings": {"train.steps": 7}}}},
            "arms.a.settings: train.steps has no effect, as budget, seeds and evaluations of the comparison set it; remove it",
        ),
        ({"arms": {"a": {"recipe": "x", "grid": {"train.seed": [1, 2]}}}}, "arms.a.grid: train.seed has no effect"),
        ({"data": {"log.every": 7}}, "data: log.every has no effect"),
        ({"evaluations": {"few": FINETUNE | {"grid": {"train.lr": []}}}}, "few.grid.train.lr: should have at least 1 entry"),
        ({"evaluations": {"few": FINETUNE | {"settings": {"train.seed": 1}}}}, "evaluations.few.settings: train.seed has no"),
        (
            {"arms": {"a": {"recipe": "x", "grid": {"train.lr": [1e-3, 0.001]}}}},
            "arms.a.grid: train.lr has the value 0.001 twice; give each value once",
        ),
        ({"arms": {}}, "comparison: arms: should have at least 1 entry, not 0"),
        ({"arms": {"a": {"grid": {"train.lr": []}}}}, "arms.a.grid.train.lr: should have at least 1 entry, not 0"),
        ({"seeds": 3}, "seeds: should be a list in brackets, not 3"),
        ({"evaluations": {"shade": PROBE | {"test": {"far": {"part": 3}}}}}, "evaluations.shade.test.far.data: is missing"),
        ({"data": {"probe.data": "train"}}, "probe.data: is used only without `evaluations`"),
    ],
)
def test_comparison_with_a_wrong_setting_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_comparison(RAW | changes)
    assert message in str(error.value)


def test_comparison_with_unequal_grids_is_refused_unless_allowed() -> None:
    arms = {"a": {"grid": {"train.lr": [1, 2]}}, "b": {"grid": {"train.lr": [1, 2, 3]}}}
    raw = RAW | {"recipe": "vision/v1-tiny", "arms": arms}
    with pytest.raises(UserError, match="'a' has 2, 'b' has 3 combinations"):
        load_comparison(raw)
    load_comparison(raw | {"equal_grids": False})


def test_settings_of_an_arm_change_its_recipe_also_without_pretraining() -> None:
    arm = {"recipe": "vision/v1-tiny", "settings": {"encoder.layers": 2}}
    arms = {"trained": arm, "untrained": arm | {"untrained": True}, "scratch": arm | {"scratch": True}}
    settings = load_comparison(RAW | {"evaluations": {"few": FINETUNE, "shade": PROBE}, "arms": arms})
    assert [arm_recipe(settings, name, {}).encoder.layers for name in arms] == [2, 2, 2]


def test_recipe_for_fine_tuning_as_an_arm_is_refused() -> None:
    settings = load_comparison(RAW | {"arms": {"v2": {"recipe": "vision/classify-tiny"}}})
    with pytest.raises(
        UserError, match=r"^arms.v2: vision/classify-tiny is a recipe for fine-tuning; name one for pre-training"
    ):
        arm_recipe(settings, "v2", {})


def test_override_of_the_budget_replaces_its_kind() -> None:
    assert load_comparison(RAW, ["budget.steps=5"]).budget.flops is None


def test_override_of_an_arm_is_refused() -> None:
    with pytest.raises(UserError, match=r"arms.a.recipe: cannot be set here"):
        load_comparison(RAW, ["arms.a.recipe=x"])


def test_paths_are_relative_to_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    settings = load_comparison(RAW, ["data.train=train"], tmp_path)
    assert settings.data["data.train"] == str(tmp_path / "train")
    assert settings.evaluations["shade"].train.data == str(tmp_path / "train")
    assert settings.evaluations["shade"].dev.data == "dev"  # not there: the name of a data set


def test_recipes_get_parts_of_one_labelled_set() -> None:
    settings = load_comparison(recipes_as_arms(["vision/v1-tiny"]), {"budget.steps": 5, "probe.data": "photos"})
    probe = settings.evaluations["probe"]
    assert [each.part for each in (probe.train, probe.dev, probe.test["test"])] == [(0, 0.6), (0.6, 0.8), (0.8, 1)]
    assert settings.arms["untrained"].untrained


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["spech"], "there is no recipe or comparison 'spech'; did you mean 'speech'?"),
        (["speech/v1-tyni"], "did you mean 'speech/v1-tiny'?"),
        (["speech", "vision/v1-tiny"], "speech: is a comparison; name it alone"),
    ],
)
def test_wrong_name_of_a_recipe_is_refused_before_missing_evaluations(names: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        load_comparison(recipes_as_arms(names))
    assert message in str(error.value)


def test_comparison_file_without_arms_says_so(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps({key: RAW[key] for key in ("budget", "evaluations")}), encoding="utf-8")
    assert is_comparison(str(tmp_path / "c.yaml"))
    with pytest.raises(UserError, match=r"c\.yaml: arms: is missing$"):
        load_comparison(tmp_path / "c.yaml")


def test_recipes_given_twice_are_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        recipes_as_arms(["vision/v1-tiny", "vision/v1-tiny"])


@pytest.mark.parametrize("name", comparison_names())
def test_shipped_comparison_has_a_summary_and_is_valid(name: str) -> None:
    assert comparison_summary(name)
    settings = load_comparison(name, {"probe.data": "photos"} if name.startswith("ablations/") else ())
    for arm in settings.arms if name.startswith("ablations/") else ():
        arm_recipe(settings, arm, {})
