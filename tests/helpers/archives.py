"""Tar archives for tests."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_tar(path: Path, members: Mapping[str, str] | Sequence[tuple[str, str]], mode: str = "w") -> Path:
    """An archive of members with this content, in this order; a name may be repeated."""
    with tarfile.open(path, mode) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    return path
