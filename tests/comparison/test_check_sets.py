"""The data of evaluations, as it is checked before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from data2vec.comparison.check_sets import check_sets
from data2vec.comparison.settings import ComparisonSettings, load_comparison
from data2vec.errors import UserError

SETS: dict[str, Any] = {"train": "train", "dev": "dev", "test": {"far": "test"}}
PROBE = {"kind": "probe", **SETS}
FINETUNE = {"kind": "finetune", "recipe": "vision/classify-tiny", **SETS}


def settings(evaluation: dict[str, Any], data: Path, recipe: str = "vision/v1-tiny", **changes: Any) -> ComparisonSettings:
    raw = {"recipe": recipe, "budget": {"steps": 1}, "arms": {"a": {}}, "evaluations": {"shade": evaluation}}
    return load_comparison(raw | changes, data=data)


@pytest.mark.parametrize("evaluation", [PROBE, FINETUNE], ids=["probe", "finetune"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "missing"}, "evaluations.shade: train: missing: there is no such folder or file"),
        ({"test": {"far": "missing"}}, "evaluations.shade: test far: missing: there is no such folder or file"),
        ({"label": "lab"}, "there is no column 'lab' in the data"),
        (
            {"train": {"data": "train", "where": {"speaker": "x"}}},
            "evaluations.shade: train.where: there is no column 'speaker'",
        ),
        ({"dev": {"data": "dev", "where": {"label": "zzz"}}}, "evaluations.shade: dev.where.label: no row has 'zzz'"),
        ({"dev": "train"}, "evaluations.shade: dev: is the same data as train"),
        ({"test": {"far": "dev"}}, "evaluations.shade: test far: is the same data as dev"),
    ],
)
def test_wrong_set_of_an_evaluation_is_refused_by_name(
    evaluation: dict[str, Any], changes: dict[str, Any], message: str, pictures: Path
) -> None:
    with pytest.raises(UserError) as error:
        check_sets(settings(evaluation | changes, pictures), ["a"])
    assert message in str(error.value)


@pytest.mark.parametrize("evaluation", [PROBE, FINETUNE], ids=["probe", "finetune"])
def test_splits_and_parts_of_one_folder_are_different_sets(evaluation: dict[str, Any], pictures: Path) -> None:
    split = {"train": ".", "dev": ".", "test": {"far": "."}}
    parts = {"dev": {"data": "dev", "part": [0, 0.5]}, "test": {"far": {"data": "dev", "part": [0.5, 1]}}}
    for sets in (split, parts):
        check_sets(settings(evaluation | sets, pictures), ["a"])


def test_evaluations_in_which_no_selected_arm_takes_part_are_not_opened(pictures: Path) -> None:
    arms = {"a": {}, "scratch": {"scratch": True}}
    evaluations = {"few": FINETUNE, "shade": PROBE | {"train": "missing"}}
    found = settings({}, pictures, arms=arms, evaluations=evaluations)
    check_sets(found, ["scratch"])
    with pytest.raises(UserError, match=r"evaluations\.shade: train"):
        check_sets(found, ["a"])


def test_texts_need_no_tokenizer(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{name} {i}\t{i % 2}\n" for i in range(4)))
    sets = {"train": "train.tsv", "dev": "dev.tsv", "test": {"far": "test.tsv"}}
    for kind in ({"kind": "probe"}, {"kind": "tokens"}, {"kind": "finetune", "recipe": "text/classify-tiny"}):
        check_sets(settings(kind | sets, tmp_path, "text/v2-tiny"), ["a"])
