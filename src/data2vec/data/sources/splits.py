"""Splits of a dataset: which of its files or rows are for training, validation or testing, by their names.

A folder, a table or an archive belongs to a split if a word of its name is one of `SPLITS`: train-clean-100, cola_dev.tsv. A
file that holds one example does if its name is nothing but such a word and numbers, as in train.txt or test_01.png, or if a
file beside it differs in that word only, as in wiki.train.txt and wiki.test.txt. Of several such names in a path the first
counts."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from data2vec.data.dataset import Rows
from data2vec.errors import UserError, get_logger

log = get_logger(__name__)

TRAIN, VALID, TEST, ALL = "train", "valid", "test", "all"
SPLITS = (
    dict.fromkeys(("train", "training", "trainset"), TRAIN)
    | dict.fromkeys(("valid", "validation", "val", "dev", "validset", "valset", "devset"), VALID)
    | dict.fromkeys(("test", "testing", "testset", "eval", "evaluation"), TEST)
)
"""Words that stand for a split."""
SHOWN = 5
"""How many names a message lists."""

_HAS_WORD = re.compile("train|val|dev|test|eval", re.IGNORECASE)
"""What every name that stands for a split contains; most names do not, which is quick to see."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_WORD_AND_NUMBERS = re.compile(r"[\W\d_]*([A-Za-z]+)[\W\d_]*(of[\W\d_]*)?")
_SHARD_NUMBER = re.compile(r"[-_.]\d+(-of-\d+)?$")
_NUMBER = re.compile(r"\d+")
_ENDING = re.compile(r"(\.tar)?\.[^.]*$")


class SplitName(NamedTuple):
    """A name that stands for a split."""

    name: str
    """As written, without the number of a shard: train-clean-100, dev, train."""
    split: str
    """train, valid or test; "train+valid" for a name with both words, which is only read if asked for by this name."""


class NoSplit(UserError):
    """The data does not have the split that was asked for."""


class SplitChoice(NamedTuple):
    """The split to read."""

    split: str = ALL
    """A name in the data, a word that stands for it, or "all"."""
    whole: str = TRAIN
    """The split that data without splits counts as."""

    def includes(self, found: SplitName | None) -> bool:
        """Whether something of this split is read, where nothing is known of the rest of the data."""
        asked = self.split.lower()
        if asked == ALL or found is None:
            return asked in (ALL, self.whole)
        return found.name.lower() == asked or found.split == SPLITS.get(asked, asked)


@dataclass(frozen=True)
class Source:
    """What a dataset consists of, and how to read a part of it."""

    where: str
    """The path, URL or name, for messages."""
    names: Sequence[str]
    """The relative paths of its files, or of the files its rows are about; or the names of its splits."""
    splits: Sequence[SplitName | None]
    """The split of each of these."""
    read: Callable[[list[int], SplitChoice], Rows]
    """Reads those at some indices; of archives the members of a split. Raises UserError."""

    def as_named(self) -> "Source":
        """The same for files that the user has named: their name selects no split, unless there are several."""
        return self if len(set(self.splits)) > 1 else replace(self, splits=[None] * len(self.splits))


def split_of_name(name: str) -> SplitName | None:
    """The split that a folder, or a table without its ending, is named by."""
    if not _HAS_WORD.search(name):
        return None
    found = dict.fromkeys(SPLITS[word.lower()] for word in _words(name) if word.lower() in SPLITS)
    return SplitName(name, "+".join(sorted(found))) if found else None


def split_of_folders(folder: str) -> SplitName | None:
    """The split that the first such folder of a relative path is named by."""
    if not _HAS_WORD.search(folder):
        return None
    return next((found for part in folder.split("/") if (found := split_of_name(part))), None)


def split_of_value(value: object) -> SplitName | None:
    """The split that a cell of a column `split` names, which must be one of the words alone."""
    name = str(value).strip()
    return SplitName(name, SPLITS[name.lower()]) if name.lower() in SPLITS else None


def name_splits(paths: Sequence[str], is_example: Callable[[str], bool], where: str) -> list[SplitName | None]:
    """The split of each file, given as relative paths with forward slashes; None where no name stands for one.

    `is_example`: whether a file holds one example, not many. A folder train without folders in it, among others of which none
    is named by a split, may as well be a class: it is none, with a warning."""
    split = [path.rpartition("/")[::2] for path in paths]
    variants: dict[tuple[str, str], set[str]] = {}
    for folder, file in split:
        if _HAS_WORD.search(file):
            pattern, words = _pattern(file)
            variants.setdefault((folder, pattern), set()).update(words)
    found: list[SplitName | None] = []
    for path, (folder, file) in zip(paths, split, strict=True):
        name = split_of_folders(folder)
        if name is None and _HAS_WORD.search(file):
            by_word = not is_example(path) or len(variants[folder, _pattern(file)[0]]) > 1
            name = _split_of_file(file, by_word)
        found.append(name)
    names = {name for name in found if name is not None}
    if len(names) == 1 and _is_class(only := names.pop(), [folder for folder, _ in split]):
        log.warning(
            "%s: folder %s is taken for a class, as no folder beside it is named by a split; it can be read by itself",
            *(where, only.name),
        )
        return [None] * len(paths)
    return found


def without_split_folder(path: str, split: SplitName | None) -> str:
    """A relative path without the folder that stands for its split: train/cat/1.png is cat/1.png."""
    parts = path.split("/")
    if split is not None and split.name in parts[:-1]:
        parts.remove(split.name)
    return "/".join(parts)


def pick_split(splits: Sequence[SplitName | None], names: Sequence[str], choice: SplitChoice, where: str) -> list[int] | None:
    """The indices of the files or rows of a split: those named exactly so, otherwise all whose name stands for it.

    `splits`: of each file or row; `names`: their relative paths. Returns None if the data has no splits, and another one is
    asked for than it counts as. Warns what was taken for the split if names only contain it, and what is left out because it
    belongs to no split. Raises UserError if the data only has other splits."""
    split, whole = choice
    groups: dict[SplitName, list[int]] = {}
    rest: list[int] = []
    for index, name in enumerate(splits):
        (rest if name is None else groups.setdefault(name, [])).append(index)
    asked = split.lower()
    if asked == ALL or (not groups and split == whole):
        return list(range(len(splits)))
    if not groups:
        return None
    exact = [name for name in groups if name.name == split] or [name for name in groups if name.name.lower() == asked]
    if not exact and (indices := [index for index in rest if _is_named(names[index], asked)]):
        return indices  # a folder or file that stands for none of the three
    wanted = SPLITS.get(asked, split)
    of_split = [name for name in groups if name.split == wanted]
    chosen = exact or [name for name in of_split if name.name.lower() in SPLITS] or of_split
    if not chosen:
        raise no_split(where, split, splits, names)
    if not exact and any(name.name.lower() not in SPLITS for name in chosen):
        log.warning("%s: split %s is %s", where, split, listed(name.name for name in chosen))
    left_out = [index for name in of_split if name not in chosen for index in groups[name]] + rest
    if left_out and asked in SPLITS:  # otherwise only a part of a split was asked for
        log.warning(
            "%s: left out as they are not named by a split, or not just %s, %d of %d files or rows: %s; %s reads all",
            *(where, split, len(left_out), len(splits), listed(_tops(names[index] for index in left_out)), f"data.split={ALL}"),
        )
    return sorted(index for name in chosen for index in groups[name])


def no_split(where: str, split: str, splits: Sequence[SplitName | None], names: Sequence[str]) -> NoSplit:
    """The error for a split that the data does not have: it lists what there is."""
    counts = count_splits(splits)
    rest = listed(_tops(name for name, found in zip(names, splits, strict=True) if found is None))
    if not counts:
        return NoSplit(
            f"{where} has no split {split!r}, and no other: no name in it stands for one ({rest}); leave data.split out"
        )
    found = ", ".join(f"{name} ({count:,})" for name, count in counts.items())
    outside = f"; {rest} belong to none" if None in splits else ""
    return NoSplit(
        f"{where} has no split {split!r}, only {found}{outside}: set data.split (of data.valid: "
        f"data.valid_split) to one of them, or to {ALL}, or give its folder or file as the data"
    )


def count_splits(splits: Iterable[SplitName | None]) -> dict[str, int]:
    """The number of files or rows by the name of their split, without those of none."""
    return dict(sorted(Counter(found.name for found in splits if found is not None).items()))


def listed(names: Iterable[str]) -> str:
    """The first of some names, and the number of the others."""
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:SHOWN]) + (f" and {len(distinct) - SHOWN:,} more" if len(distinct) > SHOWN else "")


@lru_cache(maxsize=2**16)
def _words(name: str) -> list[str]:
    return _WORD.findall(name)


def _split_of_file(file: str, by_word: bool) -> SplitName | None:
    """`by_word`: one word of its name is enough."""
    stem = _ENDING.sub("", file)
    match = _WORD_AND_NUMBERS.fullmatch(stem)
    if match and (word := match[1]).lower() in SPLITS:
        return SplitName(word, SPLITS[word.lower()])
    return split_of_name(_SHARD_NUMBER.sub("", stem)) if by_word else None


def _pattern(file: str) -> tuple[str, set[str]]:
    """A file's name with placeholders for numbers and for words that stand for splits, and these splits."""
    words = {word: SPLITS[word.lower()] for word in _words(file) if word.lower() in SPLITS}
    for word in words:
        file = file.replace(word, "\0")
    return _NUMBER.sub("#", file), set(words.values())


def _is_class(name: SplitName, folders: Sequence[str]) -> bool:
    """Whether a name is that of a folder train that has other folders beside it, and none in it."""
    paths = [folder.split("/") for folder in folders if folder]
    depth = next((path.index(name.name) for path in paths if name.name in path), None)
    if name.split != TRAIN or depth is None:
        return False
    deep = [path for path in paths if len(path) > depth]
    has_folders = any(path[depth] == name.name and len(path) > depth + 1 for path in deep)
    return not has_folders and len({path[depth] for path in deep}) > 1


def _is_named(path: str, name: str) -> bool:
    """Whether a folder of a path, or its file, has this name."""
    *folders, file = path.lower().split("/")
    return name in (*folders, _SHARD_NUMBER.sub("", _ENDING.sub("", file)))


def _tops(paths: Iterable[str]) -> list[str]:
    """The outermost folders, or files, of paths."""
    return [f"{path.split('/')[0]}/" if "/" in path else path for path in paths]
