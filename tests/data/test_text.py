import os

import pytest

from data2vec.data.text import read_text
from data2vec.errors import CorruptExample


def test_strings_bytes_and_files_are_read(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffzwei Wörter\n".encode())
    assert list(read_text({"text": "one"})) == ["one"]
    assert list(read_text({"text": ""})) == []
    assert list(read_text({"text": "zwei Wörter".encode()})) == ["zwei Wörter"]
    assert list(read_text({"text": {"bytes": None, "path": str(tmp_path / "a.txt")}})) == ["zwei Wörter\n"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": None, "path": "a.jsonl:3"}, "a.jsonl:3: not UTF-8, or without a text"),
        ({"text": 5}, "a row: '5' is of type int, not a text"),
        ({"text": ["a", "b"]}, r"a row: \"\['a', 'b'\]\" is of type list, not a text"),
        ({"text": "half \ud83d of one"}, "a row: not a text that can be encoded"),
        ({"text": b"\xff\xfe"}, "a row: not UTF-8"),
        ({"text": {"bytes": None, "path": "nowhere.txt"}}, "nowhere.txt: no such file"),
        ({"text": {"bytes": None, "path": "/"}}, "/: a folder, not a file"),
        ({"text": {"bytes": b"W\xf6rter", "path": "a.txt"}}, "a.txt: not UTF-8 .*; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_corrupt_with_a_reason(row, reason):
    with pytest.raises(CorruptExample, match=f"^{reason}"):
        list(read_text(row))


def test_text_that_is_no_regular_file_is_corrupt(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(CorruptExample, match="not a regular file"):
        list(read_text({"text": {"bytes": None, "path": str(tmp_path / "a.txt")}}))
