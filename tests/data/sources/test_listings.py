"""Files are divided into splits by lists of them, as Speech Commands and Food-101 have."""

from pathlib import Path

import pytest

from data2vec.data.sources.open_dataset import list_splits, open_dataset
from data2vec.data.sources.shards import Request
from data2vec.errors import UserError


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def read(root: Path, split: str, streaming: bool = False) -> list[str]:
    rows = open_dataset(str(root), "audio", split, streaming)
    return sorted(str(Path(row["audio"]["path"]).relative_to(root)) for row in rows)


def write_commands(root: Path) -> None:
    write(root, *(f"{word}/{number}_nohash_0.wav" for word in ("no", "yes") for number in range(2)))
    (root / "testing_list.txt").write_text("yes/0_nohash_0.wav\n")
    (root / "validation_list.txt").write_text("no/0_nohash_0.wav\r\n\n")


@pytest.mark.parametrize("streaming", [False, True])
def test_what_no_list_names_is_train(tmp_path: Path, streaming: bool) -> None:
    write_commands(tmp_path)
    assert read(tmp_path, "train", streaming) == ["no/1_nohash_0.wav", "yes/1_nohash_0.wav"]
    assert read(tmp_path, "valid", streaming) == ["no/0_nohash_0.wav"]
    assert read(tmp_path, "test", streaming) == ["yes/0_nohash_0.wav"] and len(read(tmp_path, "all", streaming)) == 4
    assert open_dataset(str(tmp_path), "audio", "test")["label"][:] == ["yes"]
    assert list_splits(Request(str(tmp_path), "audio")) == {"testing_list": 1, "train": 2, "validation_list": 1}


def test_with_a_list_of_train_the_rest_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "images/pie/1.wav", "images/pie/2.wav", "images/tart/1.wav")
    (tmp_path / "meta").mkdir()
    for name, line in (("train", "pie/1"), ("test", "tart/1"), ("classes", "pie"), ("test_notes", "the second half")):
        (tmp_path / "meta" / f"{name}.txt").write_text(f"{line}\n")
    assert read(tmp_path, "train") == ["images/pie/1.wav"] and read(tmp_path, "test") == ["images/tart/1.wav"]
    assert "1 of 3 files or rows: images/" in caplog.text


def test_rows_of_metadata_are_divided_by_lists(tmp_path: Path) -> None:
    write(tmp_path, "a.wav", "b.wav")
    (tmp_path / "metadata.csv").write_text("file_name,words\na.wav,A\nb.wav,B\n")
    (tmp_path / "test.txt").write_text("b.wav\n")
    assert open_dataset(str(tmp_path), "audio")["words"][:] == ["A"]
    assert open_dataset(str(tmp_path), "audio", "test")["words"][:] == ["B"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("root", ["as it is", "moved", "."])
def test_manifests_of_fairseq_list_files(tmp_path: Path, root: str, streaming: bool) -> None:
    write(tmp_path, "a/1.flac", "a/2.flac", "b/3.flac", "b/4.flac")
    folder = {"as it is": str(tmp_path), "moved": "/checkpoint/clips"}.get(root, root)
    (tmp_path / "train.tsv").write_text(f"{folder}\na/1.flac\t16000\nb/3.flac\t8000\n")
    (tmp_path / "valid.tsv").write_text(f"{folder}\na/2.flac\t16000\n")
    assert read(tmp_path, "train", streaming) == ["a/1.flac", "b/3.flac"]
    assert read(tmp_path, "valid", streaming) == ["a/2.flac"]
    rows = open_dataset(str(tmp_path / "train.tsv"), "audio", streaming=streaming)
    assert sorted((Path(row["audio"]["path"]), row["samples"]) for row in rows) == [
        (tmp_path / "a/1.flac", "16000"),
        (tmp_path / "b/3.flac", "8000"),
    ]


def test_a_manifest_of_another_folder_needs_leave_and_a_broken_one_names_its_line(tmp_path: Path) -> None:
    write(tmp_path, "clips/1.flac", "set/readme.md")
    (tmp_path / "set" / "train.tsv").write_text(f"{tmp_path / 'clips'}\n1.flac\t16000\n")
    for path in (tmp_path / "set", tmp_path / "set" / "train.tsv"):
        with pytest.raises(UserError, match="follow_links"):
            open_dataset(str(path), "audio")
        (row,) = open_dataset(str(path), "audio", follow_links=True)
        assert row["audio"]["path"] == str(tmp_path / "clips" / "1.flac")
    (tmp_path / "clips" / "train.tsv").write_text(f"{tmp_path / 'clips'}\n1.flac\t16000\n1.flac\n")
    with pytest.raises(UserError, match=r"train.tsv, line 3 is not a path, a tab and a number of samples"):
        read(tmp_path / "clips", "train")


def test_ambiguous_lists_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_commands(tmp_path)
    (tmp_path / "testing_list.txt").write_text("no/0_nohash_0.wav\n")
    with pytest.raises(UserError, match=r"no/0_nohash_0.wav is listed by testing_list.txt and by validation_list.txt"):
        read(tmp_path, "train")
    (tmp_path / "testing_list.txt").write_text("0_nohash_0.wav\n")
    with pytest.raises(UserError, match=r"several files are named 0_nohash_0.wav; write their folders"):
        read(tmp_path, "train")
    (tmp_path / "testing_list.txt").write_text("yes/0_nohash_0.wav\nyes/1_nohash_0.wav\nyes/9_nohash_0.wav\n")
    assert read(tmp_path, "test") == ["yes/0_nohash_0.wav", "yes/1_nohash_0.wav"]
    assert "1 of 3 files that it lists are not there: yes/9_nohash_0.wav" in caplog.text
    write(tmp_path, "test/yes/3.wav")
    (tmp_path / "testing_list.txt").write_text("yes/0_nohash_0.wav\n")
    (tmp_path / "validation_list.txt").write_text("test/yes/3.wav\n")
    with pytest.raises(UserError, match=r"validation_list lists test/yes/3.wav, which belongs to test; correct the list"):
        read(tmp_path, "train")
