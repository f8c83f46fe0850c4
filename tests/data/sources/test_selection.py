from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from pydantic import ValidationError

from data2vec.data.sources.selection import RowSelection, select_rows
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe


@pytest.fixture
def rows() -> Dataset:
    speakers = [("anna", "ben", "eva")[i % 3] for i in range(60)]
    return Dataset.from_dict(
        {"text": [str(i) for i in range(60)], "speaker": speakers, "digit": [i // 3 % 2 for i in range(60)]}
    )


def selected(rows: Any, **settings: Any) -> Any:
    return select_rows(rows, RowSelection(**settings), "data.train_rows", "text")


def refusal(rows: Any, **settings: Any) -> str:
    with pytest.raises(UserError) as raised:
        selected(rows, **settings)
    return str(raised.value)


def test_default_selection_is_the_same_rows(rows: Dataset) -> None:
    assert selected(rows) is rows


def test_where_and_exclude_select_by_several_columns(rows: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    found = selected(rows, where={"digit": 1}, exclude={"speaker": ["anna", "b*"]})
    assert set(found["speaker"]) == {"eva"}
    assert set(found["digit"]) == {1}
    assert "data.train_rows: 10 of 60 rows selected" in caplog.text


def test_unknown_column_lists_the_columns(rows: Dataset) -> None:
    assert refusal(rows, where={"spaeker": ["anna"]}) == (
        "data.train_rows.where: there is no column 'spaeker' in the data; the columns are digit, speaker, text"
    )


def test_value_that_no_row_has_lists_the_values(rows: Dataset) -> None:
    assert refusal(rows, exclude={"speaker": ["ana"]}) == (
        "data.train_rows.exclude.speaker: no row has 'ana'; did you mean 'anna'?; it is anna, ben, eva"
    )


def test_selection_of_nothing_is_refused(rows: Dataset) -> None:
    assert "none of the 60 rows is selected" in refusal(rows, where={"speaker": "anna"}, exclude={"speaker": "a*"})


def test_stream_is_refused(rows: Dataset) -> None:
    assert "rows of a stream cannot be selected" in refusal(rows.to_iterable_dataset(), where={"speaker": "anna"})


def test_adjacent_parts_share_no_row_and_are_all_rows(rows: Dataset) -> None:
    parts = [selected(rows, part=limits, stratify="speaker")["text"] for limits in ((0, 0.3), (0.3, 0.8), (0.8, 1))]
    assert [len(part) for part in parts] == [18, 30, 12]
    assert sorted(text for part in parts for text in part) == sorted(rows["text"])


def test_fraction_holds_every_class_and_grows_with_the_same_seed(rows: Dataset) -> None:
    tiny, small = (selected(rows, fraction=value, stratify="speaker", seed=3) for value in (0.01, 0.3))
    assert sorted(tiny["speaker"]) == ["anna", "ben", "eva"]
    assert np.unique(small["speaker"], return_counts=True)[1].tolist() == [6, 6, 6]
    assert set(tiny["text"]) < set(small["text"])
    assert small["text"][:] == selected(rows, fraction=0.3, stratify="speaker", seed=3)["text"][:]
    assert small["text"][:] != selected(rows, fraction=0.3, stratify="speaker", seed=4)["text"][:]


def test_fraction_is_of_the_part(rows: Dataset) -> None:
    part = set(selected(rows, part=(0, 0.5))["text"])
    assert set(selected(rows, part=(0, 0.5), fraction=0.2)["text"]) < part


def test_lists_and_arrays_are_selected_too() -> None:
    assert selected([{"a": 1}, {"a": 2}], where={"a": [2]}) == [{"a": 2}]
    assert selected(np.arange(10), fraction=0.25).shape == (3,)


@pytest.mark.parametrize("part", [(0.5, 0.5), (-0.1, 1), (0.2, 1.5)])
def test_part_outside_of_0_and_1_is_refused(part: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="is not a range within 0 and 1"):
        RowSelection(part=part)


def test_selected_rows_of_a_folder_have_their_own_files(clips: Any, tmp_path: Path) -> None:
    overrides = {"data.train_rows": {"where": {"path": ["*/001.flac", "*/003.flac"]}}, "data.min_seconds": 0.1}
    recipe = load_recipe("speech/v2-tiny", overrides)
    modality = recipe.build_modality()
    examples = modality.examples(modality.selected_rows(str(clips(5)), recipe.data.train_rows, "data.train_rows"))
    assert examples.costs.tolist() == pytest.approx([1.1, 1.3])
