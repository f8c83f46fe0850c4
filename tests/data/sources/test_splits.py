"""Asking for a split gives its examples, all of them and no other, or an error that lists what there is."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value

from data2vec.data.sources.open_dataset import list_splits, open_dataset
from data2vec.data.sources.shards import Request
from data2vec.data.sources.splits import SplitName, name_splits
from data2vec.errors import UserError
from helpers.archives import write_tar


def write(root: Path, *names: str) -> Path:
    """Files whose content is their name; in tables and archives the name of the only row."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            path.write_text(json.dumps({"text": name}) + "\n")
        elif name.endswith((".csv", ".tsv")):
            path.write_text(f"text\n{name}\n")
        elif name.endswith(".parquet"):
            Dataset.from_dict({"text": [name]}).to_parquet(path)
        elif name.endswith(".tar"):
            write_tar(path, {"x.txt": name, "x.wav": name})
        else:
            path.write_text(name)
    return root


def read(root: Path, split: str = "train", kind: Any = "audio", **options: Any) -> list[str]:
    """The content of what is read."""
    found = []
    for row in open_dataset(str(root), kind, split, **options):
        value = row[kind]
        if isinstance(value, dict):
            value = Path(value["path"]).read_text() if value["bytes"] is None else value["bytes"].decode()
        found.append(value)
    return sorted(found)


def refusal(root: Path, split: str, kind: Any = "audio", **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        read(root, split, kind, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("train-clean-100", "train"),
        ("train2017", "train"),
        ("trainA", "train"),
        ("imagenet_train", "train"),
        ("dev-other", "valid"),
        ("val2017", "valid"),
        ("cv-valid-dev", "valid"),
        ("eval_segments", "test"),
        ("TEST", "test"),
        ("cv-valid-train", "train+valid"),
        ("strained", None),
        ("latest", None),
        ("trainers", None),
        ("validated", None),
        ("2017", None),
    ],
)
def test_split_of_a_folder_is_a_word_of_its_name(name: str, split: str | None) -> None:
    (found,) = name_splits([f"{name}/x.wav"], lambda _: True, "here")
    assert found == (None if split is None else SplitName(name, split))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["train.txt", "valid.txt", "test.jsonl"], ["train", "valid", "test"]),
        (["train_01.wav", "train_02.wav", "test-3.wav"], ["train", "train", "test"]),
        (["wiki.train.txt", "wiki.test.txt"], ["train", "test"]),
        (["en-train.txt", "de-test.txt"], [None, None]),
        (["test-tone.wav", "train-passing.wav", "dog.wav"], [None, None, None]),
        (["en-train.tsv", "de-test.tsv"], ["train", "test"]),
        (["a-train-00000-of-00002.parquet", "set-dev-0001.tar"], ["train", "valid"]),
    ],
)
def test_file_of_one_example_is_a_split_only_by_its_whole_name(files: list[str], expected: list[str | None]) -> None:
    found = name_splits(files, lambda name: name.endswith((".txt", ".wav")), "here")
    assert [None if name is None else name.split for name in found] == expected


def test_loose_files_of_several_formats_are_split_by_name(tmp_path: Path) -> None:
    write(tmp_path, "train.txt", "valid.txt", "test.jsonl")
    assert {split: read(tmp_path, split, "text") for split in ("train", "dev", "test")} == {
        "train": ["train.txt"],
        "dev": ["valid.txt"],
        "test": ["test.jsonl"],
    }
    assert "has no split 'eval2', only test (1), train (1), valid (1)" in refusal(tmp_path, "eval2", "text")


def test_folders_beside_splits_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "train/a.wav", "test/b.wav", "__MACOSX/train/c.wav", ".cache/d.wav", "docs/e.md", "train/.x/f.wav")
    assert read(tmp_path) == ["train/a.wav"] and not caplog.text
    write(tmp_path, "docs/example.wav", "demo.wav")
    assert read(tmp_path) == ["train/a.wav"]
    assert "2 of 4 files or rows: " in caplog.text and "demo.wav, docs/" in caplog.text
    assert read(tmp_path, "docs") == ["docs/example.wav"]
    assert read(tmp_path, "all") == ["demo.wav", "docs/example.wav", "test/b.wav", "train/a.wav"]


def test_name_in_the_same_case_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "TEST/a.wav", "test/b.wav", "Train/c.wav")
    assert read(tmp_path, "TEST") == ["TEST/a.wav"] and read(tmp_path, "test") == ["test/b.wav"]
    assert read(tmp_path, "train") == ["Train/c.wav"]


def test_librispeech_as_it_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = ("train-clean-100", "train-other-500", "dev-clean", "dev-other", "test-clean")
    write(tmp_path, "README.TXT", *(f"{part}/19/198/19-198-000{i}.flac" for part in parts for i in range(2)))
    for part in parts:
        lines = "19-198-0000 NORTHANGER ABBEY\n19-198-0001 IT'S\n"
        (tmp_path / part / "19/198/19-198.trans.txt").write_text(lines)
    rows = open_dataset(str(tmp_path), "audio")
    assert "split train is train-clean-100, train-other-500" in caplog.text
    assert {row["audio"]["path"].split("/")[-4] for row in rows} == {"train-clean-100", "train-other-500"}
    assert rows["transcript"][:] == ["NORTHANGER ABBEY", "IT'S"] * 2 and rows.column_names == ["audio", "transcript"]
    assert len(read(tmp_path, "valid")) == 4 and len(read(tmp_path, "dev-other")) == 2 and len(read(tmp_path, "test")) == 2
    assert "has no split 'dev-othr', only dev-clean (2), dev-other (2), test-clean (2)" in refusal(tmp_path, "dev-othr")


def test_coco_as_it_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "annotations/instances_train2017.json", "train2017/1.jpg", "train2017/2.jpg")
    write(tmp_path, "val2017/3.jpg", "test2017/4.jpg")
    rows = open_dataset(str(tmp_path), "image")
    assert len(rows) == 2 and rows.column_names == ["image"]
    assert read(tmp_path, "val2017", "image") == read(tmp_path, "valid", "image") == ["val2017/3.jpg"]
    write(tmp_path, "unlabeled2017/5.jpg")
    caplog.clear()
    assert len(read(tmp_path, kind="image")) == 2 and "1 of 5 files or rows: unlabeled2017/" in caplog.text
    assert read(tmp_path, "unlabeled2017", "image") == ["unlabeled2017/5.jpg"]


@pytest.mark.parametrize("layout", ["{split}/{label}/1.png", "{label}/{split}/1.png", "data/{split}2020/{label}/1.png"])
def test_class_folders_below_and_above_splits_give_labels(tmp_path: Path, layout: str) -> None:
    write(tmp_path, *(layout.format(split=split, label=label) for split in ("train", "test") for label in ("cat", "dog")))
    for split in ("train", "test"):
        rows = open_dataset(str(tmp_path), "image", split)
        assert all(f"{split}" in row["image"]["path"] for row in rows) and len(rows) == 2
        assert "data" in layout or rows["label"][:] == ["cat", "dog"]


def test_class_that_is_called_like_a_split_is_a_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "plane/1.jpg", "train/2.jpg")
    assert open_dataset(str(tmp_path), "image")["label"][:] == ["plane", "train"]
    assert "folder train is taken for a class" in caplog.text
    assert "has no split 'test', and no other" in refusal(tmp_path, "test", "image")
    write(tmp_path / "crashes", "car/1.jpg", "crash_test/2.jpg")
    assert "only crash_test (1); car/ belong to none" in refusal(tmp_path / "crashes", "train", "image")
    assert open_dataset(str(tmp_path / "crashes"), "image", "all")["label"][:] == ["car", "crash_test"]


def test_folder_train_with_class_folders_is_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "train/cat/1.png", "train/dog/2.png", "docs/logo.png", "unlabeled/a/3.png")
    rows = open_dataset(str(tmp_path), "image")
    assert rows["label"][:] == ["cat", "dog"] and read(tmp_path, kind="image") == ["train/cat/1.png", "train/dog/2.png"]
    assert "2 of 4 files or rows: docs/, unlabeled/" in caplog.text


def test_folder_of_one_split_is_not_read_as_another(tmp_path: Path) -> None:
    write(tmp_path, "clips/a.wav", "test/b.wav")
    assert "has no split 'train', only test (1); clips/ belong to none: set data.split" in refusal(tmp_path, "train")
    assert read(tmp_path, "test") == ["test/b.wav"]
    assert read(tmp_path / "test") == ["test/b.wav"], "a folder that is named is read, whatever its name"


def test_data_without_splits_counts_as_train_and_as_no_other(tmp_path: Path) -> None:
    write(tmp_path, "a.wav", "b.wav")
    assert read(tmp_path) == read(tmp_path, "valid", whole="valid") == read(tmp_path, "all") == ["a.wav", "b.wav"]
    assert "has no split 'valid', and no other: no name in it stands for one (a.wav, b.wav)" in refusal(tmp_path, "valid")


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_tables_and_archives_are_split_by_a_word_of_their_name(tmp_path: Path, ending: str, streaming: bool) -> None:
    names = [f"set-{split}.{ending}" for split in ("train", "dev", "test")]
    write(tmp_path, *names)
    for split, name in zip(("train", "valid", "test"), names, strict=True):
        assert read(tmp_path, split, "text", streaming=streaming) == [name]
    assert read(tmp_path / names[2], "train", "text", streaming=streaming) == [names[2]], "a file that is named is read"


def test_metadata_above_splits_is_divided_by_its_paths(tmp_path: Path) -> None:
    write(tmp_path, "train/a.wav", "train/b.wav", "test/c.wav")
    (tmp_path / "metadata.csv").write_text("file_name,speaker\ntest/c.wav,1\ntrain/b.wav,02\ntrain/a.wav,3\n")
    rows = open_dataset(str(tmp_path), "audio")
    assert [(Path(row["audio"]["path"]).name, row["speaker"]) for row in rows] == [("b.wav", "02"), ("a.wav", "3")]
    assert read(tmp_path, "test") == ["test/c.wav"]


def test_metadata_that_lists_one_split_refuses_the_others(tmp_path: Path) -> None:
    write(tmp_path, "train/a.wav", "test/c.wav")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/a.wav", "words": "A"}\n')
    assert read(tmp_path) == ["train/a.wav"]
    assert "metadata.jsonl lists none of 1 audio files, such as test/c.wav" in refusal(tmp_path, "test")


def test_metadata_in_each_split_belongs_to_its_folder(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path, f"{split}/x.wav")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,words\nx.wav,{split}\n")
    assert open_dataset(str(tmp_path), "audio", "test")["words"][:] == ["test"]
    assert sorted(open_dataset(str(tmp_path), "audio", "all")["words"][:]) == ["test", "train"]


def test_common_voice_as_it_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, *(f"clips/{i}.mp3" for i in range(5)))
    for name, clips in {"train": "01", "dev": "2", "test": "3", "validated": "0123", "invalidated": "4"}.items():
        rows = "".join(f"{i}\t{i}.mp3\tsentence {i}\n" for i in clips)
        (tmp_path / f"{name}.tsv").write_text(f"client_id\tpath\tsentence\n{rows}")
    rows = open_dataset(str(tmp_path), "audio")
    assert rows["sentence"][:] == ["sentence 0", "sentence 1"]
    assert Path(rows[0]["audio"]["path"]) == tmp_path / "clips" / "0.mp3"
    assert "left out" in caplog.text
    assert read(tmp_path, "valid") == ["clips/2.mp3"] and len(read(tmp_path, "validated")) == 4
    assert len(read(tmp_path, "all")) == 5
    assert read(tmp_path / "dev.tsv") == ["clips/2.mp3"], "a table that is named is read"


def test_file_listed_for_two_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.wav", "b.wav")
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("file\na.wav\n")
    assert "a.wav is listed for test and for train" in refusal(tmp_path, "train")
    write(tmp_path, "test/c.wav")
    (tmp_path / "train.csv").write_text("file\ntest/c.wav\n")
    assert "train.csv lists test/c.wav, which belongs to another split" in refusal(tmp_path, "train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_column_split_divides_a_table(tmp_path: Path, ending: str, streaming: bool) -> None:
    rows = [("a", "train"), ("b", "test"), ("c", "validation"), ("d", "train"), ("e", None)]
    path = tmp_path / f"reviews.{ending}"
    if ending == "csv":
        path.write_text("text,split\n" + "".join(f"{text},{split or ''}\n" for text, split in rows))
    elif ending == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "split": split}) + "\n" for text, split in rows))
    else:
        Dataset.from_dict({"text": [text for text, _ in rows], "split": [split for _, split in rows]}).to_parquet(path)
    assert read(path, "train", "text", streaming=streaming) == ["a", "d"]
    assert read(path, "dev", "text", streaming=streaming) == ["c"]
    assert read(path, "all", "text", streaming=streaming) == ["a", "b", "c", "d", "e"]
    if not streaming:
        assert "column split has no split 'x', only test (1), train (2), validation (1)" in refusal(path, "x", "text")


def test_column_split_of_another_meaning_is_only_read_by_its_values(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,split\na,fold1\nb,fold2\n")
    assert read(tmp_path, "train", "text") == ["a", "b"] and read(tmp_path, "fold2", "text") == ["b"]
    assert "has no split 'test', only fold1 (1), fold2 (1)" in refusal(tmp_path, "test", "text")


def test_classes_in_column_split_divide_a_table(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "split": ClassLabel(names=["test", "train"])})
    Dataset.from_dict({"text": ["a", "b", "c"], "split": [1, 0, -1]}, features=features).to_parquet(tmp_path / "x.parquet")
    assert read(tmp_path, "train", "text") == ["a"] and read(tmp_path, "test", "text") == ["b"]


def test_column_split_against_the_name_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,split\na,train\nb,test\n")
    write(tmp_path, "test.csv")
    (tmp_path / "test.csv").write_text("text,split\nc,test\n")
    assert "the files are named by split train, but column split of 1 rows is test" in refusal(tmp_path, "train", "text")
    assert read(tmp_path, "test", "text") == ["c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_in_an_archive_divide_it(tmp_path: Path, streaming: bool) -> None:
    write_tar(tmp_path / "cifar.tar", {f"{name}/1.png": name for name in ("train/cat", "train/dog", "test/cat")})
    assert read(tmp_path, "train", "image", streaming=streaming) == ["train/cat", "train/dog"]
    assert read(tmp_path / "cifar.tar", "test", "image", streaming=streaming) == ["test/cat"]
    assert len(read(tmp_path, "all", "image", streaming=streaming)) == 3
    assert "can be read as image of split valid" in refusal(tmp_path, "valid", "image", streaming=streaming)


def test_members_beside_the_splits_of_an_archive_are_in_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "x.tar", {f"{name}.wav": name for name in ("train/a", "docs/b", "val/c", "d")})
    for split, whole, expected in (("train", "train", "train/a"), ("valid", "valid", "val/c")):
        caplog.clear()
        assert read(tmp_path, split, whole=whole) == [expected]
        assert "left out as they are in no folder that is named by a split, 2 of 3 members: docs/b, d;" in caplog.text
        assert "x.tar: only some of its folders are named by a split, docs/b" in refusal(
            tmp_path, split, whole=whole, streaming=True
        )
    assert len(read(tmp_path, "all")) == len(read(tmp_path, "all", streaming=True)) == 4
    write_tar(tmp_path / "x.tar", {"test/a.wav": "a", "docs/b.wav": "b"})
    assert "can be read as audio of split train" in refusal(tmp_path, "train")


def test_name_of_an_archive_comes_before_the_folders_in_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", {"train/1.png": "a", "x/2.png": "b"})
    write_tar(tmp_path / "test.tar", {"1.png": "c"})
    assert read(tmp_path, "train", "image") == ["a", "b"] and read(tmp_path, "test", "image") == ["c"]


def test_saved_datasets_are_read_by_split(tmp_path: Path) -> None:
    parts = {"train": ["a", "b"], "test": ["c"], "unsupervised": ["d"]}
    DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in parts.items()}).save_to_disk(tmp_path / "all")
    Dataset.from_dict({"text": ["e"]}).save_to_disk(tmp_path / "one")
    for name, texts in parts.items():
        Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "folders" / name)
        for streaming in (False, True):
            assert read(tmp_path / "all", name, "text", streaming=streaming) == texts
        assert read(tmp_path / "folders", name, "text") == texts
    assert read(tmp_path / "one", "train", "text") == ["e"] and read(tmp_path / "all", "all", "text") == ["a", "b", "c", "d"]
    assert "has no split 'valid', only test (1), train (1), unsupervised (1)" in refusal(tmp_path / "all", "valid", "text")
    assert "has no split 'test'" in refusal(tmp_path / "one", "test", "text")
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "only")
    assert read(tmp_path / "only", "train", "text") == ["a"]
    assert "has no split 'valid', only train (1)" in refusal(tmp_path / "only", "valid", "text", whole="valid")


def test_remote_files_are_split_as_local_ones(tmp_path: Path) -> None:
    import fsspec

    write(tmp_path, "train-0.parquet", "test-0.parquet", "more/train/a.tar", "more/test/a.tar")
    memory = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.*"):
        memory.pipe(f"/split-set/{path.relative_to(tmp_path)}", path.read_bytes())
    assert read_url("memory://split-set/*.parquet", "test") == ["test-0.parquet"]
    assert read_url("memory://split-set/test-*.parquet", "train") == ["test-0.parquet"], "files that are named are read"
    assert read_url("memory://split-set/more/", "test") == ["more/test/a.tar"]
    with pytest.raises(UserError, match=r"has no split 'valid', only test \(1\), train \(1\)"):
        open_dataset("memory://split-set/more", "text", "valid")


def read_url(url: str, split: str) -> list[str]:
    rows = open_dataset(url, "text", split, streaming=True)
    return [text["bytes"].decode() if isinstance(text := row["text"], dict) else text for row in rows]


def test_split_of_a_hub_dataset_may_be_named_by_a_synonym(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    parts = {"train": ["a"], "validation": ["b"], "test": ["c"]}

    def load_dataset(*arguments: Any, split: str | None = None, streaming: bool, revision: None) -> Any:
        everything = {name: Dataset.from_dict({"text": texts}) for name, texts in parts.items()}
        if split is not None and split not in parts:
            raise ValueError(f'Unknown split "{split}". Should be one of {list(parts)}.')
        return everything if split is None else everything[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert open_dataset("hf://owner/name", "text", "valid")["text"][:] == ["b"]
    assert open_dataset("hf://owner/name", "text", "all")["text"][:] == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"owner/name has no split 'extra', only test \(1\), train \(1\), validation \(1\)"):
        open_dataset("hf://owner/name", "text", "extra")


def test_list_splits_counts_files_and_rows(tmp_path: Path) -> None:
    write(tmp_path, "a/train-clean/1.wav", "a/train-clean/2.wav", "a/dev/3.wav", "a/4.wav", "b/x.wav")
    assert list_splits(Request(str(tmp_path / "a"), "audio")) == {"dev": 1, "train-clean": 2}
    assert list_splits(Request(str(tmp_path / "b"), "audio")) == {}
    with open(tmp_path / "t.csv", "w") as file:
        csv.writer(file).writerows([["text", "split"], ["a", "train"], ["b", "test"], ["c", "train"]])
    assert list_splits(Request(str(tmp_path / "t.csv"), "text")) == {"test": 1, "train": 2}


def test_files_of_other_formats_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.jsonl", "b.txt", "c.txt")
    assert read(tmp_path, kind="text") == ["a.jsonl"]
    assert "left out as there are 1 .jsonl, files of other formats: 2 .txt (such as b.txt)" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    write(tmp_path / "set", "a.wav", "b.tar", "c.parquet")
    (tmp_path / "set" / "metadata.csv").write_text("file_name\na.wav\n")
    assert read(tmp_path / "set") == ["a.wav"]
    assert (
        "left out as there are tables that list files (metadata.csv), files of other formats: 1 .tar, 1 .parquet" in caplog.text
    )


def test_streams_of_loose_files_are_split(tmp_path: Path) -> None:
    write(tmp_path, "train/a.wav", "test/b.wav")
    assert isinstance(open_dataset(str(tmp_path), "audio", streaming=True), IterableDataset)
    assert read(tmp_path, "test", streaming=True) == ["test/b.wav"]
