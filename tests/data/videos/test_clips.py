"""Clips: frames of folders, arrays and animated images, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data2vec.data.videos.clips import open_clip
from data2vec.errors import CorruptExample

FRAMES = np.random.default_rng(0).integers(0, 256, (12, 6, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The frames as images, 0.png to 11.png."""
    (tmp_path / "clip").mkdir()
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{number}.png")
    return tmp_path / "clip"


def read(path: Path | str, indices: list[int]) -> np.ndarray:
    return open_clip({"path": str(path), "bytes": None}).read(indices)


def test_frames_of_a_folder_are_in_the_order_of_their_numbers(folder: Path) -> None:
    assert open_clip({"path": str(folder)}).count == 12
    assert np.array_equal(read(folder, [1, 2, 10]), FRAMES[[1, 2, 10]]), "10.png comes after 2.png"


def test_array_is_read_from_a_file_from_bytes_or_from_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", FRAMES)
    content = (tmp_path / "clip.npy").read_bytes()
    assert np.array_equal(read(tmp_path / "clip.npy", [3, 5]), FRAMES[[3, 5]])
    assert np.array_equal(open_clip({"path": "in/a.npy", "bytes": content}).read([3]), FRAMES[[3]])
    assert np.array_equal(open_clip({"array": FRAMES.transpose(0, 3, 1, 2)}).read([3]), FRAMES[[3]])
    assert np.array_equal(open_clip({"array": FRAMES[..., 0]}).read([3]), FRAMES[[3], :, :, :1]), "gray"


def test_animated_image_has_its_frames(tmp_path: Path) -> None:
    flat = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(5)]
    flat[0].save(tmp_path / "clip.webp", save_all=True, append_images=flat[1:], lossless=True)
    assert open_clip({"path": str(tmp_path / "clip.webp")}).count == 5
    assert read(tmp_path / "clip.webp", [1, 3])[:, 0, 0, 0].tolist() == [40, 120]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((4, 3, 6, 3)), "channels may be first or last"),
        (np.zeros((4, 6, 8, 2)), "channels are neither 1 nor 3"),
        (np.zeros((4, 6, 8, 4)), "channels are neither 1 nor 3"),
        (np.zeros((4, 6, 3)), "one image by its last axis"),
        (np.zeros((4, 6)), "give numbers"),
        (np.zeros((0, 6, 8)), "it has no frames"),
        (np.array([[["a"]]]), "give numbers"),
    ],
)
def test_array_that_is_no_clip_is_refused(array: np.ndarray, reason: str) -> None:
    with pytest.raises(CorruptExample, match=reason):
        open_clip({"array": array})


def test_frames_of_different_sizes_are_refused(folder: Path) -> None:
    Image.new("RGB", (9, 9)).save(folder / "3.png")
    with pytest.raises(CorruptExample, match="frames differ in size: 8 x 6 and 9 x 9"):
        read(folder, [2, 3])


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(CorruptExample, match="pickled Python objects"):
        open_clip({"path": str(tmp_path / "clip.npy")})


def test_nifti_volume_has_its_slices(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    volume = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scan.nii.gz")
    assert open_clip({"path": str(tmp_path / "scan.nii.gz")}).count == 5
    assert np.array_equal(read(tmp_path / "scan.nii.gz", [1, 3])[..., 0], volume[:, :, [1, 3]].transpose(2, 0, 1))


def test_video_file_has_its_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 200, 20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    assert open_clip({"path": str(tmp_path / "clip.mp4")}).count == 10
    assert np.allclose(read(tmp_path / "clip.mp4", [2, 7]).mean((1, 2, 3)), [40, 140], atol=4)
