"""Which column is the signal: named by a setting, known by its name, the only one; or an error that lists the candidates."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, Image

from data2vec.data.dataset import column_value
from data2vec.data.sources.columns import class_names, label_value, require_labels
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import UserError


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A table of these rows, in the format of its name."""
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("".join(mark.join(line) + "\n" for line in lines))
    return path


def wav(seconds: float = 0.1) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(16000 * seconds)), 16000, format="WAV")
    return file.getvalue()


def signal(path: Path) -> dict[str, Any]:
    return {"bytes": None, "path": str(path), "unreadable_because": None}


def refusal(path: Path, kind: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        open_dataset(str(path), kind, **options)
    return str(raised.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["doc_id", "id", "ID", "idx", "page-url"])
def test_ids_are_not_taken_for_the_text(tmp_path: Path, name: str, ending: str, streaming: bool) -> None:
    path = table(tmp_path / f"reviews.{ending}", [{name: "tt01", "review": "no wit", "label": "0"}] * 2)
    rows = open_dataset(str(path), "text", streaming=streaming)
    assert [row["text"] for row in rows] == ["no wit"] * 2
    if not streaming:
        assert rows[name][:] == ["tt01"] * 2 and rows["label"][:] == ["0"] * 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_several_columns_that_can_be_the_text_are_asked_for(tmp_path: Path, ending: str, streaming: bool) -> None:
    path = table(tmp_path / f"reviews.{ending}", [{"id": "1", "film": "Up", "review": "no wit", "label": "0"}] * 2)
    assert "several columns can hold text, film, review; name one by data.column" in refusal(path, "text", streaming=streaming)
    for column, value in (("film", "Up"), ("review", "no wit"), ("id", "1")):
        rows = open_dataset(str(path), "text", column=column, streaming=streaming)
        assert [row["text"] for row in rows] == [value] * 2


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("known", ["text", "sentence", "content", "document"])
def test_known_name_is_taken_for_the_text(tmp_path: Path, ending: str, known: str) -> None:
    path = table(tmp_path / f"a.{ending}", [{"title": "T", known: "words", "author": "A"}])
    assert open_dataset(str(path), "text")["text"][:] == ["words"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_only_column_that_can_be_the_text_is_taken(tmp_path: Path, ending: str) -> None:
    path = table(tmp_path / f"a.{ending}", [{"label": "x", "review": "words", "split": "train"}])
    assert open_dataset(str(path), "text")["text"][:] == ["words"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_column_setting_is_checked(tmp_path: Path, ending: str) -> None:
    path = table(tmp_path / f"a.{ending}", [{"title": "T", "text": "words", "stars": 3}])
    message = refusal(path, "text", column="tilte")
    assert "data.column: " in message and "has no column 'tilte'; did you mean 'title'?" in message
    if ending != "csv":
        assert "data.column: 'stars' of" in refusal(path, "text", column="stars")


def test_column_of_that_name_is_kept_beside_the_chosen_one(tmp_path: Path) -> None:
    for ending in ("csv", "jsonl", "parquet"):
        path = table(tmp_path / f"a.{ending}", [{"title": "T", "text": "words"}])
        row = open_dataset(str(path), "text", column="title")[0]
        assert (row["text"], row["original_text"]) == ("T", "words"), ending


@pytest.mark.parametrize("streaming", [False, True])
def test_audio_columns_are_chosen_by_name_or_asked_for(tmp_path: Path, streaming: bool) -> None:
    rows = Dataset.from_dict({name: [{"bytes": wav(), "path": f"{name}.wav"}] for name in ("mix", "vocals")})
    rows = rows.cast_column("mix", Audio(decode=False)).cast_column("vocals", Audio(decode=False))
    rows.to_parquet(tmp_path / "a.parquet")
    assert "several columns can hold audio, mix, vocals" in refusal(tmp_path / "a.parquet", "audio", streaming=streaming)
    found = open_dataset(str(tmp_path / "a.parquet"), "audio", column="vocals", streaming=streaming)
    assert next(iter(found))["audio"]["path"] == "vocals.wav"
    rows.rename_column("mix", "audio").to_parquet(tmp_path / "b.parquet")
    found = open_dataset(str(tmp_path / "b.parquet"), "audio", streaming=streaming)
    assert next(iter(found))["audio"]["path"] == "mix.wav"


def test_column_of_another_kind_is_not_taken(tmp_path: Path) -> None:
    Dataset.from_dict({"image": [{"bytes": b"x", "path": "1.png"}]}).to_parquet(tmp_path / "a.parquet")
    Dataset.from_dict({"image": [b"x"], "label": ["a"]}).cast_column("image", Image(decode=False)).to_parquet(
        tmp_path / "b.parquet"
    )
    for name in ("a", "b"):
        assert "no column holds audio" in refusal(tmp_path / f"{name}.parquet", "audio")
        assert open_dataset(str(tmp_path / f"{name}.parquet"), "image")[0]["image"]["bytes"] == b"x"


def test_columns_of_paths_are_chosen_by_name_or_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    path = table(tmp_path / "a.csv", [{"near": "a.wav", "far": "b.wav", "words": "A"}])
    assert "several columns can hold audio, near, far" in refusal(path, "audio")
    rows = open_dataset(str(path), "audio", column="near")
    assert rows[0] == {"audio": signal(tmp_path / "a.wav"), "far": "b.wav", "words": "A"}
    path = table(tmp_path / "b.csv", [{"id": "7", "words": "A"}])
    assert "no column holds audio; the columns are id, words" in refusal(path, "audio")


@pytest.mark.parametrize("streaming", [False, True])
def test_files_under_a_known_name_are_taken_before_bytes_under_another_one(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    path = table(tmp_path / "a.parquet", [{"path": "a.wav", "checksum": b"12"}] * 2)
    (row, _) = open_dataset(str(path), "audio", streaming=streaming)
    assert row["audio"] == signal(tmp_path / "a.wav") and row["checksum"] == b"12"
    path = table(tmp_path / "b.parquet", [{"path": "original.wav", "sound": wav()}] * 2)  # the file is not there
    (row, _) = open_dataset(str(path), "audio", streaming=streaming)
    assert row["audio"]["bytes"] == wav() and row["path"] == "original.wav"


def test_column_setting_without_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav())
    assert "data.column: 'speech': " in refusal(tmp_path, "audio", column="speech")
    (tmp_path / "metadata.csv").write_text("file_name,words\na.wav,A\n")
    assert "has no column 'speech'" in refusal(tmp_path, "audio", column="speech")


@pytest.mark.parametrize("value", [None, "", "  ", float("nan")])
def test_missing_label_is_none(value: object) -> None:
    assert label_value(value) is None


@pytest.mark.parametrize(
    ("value", "names", "expected"),
    [
        (-1, ["no", "yes"], None),
        (1, ["no", "yes"], "yes"),
        ([1, 0], ["no", "yes"], ["yes", "no"]),
        ([1, -1], ["no", "yes"], None),
        ([], ["no", "yes"], []),
        (["a", None], None, None),
        (-1, None, -1),
        (0, None, 0),
        ("NA", None, "NA"),
        (False, None, False),
    ],
)
def test_label_is_named_or_kept(value: object, names: list[str] | None, expected: object) -> None:
    assert label_value(value, names) == expected


def test_lists_of_classes_keep_their_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Features, List, Value

    labels = ClassLabel(names=["cat", "dog"])
    features = Features({"text": Value("string"), "label": List(labels), "one": labels})
    rows = Dataset.from_dict({"text": ["a", "b"], "label": [[1, 0], []], "one": [0, -1]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "saved"):
        found = open_dataset(str(tmp_path / name), "text")
        assert [column_value(found, i, "label") for i in range(2)] == [["dog", "cat"], []]
        assert [column_value(found, i, "one") for i in range(2)] == ["cat", None]
    assert class_names([labels]) == class_names(labels) == ["cat", "dog"] and class_names(Value("string")) is None


def test_labels_of_no_column_are_refused_with_the_columns_as_the_data_names_them() -> None:
    columns = ["original_text", "label", "text"]  # of a table text, label, person
    with pytest.raises(UserError, match=r"--labels: the data has no column 'nope' beside person, only text, label$"):
        require_labels("nope", columns, "text", "person")
    require_labels("label", ["text"], "text", None)  # the default


def test_values_of_a_column_row_by_row_read_the_dataset_once() -> None:
    class Counted:
        features, reads = {"label": object()}, 0

        def __getitem__(self, column: str) -> list[int]:
            self.reads += 1
            return [3, 1, 2]

    rows = Counted()
    assert [column_value(rows, index, "label") for index in (0, 1, 2)] == [3, 1, 2]
    assert rows.reads == 1
