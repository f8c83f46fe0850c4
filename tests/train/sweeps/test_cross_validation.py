"""Cross-validation of fine-tuning: the folds, their folders, and what is reported where a run has diverged."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from data2vec.data.sources.selection import select_rows
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.run_dir import Run
from data2vec.train.sweeps import cross_validation
from data2vec.train.sweeps.cross_validation import cross_validate


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight texts by three people, of whom two have names of other than Latin letters; one is by nobody."""
    people = ("張", "李", "a/b")
    rows = [f"text {i},{'ab'[i % 2]},{people[i % 3] if i else ''}" for i in range(8)]
    (path := tmp_path / "texts.csv").write_text("\n".join(["text,label,person", *rows]), encoding="utf-8")
    return path


def test_every_group_has_a_run_of_its_own_and_one_that_diverged_has_no_score(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held_out: dict[Path, str] = {}

    def run_of(recipe: Any, model: Any, data: Any, valid: Any, overrides: Any, place: Path, *rest: Any) -> Run:
        """What a run leaves: its validations, of which a metric that is no number is null."""
        (name,) = overrides["data.valid_rows"]["where"]["person"]
        assert overrides["data.train_rows"] == {"exclude": {"person": [name]}} and place not in held_out
        held_out[place] = name
        place.mkdir(parents=True)
        scores = [0.5, None] if name == "張" else [0.25, 0.75]
        lines = [json.dumps({"step": step, "valid_accuracy": score}) for step, score in enumerate(scores, 1)]
        (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return Run(place)

    monkeypatch.setattr(cross_validation, "finetune", run_of)
    found = cross_validate("text/classify-tiny", "person", overrides=[f"data.train={table}"], out=tmp_path / "folds")
    assert sorted(held_out.values()) == sorted(found.scores) == ["a/b", "張", "李"]
    assert {place.parent for place in held_out} == {tmp_path / "folds"}
    assert math.isnan(found.scores["張"]) and found.best == {"a/b": 0.75, "張": 0.5, "李": 0.75}
    assert math.isnan(found.mean) and math.isnan(found.std) and "nan" in str(found)
    written = json.loads((tmp_path / "folds" / "folds.json").read_text())
    assert written["scores"] == {"a/b": 0.75, "張": None, "李": 0.75} and written["mean"] is None
    assert "--folds person: 1 of 8 rows have none, and are trained on in every fold" in caplog.text


def test_a_run_that_ends_by_what_is_held_out_and_groups_that_are_patterns_are_refused(table: Path, tmp_path: Path) -> None:
    given = [f"data.train={table}", "objective.patience=3"]
    with pytest.raises(UserError, match=r"objective.patience: .* set it to null for --folds"):
        cross_validate("text/classify-tiny", "person", overrides=given, out=tmp_path / "folds")
    table.write_text(table.read_text(encoding="utf-8").replace("a/b", "a?"), encoding="utf-8")
    with pytest.raises(UserError, match="'a\\?' is a pattern, which may select rows of other groups"):
        cross_validate("text/classify-tiny", "person", overrides=given[:1], out=tmp_path / "folds")


def test_selected_rows_are_divided_into_folds_on_both_sides(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def run_of(recipe: Any, model: Any, data: Any, valid: Any, overrides: Any, place: Path, *rest: Any) -> Run:
        data_settings = load_recipe(recipe, overrides).data
        rows = [{"person": person, "label": label} for person in ("李", "a/b", "張") for label in "ab"]
        sides = [select_rows(rows, each, "rows") for each in (data_settings.train_rows, data_settings.valid_rows)]
        found[place.name] = [[row["person"] + row["label"] for row in side] for side in sides]
        return Run(place)

    monkeypatch.setattr(cross_validation, "finetune", run_of)
    given = [f"data.train={table}", "data.train_rows.exclude={label: b, person: 張}"]
    cross_validate("text/classify-tiny", "person", overrides=given, out=tmp_path / "folds")
    assert list(found.values()) == [[["a/ba"], ["李a"]], [["李a"], ["a/ba"]]]
    with pytest.raises(UserError, match=r"data\.train_rows\.part: would be another part in each fold"):
        cross_validate("text/classify-tiny", "person", overrides=[given[0], "data.train_rows.part=[0, 0.5]"], out=tmp_path)
    with pytest.raises(UserError, match=r"data\.valid_rows\.where: is set by --folds"):
        cross_validate("text/classify-tiny", "person", overrides=[given[0], "data.valid_rows.where={label: a}"], out=tmp_path)


def test_rows_of_all_splits_are_divided_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder := tmp_path / "texts").mkdir()
    for split, people in (("train", "ab"), ("test", "c")):
        rows = [f"text {person},x,{person}" for person in people]
        (folder / f"{split}.csv").write_text("\n".join(["text,label,person", *rows]))
    splits = list[tuple[str, str]]()

    def run_of(recipe: Any, model: Any, data: Any, valid: Any, overrides: Any, place: Path, *rest: Any) -> Run:
        splits.append((overrides["data.split"], overrides["data.valid_split"]))
        return Run(place)

    monkeypatch.setattr(cross_validation, "finetune", run_of)
    given = [f"data.train={folder}"]
    assert [*cross_validate("text/classify-tiny", "person", overrides=given, out=tmp_path / "all").scores] == ["a", "b", "c"]
    given.append("data.split=train")
    assert [*cross_validate("text/classify-tiny", "person", overrides=given, out=tmp_path / "train").scores] == ["a", "b"]
    assert splits == [("all", "all")] * 3 + [("train", "train")] * 2
    splits.clear()
    flat = [f"data.train={folder / 'train.csv'}", "data.split=train"]  # a file without splits counts as train
    assert [*cross_validate("text/classify-tiny", "person", overrides=flat, out=tmp_path / "flat").scores] == ["a", "b"]
    assert splits == [("all", "all")] * 2
    with pytest.raises(UserError, match="has no split 'test', and no other"):
        cross_validate("text/classify-tiny", "person", overrides=[flat[0], "data.split=test"], out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "own.yaml").write_text(load_recipe("text/classify-tiny", {"data.split": "test"}).to_yaml())
    with pytest.raises(UserError, match="--folds person: has 1 values"):
        cross_validate(tmp_path / "own.yaml", "person", overrides=given[:1], out=tmp_path / "test")
