"""Videos and volumes: some of the frames of a folder of images, a numpy or NIfTI array, an animated image or a video file."""

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.data.corrupt import decoding
from data2vec.data.dataset import Signal, array_of
from data2vec.data.image import decode_image, image_content, open_image, require_safe_size
from data2vec.data.recordings.arrays import load_npy
from data2vec.data.sources.formats import ANIMATED, MEDIA, STILLS, is_hidden
from data2vec.errors import CorruptExample, MissingPackage

NIFTI = (".nii", ".nii.gz")
FILMED = tuple(ending for ending in MEDIA["video"] if ending not in (".npy", *ANIMATED, *NIFTI))
CHANNELS = (1, 3)
"""Of a frame. Nobody can see whether a fourth one is opacity or a measurement."""
DEEP = ("I", "F")
"""What Pillow's names of images with 16 or 32 bits begin with."""
MAX_FRAMES = 2**20
MAX_PIXELS = 2**30
"""Of all frames that are decoded of a clip."""


@dataclass(frozen=True)
class Clip:
    """A video whose frames are decoded when they are asked for."""

    count: int
    """Frames, or slices of a volume."""
    read: Callable[[Sequence[int]], np.ndarray]
    """The frames (F, H, W, C) at these increasing indices: bytes, or what numbers the file has; C is 1 or 3."""


def open_clip(signal: Signal) -> Clip:
    """The clip of a signal: {"path"} of a file or of a folder of frames, or {"array"} (F, H, W), (F, H, W, C) or (F, C, H, W).

    Raises CorruptExample, without the name of the file, and MissingPackage if a decoder is not installed."""
    if signal.get("array") is not None:
        return _array_clip(array_of(signal["array"]))
    path, content = str(signal.get("path") or ""), signal.get("bytes")
    name = path.lower()
    if content is None and Path(path).is_dir():
        return _folder_clip(Path(path))
    if name.endswith(".npy"):
        return _array_clip(load_npy(path, content))
    if name.endswith(ANIMATED):
        return _animated_clip(image_content(signal))
    if name.endswith(NIFTI):
        return _nifti_clip(path, content)
    if name.endswith(FILMED):
        return _filmed_clip(path, content)
    raise CorruptExample(f"no video: a folder of images, or a file that ends in one of {' '.join(MEDIA['video'])}")


def _folder_clip(folder: Path) -> Clip:
    """Frames in the order of their names, which differ in numbers only; numbers count by value.

    Frames are bytes (H, W, 3); or numbers (H, W, 1) if they have 16 bits or are floats, so that they have one scale."""
    with decoding({"path": str(folder), "array": 0}, folder.name):
        entries = os.listdir(folder)
    names = [entry for entry in entries if entry.lower().endswith(STILLS) and not is_hidden(entry)]
    keys = {name: _natural(os.path.splitext(name)[0].lower()) for name in names}
    names.sort(key=keys.__getitem__)
    for before, name in pairwise(names):
        if keys[before] == keys[name]:
            raise CorruptExample(f"its frames {before} and {name} have the same number; keep one of them")
        if _without_numbers(keys[before]) != _without_numbers(keys[name]):
            raise CorruptExample(
                f"its images {before} and {name} differ in more than their number, so their order in time is not known; name "
                "frames by numbers, those of each video in a folder of its own"
            )

    def read(indices: Sequence[int]) -> np.ndarray:
        frames = [_read_frame(folder / names[i]) for i in indices]
        kinds = {f"{frame.shape[1]} x {frame.shape[0]} of {frame.dtype}": None for frame in frames}
        if len(kinds) > 1:
            raise CorruptExample(f"its frames differ: {' and '.join([*kinds][:2])}")
        return np.stack(frames)

    return _checked(Clip(len(names), read))


def _read_frame(path: Path) -> np.ndarray:
    signal: Signal = {"bytes": None, "path": str(path)}
    with decoding(signal, path.name):
        signal["bytes"] = content = image_content(signal)
        opened = _open_image(content)
        if (images := getattr(opened, "n_frames", 1)) > 1:
            raise CorruptExample(f"{images} images in one file, where each file must be a frame; save them as .npy")
        if opened.mode.startswith(DEEP):
            require_safe_size(opened, content)
            return np.array(opened)[..., None]
    return decode_image(signal).permute(1, 2, 0).numpy()


def _open_image(content: bytes) -> Any:
    from PIL import UnidentifiedImageError

    try:
        return open_image(content)
    except UnidentifiedImageError:
        raise CorruptExample("not an image that can be decoded") from None


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame10 after frame9."""
    parts, digits = [], ""
    for letter in f"{name}\0":
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        parts += [(int(digits), "")] if digits else []
        parts.append((-1, letter))
        digits = ""
    return parts


def _without_numbers(key: Sequence[tuple[int, str]]) -> list[str]:
    return [letter for _, letter in key]


def _array_clip(array: np.ndarray) -> Clip:
    """Of an array whose first axis is time, or the slices of a volume."""
    if array.dtype.kind not in "iufb" or array.ndim not in (3, 4):
        raise CorruptExample(f"an array of {array.dtype} and shape {array.shape}; give numbers (F, H, W) or (F, H, W, C)")
    if array.ndim == 3:
        if array.shape[2] in CHANNELS:
            raise CorruptExample(f"an array of shape {array.shape}, which is one image by its last axis; give (F, H, W, C)")
        return _checked(Clip(len(array), lambda indices: np.asarray(array[list(indices)])[..., None]))
    last, second = array.shape[3] in CHANNELS, array.shape[1] in CHANNELS
    if last == second:
        which = "may be first or last" if last else "are neither 1 nor 3"
        raise CorruptExample(f"an array of shape {array.shape}, whose channels {which}; give (F, H, W, C)")

    def read(indices: Sequence[int]) -> np.ndarray:
        frames = np.asarray(array[list(indices)])
        return frames if last else frames.transpose(0, 2, 3, 1)

    return _checked(Clip(len(array), read))


def _animated_clip(content: bytes) -> Clip:
    opened = _open_image(content)
    count, area = int(getattr(opened, "n_frames", 1)), opened.width * opened.height

    def read(indices: Sequence[int]) -> np.ndarray:
        if area * (indices[-1] + 1) > MAX_PIXELS:
            raise CorruptExample(f"{indices[-1] + 1} frames of {opened.width} x {opened.height} pixels, refused as too large")
        frames = []
        for index in indices:
            opened.seek(index)
            frames.append(np.array(opened.convert("RGB")))
        return np.stack(frames)

    return _checked(Clip(count, read))


def _nifti_clip(path: str, content: bytes | None) -> Clip:
    """A volume in NIfTI, whose last axis counts slices."""
    try:
        import nibabel
    except ImportError:
        raise MissingPackage("NIfTI volumes need nibabel: pip install 'data2vec[nifti]'") from None
    if content is not None:
        raise CorruptExample("a NIfTI volume must be a file, not the content of one in a table or an archive")
    volume: Any = nibabel.load(path)
    shape = tuple(volume.shape)
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise CorruptExample(
            f"a volume of shape {shape}, but one of three axes is needed; save each of them in a file of its own"
        )
    if np.prod(shape) > MAX_PIXELS:
        raise CorruptExample(f"a volume of shape {shape}, refused as too large")

    def read(indices: Sequence[int]) -> np.ndarray:
        slices = np.asarray(volume.dataobj[:, :, indices[0] : indices[-1] + 1], dtype=np.float32)
        return slices.reshape(*shape[:2], -1)[:, :, [i - indices[0] for i in indices]].transpose(2, 0, 1)[..., None]

    return _checked(Clip(shape[2], read))


def _filmed_clip(path: str, content: bytes | None) -> Clip:
    try:
        import av
    except ImportError:
        raise MissingPackage(
            "video files need PyAV: pip install 'data2vec[video]'; or save the frames as images in a folder each, or as .npy"
        ) from None

    def open_file() -> Any:
        return av.open(path if content is None else io.BytesIO(content))

    with open_file() as film:
        count = int(film.streams.video[0].frames) if film.streams.video else 0
        if count == 0 and film.streams.video:  # not in the header: they are counted
            count = sum(1 for _, _ in zip(film.decode(video=0), range(MAX_FRAMES), strict=False))

    def read(indices: Sequence[int]) -> np.ndarray:
        wanted, frames = set(indices), []
        with open_file() as film:
            for index, frame in enumerate(film.decode(video=0)):
                if index in wanted:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if index >= indices[-1]:
                    break
        if len(frames) < len(wanted):
            raise CorruptExample(f"{len(frames)} of {len(wanted)} frames can be decoded")
        return np.stack(frames)

    return _checked(Clip(count, read))


def _checked(clip: Clip) -> Clip:
    if not 0 < clip.count <= MAX_FRAMES:
        raise CorruptExample("it has no frames" if clip.count == 0 else f"{clip.count} frames, refused as too many")
    return clip
