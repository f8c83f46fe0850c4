"""Files are divided into splits by lists of them, as Speech Commands and Food-101 have."""

import json
import re
from pathlib import Path

import pytest

from data2vec.data.audio import decode_audio
from data2vec.data.check.check import check
from data2vec.data.sources.open_dataset import list_splits, open_dataset
from data2vec.data.sources.shards import Request
from data2vec.errors import CorruptExample, UserError


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
    assert read(tmp_path / "clips", "train") == ["1.flac", "train.tsv:3"]
    reason = "train.tsv:3: not a path, a tab and a number of samples in UTF-8"
    with pytest.raises(CorruptExample, match=reason):
        decode_audio(list(open_dataset(str(tmp_path / "clips"), "audio", "train"))[1]["audio"])


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


BROKEN_LINES = {
    "too few cells": ("metadata.csv", b"b.wav", "it has 1 cell, not 2"),
    "too many cells": ("metadata.tsv", b"b.wav\tB\tB", "it has 3 cells, not 2"),
    "quote that is not closed": ("metadata.csv", b'"b.wav,B', "its quotes do not match"),
    "no file": ("metadata.csv", b",B", "it names no file"),
    "no file in a csv of paths": ("list.csv", b",B", "it names no file"),
    "not UTF-8": ("metadata.csv", b"caf\xe9.wav,B", "not UTF-8"),
    "no JSON": ("metadata.jsonl", b"{", "not a JSON object in UTF-8"),
    "no file in JSON": ("metadata.jsonl", b'{"words": "B"}', "it names no file"),
    "null in JSON": ("manifest.json", b'{"file_name": null, "words": "B"}', "it names no file"),
    "a list in JSON": ("metadata.jsonl", b'{"file_name": ["b.wav", "c.wav"], "words": "B"}', "it names no file"),
    "an object in JSON": ("metadata.jsonl", b'{"file_name": {"a": 1}, "words": "B"}', None),
    "a name that no file can have": ("metadata.csv", b"x" * 5000 + b".wav,B", None),
    "NUL": ("metadata.jsonl", b'{"file_name": "a\\u0000.wav", "words": "B"}', None),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", BROKEN_LINES)
def test_broken_line_of_a_table_of_files_is_one_bad_example(tmp_path: Path, case: str, streaming: bool) -> None:
    name, line, why = BROKEN_LINES[case]
    write(tmp_path, "a.wav", "c.wav")
    if name.endswith("sv"):
        mark = b"\t" if name.endswith("tsv") else b","
        lines = [mark.join(cells) for cells in ([b"file_name", b"words"], [b"a.wav", b"A"], [b"c.wav", b"C"])]
    else:
        lines = [json.dumps({"file_name": f"{file}.wav", "words": file.upper()}).encode() for file in "ac"]
    (tmp_path / name).write_bytes(b"\n".join([*lines[:-1], line, lines[-1]]))
    rows = list(open_dataset(str(tmp_path / name if name == "list.csv" else tmp_path), "audio", streaming=streaming))
    files = {row["audio"]["path"]: row["words"] for row in rows}
    assert len(rows) == 3 and files.pop(f"{tmp_path}/a.wav") == "A" and files.pop(f"{tmp_path}/c.wav") == "C"
    assert len(files) == 1
    problems = [row["audio"] for row in rows if row["audio"]["path"] in files]
    reason = None if why is None else f"^{re.escape(f'{tmp_path / name}:{len(lines)}: {why}')}$"
    with pytest.raises(CorruptExample, match=reason):
        decode_audio(problems[0])


def test_broken_line_of_metadata_above_splits_is_in_none_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, *(f"{split}/{number}.wav" for split in ("train", "test") for number in range(2)))
    rows = [f"{split}/{number}.wav,x\n" for split in ("train", "test") for number in range(2)]
    (tmp_path / "metadata.csv").write_text("".join(["file_name,words\n", rows[0], "broken\n", *rows[1:]]))
    assert read(tmp_path, "train") == ["train/0.wav", "train/1.wav"]
    assert read(tmp_path, "test", streaming=True) == ["test/0.wav", "test/1.wav"]
    assert "metadata.csv:3" in caplog.text


def test_broken_line_of_a_table_of_a_split_belongs_to_it(tmp_path: Path) -> None:
    write(tmp_path, *(f"clips/{number}.wav" for number in range(4)))
    (tmp_path / "train.tsv").write_text("path\twords\n0.wav\ta\nbroken\n1.wav\tb\n")
    (tmp_path / "test.tsv").write_text("path\twords\n2.wav\ta\n3.wav\tb\n")
    assert read(tmp_path, "train") == ["clips/0.wav", "clips/1.wav", "train.tsv:3"]
    assert read(tmp_path, "test") == ["clips/2.wav", "clips/3.wav"]
    (part,) = check(str(tmp_path), workers=0).parts
    assert part.examples == 3 and [str(each) for each in part.unreadable if "train.tsv:3: it has 1 cell, not 2" in str(each)]
