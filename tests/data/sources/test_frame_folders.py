"""Videos that are folders of images: which folders are, and what is refused or left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data2vec.data.dataset import Rows
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.errors import UserError


def write(root: Path, *names: str) -> Path:
    """Two frames in each folder, and each file of another name."""
    for name in names:
        paths = [root / name] if Path(name).suffix else [root / name / f"{number}.png" for number in range(2)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npy":
                np.save(path, np.zeros((2, 4, 4, 3), np.uint8))
            else:
                Image.new("RGB", (4, 4)).save(path)
    return root


def found(root: Path, split: str = "train") -> list[tuple[str, str | None]]:
    rows: Rows = open_dataset(str(root), "video", split)
    return [(Path(row["video"]["path"]).relative_to(root).as_posix(), row.get("label")) for row in rows]


def test_each_folder_of_images_is_a_video_with_its_class_and_split(tmp_path: Path) -> None:
    write(tmp_path, "train/run/a", "train/walk/b", "valid/run/c", ".cache/d", "train/run/.thumbs")
    (tmp_path / "train" / "run" / "empty").mkdir()
    assert found(tmp_path) == [("train/run/a", "run"), ("train/walk/b", "walk")]
    assert found(tmp_path, "valid") == [("valid/run/c", "run")]
    assert found(tmp_path / "train" / "run" / "a") == [(".", None)], "a folder by itself"


def test_images_beside_videos_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a.npy", "b.npy", "a.jpg", "posters/c.png")
    assert found(tmp_path) == [("a.npy", None), ("b.npy", None)]
    assert "left out as there are 2 .npy, files of other formats: 2 folders of images (such as ./)" in caplog.text


def test_folders_of_images_are_read_beside_tables_that_list_no_videos(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    (tmp_path / "notes.csv").write_text("day,place\n1,x\n")
    assert found(tmp_path) == [("a", None), ("b", None)]


def test_metadata_lists_folders_with_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "a", "b", "c", "c/thumbs")
    (tmp_path / "metadata.csv").write_text("file_name,label\na,run\nb,walk\n")
    assert found(tmp_path) == [("a", "run"), ("b", "walk")]
    assert "left out as metadata.csv does not list them, 2 of 4 video files: c" in caplog.text


def test_metadata_that_names_no_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    (tmp_path / "metadata.csv").write_text("file_name,label\n,run\n,walk\n")
    with pytest.raises(UserError, match=r"column file_name names no files, it has no text in its first rows"):
        found(tmp_path)


@pytest.mark.parametrize("names", [("run/a", "run/poster.jpg"), ("a", "a/thumbs/small"), ("cover.png", "run/a")])
def test_folder_of_images_inside_of_another_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"has images, and so has \./\S+/ inside of it, .* a folder of its own"):
        found(write(tmp_path, *names))


def test_data_without_videos_names_folders_of_images_among_what_is_searched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no video found; searched for .*\(folders of images\).*; found 1 \.txt"):
        found(tmp_path)
