"""Videos that are folders of images: each folder with images in it is one."""

from collections.abc import Sequence

from data2vec.data.sources.formats import STILLS, with_ending
from data2vec.errors import UserError


def frame_folders(files: Sequence[str]) -> list[str]:
    """The folders of the images among `files`, as relative paths that end in a slash (`formats.FRAMES`); "./" for the data set
    itself."""
    return sorted({f"{name.rpartition('/')[0] or '.'}/" for name in with_ending(files, STILLS)})


def refuse_nested(folders: Sequence[str], where: str) -> None:
    """Raise UserError if one of these folders is inside of another, whose images may be frames, or pictures beside videos."""
    known = {f"./{folder.removeprefix('./')}" for folder in folders}
    for folder in sorted(known):
        outer = folder[:-1]
        while outer := outer.rpartition("/")[0]:
            if f"{outer}/" in known:
                raise UserError(
                    f"{where}: folder {outer}/ has images, and so has {folder} inside of it, so it cannot be seen which are "
                    "frames; give each video a folder of its own, or list their folders in column file_name of metadata.csv"
                )
