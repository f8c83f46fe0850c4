"""Files of strangers are opened within bounds."""

import os
import socket
from pathlib import Path

import pytest

from data2vec.untrusted import NotRegular, open_regular, parse_json, read_json, read_regular


def test_open_regular_refuses_what_has_no_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name in ("fifo", "link", "socket"):
            with pytest.raises(NotRegular, match="not a regular file"):
                open_regular(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_read_regular_refuses_a_larger_file(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="at most 8 are read"):
        read_regular(tmp_path / "sparse", 8)
    (tmp_path / "small").write_bytes(b"12345678")
    assert read_regular(tmp_path / "small", 8) == b"12345678"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "9" * 5000, "", "nul", b"\xff", '"\\ud8'],
    ids=["open", "lists", "objects", "digits", "empty", "word", "bytes", "half"],
)
def test_parse_json_raises_only_value_errors(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any of them
        parse_json(text)


def test_parse_json_keeps_what_settings_have(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes('\ufeff{"a": [1, {"b": "é"}], "c": null}'.encode())
    assert read_json(tmp_path / "config.json") == {"a": [1, {"b": "é"}], "c": None}
