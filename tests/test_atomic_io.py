"""Files and folders are complete or absent."""

from pathlib import Path

import pytest

from data2vec.atomic_io import atomic_dir, atomic_write


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
