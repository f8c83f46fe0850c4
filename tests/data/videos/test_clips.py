"""Clips: frames of folders, arrays and animated images, and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data2vec.data.videos.clips import open_clip
from data2vec.errors import CorruptExample, MissingPackage
from data2vec.modalities.video import Video, VideoData, VideoSettings

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
    with pytest.raises(CorruptExample, match="frames differ: 8 x 6 of uint8 and 9 x 9 of uint8"):
        read(folder, [2, 3])


def test_images_of_a_folder_must_differ_in_their_number_alone(folder: Path) -> None:
    (folder / "11.png").rename(folder / "20.png")
    Image.new("RGB", (8, 6)).save(folder / ".2.png")
    (folder / "notes.txt").touch()
    assert np.array_equal(read(folder, [10, 11]), FRAMES[[10, 11]]), "numbers may be left out"
    (folder / "4.png").rename(folder / "04.PNG")
    assert np.array_equal(read(folder, [4, 5]), FRAMES[[4, 5]])
    Image.new("RGB", (8, 6)).save(folder / "4.jpg")
    with pytest.raises(CorruptExample, match=r"4\.(jpg|PNG) and 0?4\.(PNG|jpg) have the same number"):
        open_clip({"path": str(folder)})
    (folder / "4.jpg").rename(folder / "right_4.jpg")
    with pytest.raises(CorruptExample, match=r"right_4\.jpg and 0\.png differ in more than their number"):
        open_clip({"path": str(folder)})


def test_frames_of_16_bits_are_numbers_of_one_scale(tmp_path: Path) -> None:
    slices = np.random.default_rng(0).integers(0, 4096, (2, 6, 8)).astype(np.uint16)
    for number, each in enumerate(slices):
        Image.fromarray(each).save(tmp_path / f"{number}.png")
    assert np.array_equal(read(tmp_path, [0, 1])[..., 0], slices)


def test_gray_frames_and_frames_with_opacity_are_converted(folder: Path) -> None:
    Image.fromarray(FRAMES[1, :, :, 0]).save(folder / "1.png")
    opacity = np.full((6, 8, 1), 100, np.uint8)
    Image.fromarray(np.concatenate([FRAMES[2], opacity], 2)).save(folder / "2.png")
    gray, colour = read(folder, [1, 2])
    assert np.array_equal(gray, np.repeat(FRAMES[1, :, :, :1], 3, 2))
    assert np.array_equal(colour, FRAMES[2])


def test_frame_that_is_damaged_or_holds_several_images_is_named(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"text")
    with pytest.raises(CorruptExample, match=r"3\.png: not an image"):
        read(folder, [2, 3])
    first, *rest = (Image.fromarray(frame) for frame in FRAMES)
    first.save(folder / "3.tif", save_all=True, append_images=rest)
    (folder / "3.png").unlink()
    with pytest.raises(CorruptExample, match=r"3\.tif: 12 images in one file"):
        read(folder, [2, 3])


@pytest.mark.parametrize(("name", "extra"), [("clip.mp4", "video"), ("scan.nii.gz", "nifti")])
def test_decoder_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    for package in ("av", "nibabel"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).touch()
    examples = Video(VideoSettings(), VideoData()).examples([{"video": {"path": str(tmp_path / name)}}])
    with pytest.raises(MissingPackage, match=rf"pip install 'data2vec\[{extra}\]'"):
        examples.load(0, None, None)


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
    for times in (1, 2):
        nibabel.save(nibabel.Nifti1Image(np.stack([volume] * times, 3), np.eye(4)), tmp_path / f"{times}.nii")
    assert np.array_equal(read(tmp_path / "1.nii", [1, 3]), read(tmp_path / "scan.nii.gz", [1, 3])), "a last axis of 1"
    with pytest.raises(CorruptExample, match=r"shape \(6, 8, 5, 2\), but one of three axes is needed"):
        open_clip({"path": str(tmp_path / "2.nii")})


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
