"""File name endings of everything that can be read."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from data2vec.errors import printable

SignalKind = Literal["audio", "image", "text", "recording", "video"]
_SURROGATE = re.compile("[\ud800-\udfff]")

MEDIA: dict[SignalKind, tuple[str, ...]] = {
    "audio": (
        *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph"),
        *(".w64", ".rf64"),
    ),
    "image": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga", ".ico", ".pcx"),
    ),
    "video": (
        *(".npy", ".gif", ".webp", ".apng", ".nii", ".nii.gz"),
        *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"),
    ),
    "text": (".txt",),
    "recording": (
        *(".npy", ".npz", ".csv", ".tsv", ".parquet", ".edf", ".bdf", ".rec", ".hea", ".h5", ".hdf5"),
        *(".fif", ".vhdr", ".set"),
    ),
}
"""Files that hold one example; of recordings some hold several."""
ANIMATED = (".gif", ".webp", ".apng")
"""Images that are a video by themselves."""
STILLS = tuple(ending for ending in MEDIA["image"] if ending not in ANIMATED)
"""Images that are a frame of the video that their folder is."""
FRAMES = ("/",)
"""Of the relative path of a folder of frames, as `frame_folders` names it."""
TRANSCRIPTS = ".trans.txt"
"""The ending of LibriSpeech's lists of transcripts, which are no documents."""
PARQUET = (".parquet",)
JSON_LINES = (".jsonl",)
TEXT_TABLES = (".tsv", ".csv")
MANIFESTS = (".json",)
"""Tables that list files: JSON lines under another name, as NeMo writes them."""
TABLES = (*TEXT_TABLES, *JSON_LINES, *PARQUET)
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
SHARDS = (*PARQUET, *JSON_LINES, *ARCHIVES)
"""Files that hold many examples and can be streamed."""
_EXAMPLES = tuple({ending for endings in MEDIA.values() for ending in endings} - {*TABLES})


def formats_for(kind: SignalKind) -> tuple[tuple[str, ...], ...]:
    """The formats a dataset of this kind can have, as endings; a folder is read in the first of them that it contains."""
    if kind == "text":
        return PARQUET, JSON_LINES, TEXT_TABLES, MEDIA["text"], ARCHIVES
    if kind == "recording":
        return (MEDIA[kind],)
    return MEDIA[kind], *([FRAMES] if kind == "video" else []), PARQUET, ARCHIVES


def is_example(name: str) -> bool:
    """Whether a file holds one example, not many."""
    return name.lower().endswith((*_EXAMPLES, *FRAMES))


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder of its relative path, is hidden, or was added to an archive by macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/") if part not in (".", ".."))


def with_ending(names: Sequence[str], endings: tuple[str, ...]) -> list[str]:
    """Those of `names` that have one of the endings, in any case, without lists of transcripts."""
    return [name for name in names if name.lower().endswith(endings) and not name.lower().endswith(TRANSCRIPTS)]


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded: a name of a file that is not UTF-8, and half of a surrogate pair in JSON, cannot."""
    return text.isascii() or not _SURROGATE.search(text)


def utf8(text: str) -> str:
    """A text as a table can hold it: what cannot be encoded is escaped."""
    return text if is_utf8(text) else printable(text)


def count_endings(names: Sequence[str]) -> str:
    """A summary of file names, such as "12 .txt, 3 .pdf"; "nothing" when there are none."""
    files = [name for name in names if not name.endswith(FRAMES)]
    counts = Counter(os.path.splitext(name)[1].lower() or "without extension" for name in files)
    found = [f"{n} {ending}" for ending, n in counts.most_common(5)]
    if folders := len(names) - len(files):
        found.append("1 folder of images" if folders == 1 else f"{folders} folders of images")
    return ", ".join(found) or "nothing"
