"""Of any mix of folders, stray files, archives and tables, the splits are disjoint and complete, or it is an error."""

import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data2vec.data.sources import archives
from data2vec.data.sources.open_dataset import list_splits, open_dataset
from data2vec.data.sources.shards import Request
from data2vec.errors import UserError
from helpers.archives import write_tar
from helpers.fuzzing import examples

ROLES = {
    **dict.fromkeys(("train", "training", "train-clean-100", "train2017", "trainA"), "train"),
    **dict.fromkeys(("valid", "dev-other", "val2017", "Validation"), "valid"),
    **dict.fromkeys(("test", "test-clean", "TEST", "eval"), "test"),
    **dict.fromkeys(("", "docs", "extra", "cat", "2017", "validated"), None),
}
"""Names of folders and files, and the split that a person takes them for."""
HIDDEN = ("__MACOSX", ".cache")
NAMES = st.sampled_from(sorted(ROLES))
CLASSES = st.sampled_from(["", "cat", "dog"])


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, tuple[str | None, str]]:
    """Examples, each with its role and the file it is in; "" for a file of its own."""
    found: dict[str, tuple[str | None, str]] = {}
    for number in range(draw(st.integers(1, 7))):
        name, label, above = draw(NAMES), draw(CLASSES), draw(st.booleans())
        form = draw(st.sampled_from(["file", "file", "file", "named", "hidden", "table", "archive", "in archive"]))
        folders = [part for part in ((label, name) if above else (name, label)) if part]
        if form == "named" and ROLES[name] is not None and name.isalpha():
            found[f"{name}_{number}.wav"] = ROLES[name], ""
        elif form == "hidden":
            found["/".join([HIDDEN[number % 2], *folders, f"{number}.wav"])] = "hidden", ""
        elif form == "table":
            found[f"clips/{number}.wav"] = ROLES[name], f"{name or 'list'}.csv"
        elif form == "archive":
            found[f"{number}.wav"] = ROLES[name], f"{name or 'shard'}.tar"
        elif form == "in archive":
            found["/".join([*folders, f"{number}.wav"])] = ROLES[name], "shard.tar"
        else:
            found["/".join([*folders, f"{number}.wav"])] = ROLES[name], ""
    return found


def write(root: Path, layout: dict[str, tuple[str | None, str]]) -> None:
    tables: dict[str, list[str]] = {}
    for name, (_, container) in layout.items():
        if container.endswith(".tar"):
            tables.setdefault(container, []).append(name)
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
        if container:
            tables.setdefault(container, []).append(name)
    for container, names in tables.items():
        if container.endswith(".tar"):
            write_tar(root / container, {name: name for name in names})
        else:
            (root / container).write_text("\n".join(["file", *names]) + "\n")


def read(root: Path, split: str) -> list[str]:
    archives._REPORTED.clear()  # which makes a process warn once of each archive
    found = []
    for row in open_dataset(str(root), "audio", split, streaming=True):
        audio = row["audio"]
        found.append(Path(audio["path"]).read_text() if audio["bytes"] is None else audio["bytes"].decode())
    return found


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def tell(self, *phrases: str) -> bool:
        return any(phrase in text for phrase in phrases for text in self.texts)


def check_layout(layout: dict[str, tuple[str | None, str]]) -> str:
    """Returns what happened when train was asked for: "refused" or "read"."""
    roles = {name: role for name, (role, _) in layout.items() if role != "hidden"}
    warnings = Warnings()
    logging.getLogger("data2vec.data.sources").addHandler(warnings)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "set"
            root.mkdir()
            write(root, layout)
            try:
                parts = {split: read(root, split) for split in list_splits(Request(str(root), "audio", streaming=True))}
                everything = read(root, "all")
            except UserError:
                return "refused"
            counts = Counter(name for names in parts.values() for name in names)
            assert not counts or max(counts.values()) == 1, "a split shares an example with another"
            assert max(Counter(everything).values()) == 1
            assert {*counts, *everything} <= {*roles}
            missing = {*roles} - {*everything}
            assert not missing or warnings.tell("left out", "no example"), missing
            for split, names in parts.items():
                assert len({roles[name] for name in names} - {None}) <= 1, (split, names)
            outcome = "read"
            for role, others in (("train", {"valid", "test"}), ("valid", {"train", "test"}), ("test", {"train", "valid"})):
                warnings.texts.clear()
                try:
                    found = read(root, role)
                except UserError:
                    outcome = "refused" if role == "train" else outcome
                    continue
                assert {*found} <= {*roles} and not {roles[name] for name in found} & others, (role, found)
                left_out = {name for name, of in roles.items() if of in (role, None)} - {*found}
                assert not left_out or warnings.tell("left out", "no example", f"split {role} is"), (role, left_out)
            return outcome
    finally:
        logging.getLogger("data2vec.data.sources").removeHandler(warnings)


@given(layouts())
@examples(40)
def test_splits_are_disjoint_and_complete_or_it_is_an_error(layout: Any) -> None:
    check_layout(layout)


@pytest.mark.slow
@given(layouts())
@examples(500)
def test_splits_of_many_layouts_are_disjoint_and_complete_or_it_is_an_error(layout: Any) -> None:
    check_layout(layout)


def test_property_is_not_met_by_refusing_everything() -> None:
    """Some layouts of every form are read."""
    for layout in (
        {"train/1.wav": ("train", ""), "test/2.wav": ("test", ""), "docs/3.wav": (None, "")},
        {"train-clean-100/cat/1.wav": ("train", ""), "dev-other/cat/2.wav": ("valid", "")},
        {"clips/1.wav": ("train", "train.csv"), "clips/2.wav": ("test", "test.csv"), "clips/3.wav": (None, "validated.csv")},
        {"1.wav": ("train", "train.tar"), "2.wav": ("test", "test.tar")},
        {"train/1.wav": ("train", "shard.tar"), "test/2.wav": ("test", "shard.tar")},
        {"train_1.wav": ("train", ""), "test_2.wav": ("test", "")},
        {"cat/1.wav": (None, ""), "dog/2.wav": (None, "")},
    ):
        assert check_layout(layout) == "read", layout
