"""Every row and cell of a table is kept, as written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data2vec.data.check.check import check
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.sources.tables import first_values, read_table, record_columns
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError

IDS = ["0012", "7", "12e3", "1_0", "123456789012345678901", "1.0", "NaN", "null", "True", "-0", " x "]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_ids_and_labels_stay_as_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps({"text": "t", "id": value, "label": value}) + "\n" for value in IDS))
    else:
        mark = "\t" if ending == "tsv" else ","
        path.write_text("".join(mark.join(row) + "\n" for row in [("text", "id", "label"), *(("t", v, v) for v in IDS)]))
    rows = open_dataset(str(path), "text")
    assert rows["id"][:] == rows["label"][:] == IDS


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_columns_of_metadata_stay_as_written(tmp_path: Path, ending: str) -> None:
    for number in range(len(IDS)):
        (tmp_path / f"{number}.wav").write_bytes(b"")
    path = tmp_path / f"metadata.{ending}"
    if ending == "jsonl":
        path.write_text("".join(json.dumps({"file_name": f"{i}.wav", "id": v}) + "\n" for i, v in enumerate(IDS)))
    else:
        mark = "\t" if ending == "tsv" else ","
        path.write_text(f"file_name{mark}id\n" + "".join(f"{i}.wav{mark}{v}\n" for i, v in enumerate(IDS)))
    assert open_dataset(str(tmp_path), "audio")["id"][:] == IDS


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_byte_order_mark_belongs_to_no_cell(tmp_path: Path, ending: str) -> None:
    lines = {"csv": "text,label\none,x\n", "tsv": "text\tlabel\none\tx\n", "jsonl": '{"text": "one", "label": "x"}\n'}
    (tmp_path / f"a.{ending}").write_text(lines[ending], encoding="utf-8-sig")
    for streaming in (False, True):
        (row,) = open_dataset(str(tmp_path), "text", streaming=streaming)
        assert (row["text"], row["label"]) == ("one", "x")


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        (['{"text": "a"}', '{"text": "b", "label": "x"}'], [None, "x"]),
        (['{"text": "a", "label": null}', '{"text": "b", "label": "x"}'], [None, "x"]),
        (['{"text": "a", "label": ["x", "y"]}', '{"text": "b", "label": []}'], [["x", "y"], []]),
        (['{"text": "a", "label": 1}', '{"text": "b", "label": "x"}'], ["1", "x"]),
        (['{"text": "a", "label": [1, "x"]}', '{"text": "b"}'], [["1", "x"], None]),
        (['{"text": "a", "label": 1}', '{"text": "b", "label": 2}'], [1, 2]),
        (['{"text": "a", "label": 1}', '{"text": "b", "label": 2.5}'], [1.0, 2.5]),
        (['{"text": "a", "label": 123456789012345678901}', '{"text": "b", "label": 2}'], ["123456789012345678901", "2"]),
        (['{"text": "a", "label": {"k": [1]}}', '{"text": "b", "label": null}'], ['{"k": [1]}', None]),
        (['{"text": "a", "label": true}', '{"text": "b", "label": false}'], [True, False]),
    ],
)
def test_fields_of_all_lines_become_columns(tmp_path: Path, lines: list[str], labels: list[Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines) + "\n")
    for _ in range(2):  # from the file, and from the cache
        rows = open_dataset(str(path), "text")
        assert rows["text"][:] == ["a", "b"] and rows["label"][:] == labels
    path.write_text("\n".join(lines[::-1]) + "\n")
    assert open_dataset(str(path), "text")["label"][:] == labels[::-1]


def test_records_of_different_keys_become_one_table() -> None:
    table = record_columns([{"a": 1}, {}, {"b": [[1, 2], None]}, {"a": 2, "c": None}])
    assert table.to_pydict() == {"a": [1, None, None, 2], "b": [None, None, [[1, 2], None], None], "c": [None] * 4}
    assert record_columns([{}, {}]).num_rows == 2 and record_columns([]).num_rows == 0


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_long_cells_are_read(tmp_path: Path, ending: str) -> None:
    long = "x" * 300_000
    lines = {"csv": f"text,label\n{long},a\n", "tsv": f"text\tlabel\n{long}\ta\n", "jsonl": json.dumps({"text": long}) + "\n"}
    path = tmp_path / f"a.{ending}"
    path.write_text(lines[ending])
    assert open_dataset(str(path), "text")["text"][0] == long
    assert first_values(path)["text"] == [long]


def test_header_longer_than_the_limit_of_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{'x' * 200_000},text\n1,words\n")
    assert open_dataset(str(tmp_path / "a.csv"), "text")["text"][:] == ["words"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty: its first line must name the columns"),
        ("a.csv", "text,text\na,b\n", "has several columns 'text'"),
        ("a.csv", "text,label\na\n", r"1 of 1 rows cannot be read, such as .*a\.csv:2: it has 1 cell, not 2; separate"),
        ("a.tsv", "text\tlabel\na\tb\tc\n", r"a\.tsv:2: it has 3 cells, not 2; separate cells by tabs"),
        ("a.csv", "text,label\na,b\na;b\nc;d\n", "2 of 3 rows cannot be read"),
        ("a.csv", "text;label\na;b\n", "separated by ';', as its only column is 'text;label'"),
        ("a.csv", "text\tlabel\na\tb\n", "separated by '.t'"),
        ("a.tsv", "text,label\na,b\n", "separated by ','"),
        ("a.csv", '"text,label\na,b\n', "its first line: its quotes do not match"),
        ("a.jsonl", "[1, 2]\n", "jsonl:1: not a JSON object"),
        ("a.parquet", "no table", "no row can be read: not a complete parquet file"),
    ],
)
def test_malformed_table_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / name)


BROKEN_ROWS = {
    "too few": ("csv", b"one", "it has 1 cell, not 2"),
    "too many": ("csv", b"one,x,y", "it has 3 cells, not 2"),
    "too few in tsv": ("tsv", b"one", "it has 1 cell, not 2"),
    "quote that is not closed": ("csv", b'"one,x', "its quotes do not match"),
    "quote in the last cell": ("csv", b'one,"x', "its quotes do not match"),
    "quote closed in a later row": ("csv", b'one,"x', "its quotes do not match"),
    "more after a quote": ("csv", b'"one"two,x', "its quotes do not match"),
    "not UTF-8": ("csv", b"\xe9,x", "not UTF-8"),
    "not UTF-8 in tsv": ("tsv", b"\xe9\tx", "not UTF-8"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_broken_row_of_a_text_table_is_one_bad_example_named_with_its_line(tmp_path: Path, case: str, streaming: bool) -> None:
    ending, row, why = BROKEN_ROWS[case]
    last = '"third, whole"' if "later" in case else "third, whole" if ending == "tsv" else "third"
    mark = b"\t" if ending == "tsv" else b","
    rows = [b"text", b"label"], [b"first", b"a"], None, [last.encode(), b"c"], [b"fourth", b""]
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"\r\n".join(row if cells is None else mark.join(cells) for cells in rows))
    found = sorted(open_dataset(str(path), "text", streaming=streaming), key=lambda row: row["text"] or "")
    assert [(row["text"], row["label"]) for row in found[1:]] == [("first", "a"), ("fourth", ""), (last.strip('"'), "c")]
    assert found[0] == {"text": None, "label": None, "path": f"{path}:3", "unreadable_because": why}
    with pytest.raises(CorruptExample, match=rf"a\.{ending}:3: {why}$"):
        list(read_text(found[0]))
    (part,) = check(str(path), workers=0).parts
    assert (part.examples, len(part.unreadable)) == (4, 1) and part.unreadable[0].endswith(f"a.{ending}:3: {why}")


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,a\0b\nx,y\n"), ("a.jsonl", '{"text": "x", "a\\u0000b": "y"}\n')])
def test_name_of_a_column_with_nul_is_escaped(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (row,) = open_dataset(str(tmp_path / name), "text")
    assert row["text"] == "x" and row[r"a\x00b"] == "y"


def test_line_of_a_broken_row_counts_line_breaks_in_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,path\n"a\nb",x\n\nbroken\nc,y\n')
    rows = open_dataset(str(tmp_path / "a.csv"), "text")
    assert rows["text"][:] == ["a\nb", None, "c"]
    assert rows["path"][:] == ["x", f"{tmp_path}/a.csv:5", "y"]
    assert rows["unreadable_because"][:] == [None, "it has 1 cell, not 2", None]


def test_rows_after_quotes_that_are_not_closed_are_all_read(tmp_path: Path) -> None:
    lines = ["text,label", *(f'"{number},x' if number % 3 == 0 else f"{number},x" for number in range(300))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    texts = open_dataset(str(tmp_path / "a.csv"), "text")["text"][:]
    assert texts == [None if number % 3 == 0 else str(number) for number in range(300)]


def test_search_for_the_end_of_quotes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data2vec.data.sources.tables.MAX_SEARCHED_LINES", 1000)
    (tmp_path / "a.csv").write_text("text,label\n" + 'a,"x\n' + "b,x\n" * 2000)
    with pytest.raises(UserError, match=r"a\.csv:2 and lines before it have quotes that are not closed"):
        open_dataset(str(tmp_path / "a.csv"), "text")


def test_line_with_half_of_a_surrogate_pair_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n')
    for streaming in (False, True):
        rows = open_dataset(str(tmp_path / "a.jsonl"), "text", streaming=streaming)
        assert [row["text"] for row in rows] == [None, "\U0001f600"]


def test_lines_in_another_encoding_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-16")
    with pytest.raises(UserError, match=r"no line of a.jsonl is a JSON object in UTF-8"):
        open_dataset(str(tmp_path), "text")


def test_tables_with_different_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\n")
    (tmp_path / "b.csv").write_text("text,class\nb,y\n")
    with pytest.raises(UserError, match=r"b\.csv has columns text, class, but a\.csv has text, label"):
        open_dataset(str(tmp_path), "text")


def test_tables_of_lines_in_folders_are_all_read(tmp_path: Path) -> None:
    for name in ("a.jsonl", "more/b.jsonl", "more/deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    assert open_dataset(str(tmp_path), "text")["text"][:] == ["a.jsonl", "more/b.jsonl", "more/deep/c.jsonl"]


def test_files_that_metadata_does_not_list_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.wav", "b.wav", "sub/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name\na.wav\n")
    assert len(open_dataset(str(tmp_path), "audio")) == 1
    assert "left out as metadata.csv does not list them, 2 of 3 audio files: b.wav, sub/c.wav" in caplog.text
    with (tmp_path / "metadata.csv").open("a") as file:
        file.write("missing.wav\na.wav\n")
    caplog.clear()
    assert len(open_dataset(str(tmp_path), "audio")) == 3
    assert "2 of 3 audio files: b.wav" in caplog.text  # not the one that a row names in vain, nor one twice


def test_files_beside_the_folder_of_metadata_are_read_without_it(tmp_path: Path) -> None:
    for name in ("a/x.wav", "b/y.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "metadata.csv").write_text("file_name,words\nx.wav,X\n")
    rows = open_dataset(str(tmp_path), "audio")
    assert [Path(row["audio"]["path"]).name for row in rows] == ["x.wav", "y.wav"] and rows["words"][:] == ["X", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("LJ001|Printing\nLJ002|in\n", r"is separated by \|, as LJ Speech's, which has no header either: write it"),
        ("name,words\na,Printing\n", r"has no column file_name with the paths of audio files, only name, words"),
        ("file_name,words\na,Printing\n", r"column file_name names files without their endings, such as a; add them"),
        ("file_name,words\n,Printing\n,in\n", r"column file_name names no files, it has no text in its first rows; correct it"),
        ("file_name,words\nb.wave,Printing\n", r"column file_name names no audio files, but such as b\.wave; correct it"),
    ],
)
def test_metadata_without_files_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        open_dataset(str(tmp_path), "audio")


def test_metadata_is_used_if_one_of_its_first_rows_names_a_file_and_ignored_where_none_are_near(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file_name,words\nb.wave,Printing\na.wav,in\na.wav,ink\n")
    rows = open_dataset(str(tmp_path), "audio")
    assert rows["words"][:] == ["Printing", "in", "ink"], "the first name alone does not decide"
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": ["a.wav"], "words": "Printing"}\n')
    assert open_dataset(str(tmp_path), "audio")["words"][:] == ["Printing"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "metadata.csv").write_text("file_name,words\nguide.pdf,x\n")
    assert open_dataset(str(tmp_path), "audio")["words"][:] == ["Printing"], "no audio is below docs"


def test_rows_of_one_table_may_name_a_file_several_times(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").write_bytes(b"")
        (tmp_path / folder / "metadata.csv").write_text("file_name,caption\nx.wav,1\nx.wav,2\n")
    assert open_dataset(str(tmp_path), "audio")["caption"][:] == ["1", "2", "1", "2"]


def test_files_of_one_name_in_other_places_are_different_files(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").write_bytes(b"")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text(f"file\n{tmp_path}/here/x.wav\n")
    (tmp_path / "set" / "test.csv").write_text("file\n../there/x.wav\n")
    for split, folder in (("train", "here"), ("test", "there")):
        (row,) = open_dataset(str(tmp_path / "set"), "audio", split, follow_links=True)
        assert row["audio"]["path"].endswith(f"{folder}/x.wav")
    assert len(open_dataset(str(tmp_path / "set"), "audio", "all", follow_links=True)) == 2


@pytest.mark.parametrize("written", ["audio/fold1/a.wav", "../audio/fold1/a.wav", "a.wav", "fold1\\a.wav"])
def test_table_in_a_sub_folder_lists_files_of_another(tmp_path: Path, written: str, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("audio/fold1/a.wav", "audio/fold2/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(f"filename,category\n{written},dog\n")
    (row,) = open_dataset(str(tmp_path), "audio")
    assert os.path.realpath(row["audio"]["path"]) == str(tmp_path / "audio/fold1/a.wav") and row["category"] == "dog"
    assert "left out as meta/esc50.csv does not list them, 1 of 2 audio files: audio/fold2/b.wav" in caplog.text


def test_table_of_files_that_are_not_there_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.wav", "b/1.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "train.csv").write_text("file\n1.wav\n")  # may be either
    assert len(open_dataset(str(tmp_path), "audio")) == 2
    assert "train.csv is not used: it lists audio files that are not there, such as 1.wav" in caplog.text


def test_rows_that_are_parts_of_a_recording_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").write_bytes(b"")
    (tmp_path / "x.csv").write_text("path,start,text\na.wav,0,hello\na.wav,2.5,there\n")
    with pytest.raises(
        UserError, match=r"by column start, rows are parts of a.wav, but parts of recordings cannot be read; cut"
    ):
        open_dataset(str(tmp_path), "audio")
    (tmp_path / "x.csv").write_text("path,start,text\na.wav,1,hello\nb.wav,2.5,there\nb.wav,2.5,again\n")  # cut from others
    assert len(open_dataset(str(tmp_path), "audio")) == 3
    assert "1 of 3 rows of x.csv name a file that another row names" in caplog.text


def test_table_of_urls_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("url,caption\nhttps://host/a.png,A\n")
    with pytest.raises(UserError, match=r"names files by URLs, such as https://host/a.png; download them"):
        open_dataset(str(tmp_path / "x.csv"), "image")


def test_text_in_place_of_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("It was a great movie.\nIt was not.\n")
    with pytest.raises(UserError, match=r"seems to have no header, as its first line has 'It was a great movie.': add one"):
        open_dataset(str(tmp_path / "x.csv"), "text")
    assert open_dataset(str(tmp_path / "x.csv"), "text", column="It was a great movie.")["text"][:] == ["It was not."]
    (tmp_path / "x.csv").write_text("Customer complaint narrative\nIt was not.\n")
    assert open_dataset(str(tmp_path / "x.csv"), "text")["text"][:] == ["It was not."]


def test_single_labels_among_lists_are_lists_of_one(tmp_path: Path) -> None:
    lines = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": "y"}, {"text": "c", "label": []}, {"text": "d"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert open_dataset(str(tmp_path), "text")["label"][:] == [["x", "y"], ["y"], [], None]
