"""Files and folders are complete or absent."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from data2vec.atomic_io import atomic_dir, atomic_write, merge_dir, write_json, write_text
from data2vec.errors import UserError


def test_atomic_write_replaces_the_file_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("old", "new"):
        with atomic_write(path) as tmp:
            tmp.write_text(text)
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_with_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def interrupted_write() -> None:
        with atomic_write(path) as tmp:
            tmp.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_writes_any_text_as_it_is(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"label": "naïve", "score": 0.5})
    text = (tmp_path / "file.json").read_text("utf-8")
    assert json.loads(text) == {"label": "naïve", "score": 0.5}
    assert "naïve" in text


def test_write_text_to_a_link_replaces_the_file_that_it_points_to(tmp_path: Path) -> None:
    file, link = tmp_path / "file.txt", tmp_path / "link.txt"
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def test_write_text_to_a_pipe_writes_into_it(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join()
    assert (read, pipe.is_fifo()) == (["text"], True)


def test_atomic_dir_replaces_the_folder_when_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("old", "new"):
        with atomic_dir(folder) as tmp:
            (tmp / "inner").mkdir()
            (tmp / "inner" / name).write_text(name)
            assert not (folder / "inner" / name).exists()
    assert [path.name for path in (folder / "inner").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_atomic_dir_with_an_error_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")

    def interrupted_write() -> None:
        with atomic_dir(folder) as tmp:
            (tmp / "half").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted_write()
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_atomic_dir_starts_empty_after_a_crash(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp" / "half").write_text("half")
    with atomic_dir(tmp_path / "model") as tmp:
        assert not list(tmp.iterdir())
    assert not list((tmp_path / "model").iterdir())


def test_merge_dir_replaces_its_own_files_and_leaves_all_others(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config", "weights", "letter", "head"):
        (folder / name).write_text("old")
    with merge_dir(folder, "config", obsolete=("head", "absent")) as tmp:
        for name in ("config", "weights"):
            (tmp / name).write_text("new")
        assert (folder / "config").read_text() == "old"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config": "new", "weights": "new", "letter": "old"}


def test_merge_dir_with_an_error_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("old")

    def interrupted_write() -> None:
        with merge_dir(tmp_path, "config") as tmp:
            (tmp / "config").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted_write()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"config": "old"}


@pytest.mark.parametrize("writer", [atomic_write, atomic_dir, lambda path: merge_dir(path, "config")])
def test_second_writer_of_a_path_is_refused_and_changes_nothing(writer: Any, tmp_path: Path) -> None:
    """The lock belongs to an open file, so another one of this process stands for another process."""
    path = tmp_path / "result"
    with writer(path) as tmp:
        content = tmp if tmp.is_file() else tmp / "config"
        content.write_text("first")
        with pytest.raises(UserError, match="result: another process is writing it"), writer(path):
            pass
    assert (path if path.is_file() else path / "config").read_text() == "first"
    with writer(path):
        pass


def test_a_path_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="is a folder; choose the name of a file"), atomic_write(tmp_path / "folder"):
        pass
    (tmp_path / "file").write_text("precious")
    for writer in (atomic_dir, lambda path: merge_dir(path, "config")):
        with pytest.raises(UserError, match="is a file; choose the name of a folder"), writer(tmp_path / "file"):
            pass
    assert (tmp_path / "file").read_text() == "precious"
