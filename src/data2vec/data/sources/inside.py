"""A dataset reads only itself: no link, path in a table or name of a saved part leads outside of its folder."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data2vec.errors import UserError, quoted


class Boundary(NamedTuple):
    """The folder that the files of a dataset must be in."""

    where: str
    """The dataset, for messages."""
    folder: Path | None
    """None: of data that is not local, which names no local file."""
    follow_links: bool = False
    """Read files outside, too (`data.follow_links`)."""

    def require(self, paths: Iterable[str], what: str = "links and paths") -> None:
        """Raise UserError if one of the paths leads outside, by itself or by a link. `what` they are, for the message."""
        real: dict[str, str] = {}  # of folders, as most files share one
        if outside := [path for path in paths if self.is_outside(path, real)]:
            raise UserError(
                f"{self.where}: {what} lead outside of its folder, {len(outside)}: such as {quoted(outside[0])}; a dataset "
                "reads only files in its own folder, unless data.follow_links=true (--follow-links)"
            )

    def is_outside(self, path: str, real: dict[str, str] | None = None) -> bool:
        """Whether a path leads outside, by itself or by a link, and these are not followed. `real`: known folders."""
        if self.follow_links or self.folder is None:
            return not self.follow_links
        real = {} if real is None else real
        try:
            for each in (os.path.dirname(path), str(self.folder)):
                real[each] = real.get(each) or os.path.realpath(each)
            folder, root = real[os.path.dirname(path)], real[str(self.folder)]
            target = os.path.realpath(path) if os.path.islink(path) else os.path.join(folder, os.path.basename(path))
        except (OSError, ValueError):  # a name that no file can have; reading it says so
            return False
        return os.path.commonpath([root, os.path.normpath(target)]) != root
