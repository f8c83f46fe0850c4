"""Data sets of videos that are folders of images: each folder with images in it is a clip."""

from data2vec.data.dataset import Rows
from data2vec.data.sources.formats import ARCHIVES, MEDIA, TABLES, with_ending
from data2vec.data.sources.library import dataset_from_table, saved_datasets, shuffled_stream
from data2vec.data.sources.local import list_files, media_rows
from data2vec.data.sources.splits import SplitChoice, name_splits, no_split, pick_split
from data2vec.data.videos.clips import STILLS
from data2vec.local_path import local_path
from data2vec.untrusted import Boundary


def frame_folders(path: str, choice: SplitChoice, streaming: bool, follow_links: bool) -> Rows | None:
    """A row for each folder of images below `path`, in column `video`, with the folder that it is in as its label; None if that
    is no local folder, or holds other videos, such as animated images, or tables.

    Raises UserError if it has no such split."""
    root = local_path(path.removeprefix("file://"))
    if "://" in path.removeprefix("file://") or not root.is_dir() or saved_datasets(root):
        return None
    files = list_files(root, follow_links)
    images = with_ending(files, STILLS)
    if not images or with_ending(files, (*MEDIA["video"], *TABLES, *ARCHIVES)):
        return None
    names = sorted({name.rpartition("/")[0] for name in images})
    if names == [""]:  # the folder is itself a clip
        root, names = root.parent, [root.resolve().name]
    splits = name_splits([f"{name}/frames" for name in names], lambda name: True, path)
    if (picked := pick_split(splits, names, choice, path)) is None:
        raise no_split(path, choice.split, splits, names)
    chosen, of_chosen = [names[index] for index in picked], [splits[index] for index in picked]
    table = media_rows(root, chosen, of_chosen, "video", Boundary(path, root, follow_links))
    rows = dataset_from_table(table)
    return shuffled_stream(rows) if streaming else rows
