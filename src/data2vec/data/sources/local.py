"""Local folders: their files, and media files as rows with labels or metadata."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data2vec.console.progress import progress
from data2vec.data.dataset import UNREADABLE
from data2vec.data.sources.formats import TRANSCRIPTS, SignalKind, is_hidden, is_utf8, utf8
from data2vec.data.sources.splits import SplitName, without_split_folder
from data2vec.data.sources.tables import ArrowTable
from data2vec.errors import UserError, printable
from data2vec.untrusted import Boundary, read_regular

CLIPS = "clips"
"""A folder beside a table that its paths are relative to if they are not relative to the table: Common Voice's."""
TRIED_PATHS = 100
"""How many paths of a table are tried."""
MAX_TRANSCRIPTS_BYTES = 2**28
"""Of a list of transcripts."""


def list_files(folder: Path, follow_links: bool = False) -> list[str]:
    """All files below `folder` as sorted relative paths, without hidden ones.

    Raises UserError for links that lead outside of it, unless `follow_links`."""
    boundary = Boundary(str(folder), folder, follow_links)
    paths: list[str] = []
    outside: list[str] = []
    visited: set[str] = set()
    with progress(desc=f"listing {printable(folder.name)}", unit="file", delay=3) as bar:
        for root, folders, files in os.walk(folder, followlinks=True):
            real = os.path.realpath(root)
            folders[:] = [] if real in visited else [name for name in folders if not is_hidden(name)]
            names = [] if real in visited else [name for name in files if not is_hidden(name)]
            links = [name for name in folders if os.path.islink(os.path.join(root, name))]
            for name in names:
                links += [name] * os.path.islink(os.path.join(root, name))
                bar.update()
            found = [name for name in links if boundary.is_outside(os.path.join(root, name))]
            outside += [os.path.join(root, name) for name in found]
            folders[:] = [name for name in folders if name not in found]
            inside = Path(root).relative_to(folder).as_posix()
            paths += names if inside == "." else [f"{inside}/{name}" for name in names]
            visited.add(real)
    boundary.require(outside, "links")
    return sorted(paths)


def base_folder(folder: Path, paths: Sequence[str]) -> Path:
    """What the paths in a table are relative to: its folder; or a folder clips in it, if one of the paths is only there."""
    clips = folder / CLIPS
    return clips if not _any_exists(folder, paths) and _any_exists(clips, paths) else folder


def _any_exists(folder: Path, paths: Sequence[str]) -> bool:
    return any(os.path.exists(folder / path) for path in paths)  # False for names that no file can have


def media_rows(
    folder: Path, files: Sequence[str], splits: Sequence[SplitName | None], kind: SignalKind, boundary: Boundary
) -> ArrowTable:
    """A table of files, given as relative paths: with the folders they are in as labels, where these are one deep below the
    folder or a split; audio files with the transcripts in LibriSpeech's lists beside them."""
    table = signal_table([str(folder / file) for file in files], kind)
    inside = [without_split_folder(file, split).removesuffix("/").split("/") for file, split in zip(files, splits, strict=True)]
    depths = {len(parts) for parts in inside}
    if depths in ({2}, {1, 2}):
        table = table.append_column("label", _text([parts[0] if len(parts) == 2 else None for parts in inside]))
    if kind == "audio" and (transcripts := _read_transcripts({folder / Path(file).parent for file in files}, boundary)):
        found = [
            transcripts.get(str(Path(file).with_suffix(""))) for file in table[kind].combine_chunks().field("path").to_pylist()
        ]
        table = table.append_column("transcript", _text(found))
    return table


def signal_table(paths: Sequence[str], kind: SignalKind, unreadable: Mapping[int, str] | None = None) -> ArrowTable:
    """A table with the column `kind`: the signal of each file. `unreadable`: why one cannot be read, by its index."""
    import pyarrow as pa

    reasons: list[str | None] = [None if is_utf8(path) else "its name is not UTF-8; rename it" for path in paths]
    for index, reason in (unreadable or {}).items():
        reasons[index] = reason
    signal = {
        "bytes": pa.nulls(len(paths), pa.binary()),
        "path": pa.array(map(utf8, paths), pa.string()),
        UNREADABLE: pa.array(reasons, pa.string()),
    }
    return pa.table({kind: pa.StructArray.from_arrays([*signal.values()], [*signal])})


def _text(values: Sequence[str | None]) -> Any:
    import pyarrow as pa

    return pa.array([value if value is None else utf8(value) for value in values], pa.string())


def _read_transcripts(folders: Iterable[Path], boundary: Boundary) -> dict[str, str]:
    """The transcripts in the lists (`.trans.txt`) of folders, by the path of the audio without its ending."""
    found: dict[str, str] = {}
    for folder in sorted(folders):
        for path in sorted(folder.glob(f"*{TRANSCRIPTS}")):
            boundary.require([str(path)], "links")
            try:
                lines = read_regular(path, MAX_TRANSCRIPTS_BYTES).decode("utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise UserError(f"{path} is not UTF-8: save it as UTF-8") from None
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read: {error}") from None
            found |= {str(folder / name): text for name, _, text in (line.partition(" ") for line in lines)}
    return found
