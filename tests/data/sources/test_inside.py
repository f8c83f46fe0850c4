"""A dataset reads only itself: links and paths that lead outside of its folder are refused unless they are to be followed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from data2vec import cli
from data2vec.data.sources.library import data_path
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError

WORDS = "words of the user\n"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "private.txt").write_text(WORDS)
    return tmp_path / "home" / "private.txt"


def link(folder: Path, private: Path) -> Path:
    (folder / "a.txt").symlink_to(private)
    return folder


def linked_folder(folder: Path, private: Path) -> Path:
    (folder / "texts").symlink_to(private.parent)
    return folder


def signals(folder: Path, path: str) -> Path:
    rows = [{"bytes": b"a", "path": "a.txt"}, {"bytes": None, "path": path}]
    parquet.write_table(pa.table({"text": rows}), folder / "data.parquet")
    return folder / "data.parquet"


def absolute(folder: Path, private: Path) -> Path:
    return signals(folder, str(private))


def relative(folder: Path, private: Path) -> Path:
    return signals(folder, os.path.relpath(private, folder))


def through_a_link(folder: Path, private: Path) -> Path:
    (folder / ".hidden").symlink_to(private.parent)
    return signals(folder, ".hidden/private.txt")


OUTSIDE: list[Callable[[Path, Path], Path]] = [link, linked_folder, absolute, relative, through_a_link]


@pytest.mark.parametrize("make", OUTSIDE)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_leads_outside_is_refused_or_followed(
    make: Callable[[Path, Path], Path], tmp_path: Path, private: Path, streaming: bool
) -> None:
    (tmp_path / "set").mkdir()
    data = str(make(tmp_path / "set", private))

    def texts(**options: Any) -> list[str]:
        rows = list(open_dataset(data, "text", streaming=streaming, **options))
        return sorted("".join(read_text(row)) for row in rows)

    with pytest.raises(UserError, match=r"lead outside of its folder, 1: such as .*unless data\.follow_links=true"):
        texts()
    assert WORDS in texts(follow_links=True)


@pytest.mark.parametrize("name", ["metadata.csv", "list.csv"])
def test_a_table_lists_only_files_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    for path in ("x.wav", "set/y.wav"):
        (tmp_path / path).write_bytes(b"")
    for lines in ("../x.wav", f"{tmp_path}/x.wav", "y.wav\n../set/../x.wav"):
        (tmp_path / "set" / name).write_text(f"file_name\n{lines}\n")
        for data in ("set", f"set/{name}"):
            with pytest.raises(UserError, match="lead outside of its folder, 1"):
                open_dataset(str(tmp_path / data), "audio")
            assert len(open_dataset(str(tmp_path / data), "audio", follow_links=True))


def test_links_inside_of_the_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.wav").write_bytes(b"")
    (tmp_path / "b.wav").symlink_to("store/a.wav")
    (tmp_path / "c").symlink_to("store")
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert len(open_dataset(str(tmp_path), "audio")) == 2  # a folder is read once
    assert len(open_dataset(str(tmp_path / "elsewhere"), "audio")) == 2


def test_a_dataset_that_is_not_local_names_no_local_file(monkeypatch: pytest.MonkeyPatch, private: Path) -> None:
    rows = Dataset.from_dict({"text": [{"bytes": None, "path": str(private)}]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    with pytest.raises(UserError, match="lead outside"):
        open_dataset("hf://owner/name", "text")


def test_a_saved_dataset_has_its_files_in_its_folder(tmp_path: Path, private: Path) -> None:
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "set")
    state = tmp_path / "set" / "train" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"] = [{"filename": f"../../home/{private.name}"}]
    state.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the files of its parts lead outside"):
        open_dataset(str(tmp_path / "set"), "text")
    (tmp_path / "set" / "dataset_dict.json").write_text(json.dumps({"splits": ["../home"]}))
    with pytest.raises(UserError, match="its splits are no names"):
        open_dataset(str(tmp_path / "set"), "text")


def test_an_object_of_the_user_may_name_any_file(private: Path) -> None:
    where = data_path(Dataset.from_dict({"text": [{"bytes": None, "path": str(private)}]}))
    (row,) = open_dataset(where, "text")
    assert list(read_text(row)) == [WORDS]


def test_commands_follow_links_if_asked(tmp_path: Path, private: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    words = ["check", str(link(tmp_path / "set", private)), "--workers", "0"]
    assert cli.main(words) == 2
    assert "--follow-links" in capsys.readouterr().err
    assert cli.main([*words, "--follow-links"]) == 0


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet", "a.tar", "metadata.csv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_without_end_is_refused_or_a_corrupt_example(tmp_path: Path, name: str, streaming: bool) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((UserError, CorruptExample), match=r"not a regular file|no text found"):
        list(read_text(next(iter(open_dataset(str(tmp_path), "text", streaming=streaming)))))
