"""What takes long to make, kept in whole parts beside the file it is to become, until all of it is there."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from data2vec.atomic_io import atomic_write
from data2vec.errors import UserError


@dataclass(frozen=True)
class Part:
    """The features of n inputs, one after the other."""

    hidden: np.ndarray
    """(N, L, D) float32: the positions of all inputs; pooled, (n, L, D), zeros for an input that cannot be read."""
    lengths: np.ndarray
    """(n,) positions of each input; 0 where it cannot be read."""
    names: list[str]
    unreadable: list[str]
    """ "name: reason" """

    @staticmethod
    def joined(parts: "Sequence[Part]") -> "Part":
        """Several as one."""
        return Part(
            np.concatenate([part.hidden for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            [name for part in parts for name in part.names],
            [reason for part in parts for reason in part.unreadable],
        )


class Parts:
    """A folder of parts of one file, all made by the same `settings`, which go into it as JSON.

    Raises UserError when it was begun with others."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        self.begun = folder / "settings.json"
        text = json.dumps(settings, ensure_ascii=False)
        if not self.begun.exists():
            folder.mkdir(exist_ok=True)
            with atomic_write(self.begun) as tmp:
                tmp.write_text(text, encoding="utf-8")
        before, now = json.loads(self.begun.read_text(encoding="utf-8")), json.loads(text)
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key):
                raise UserError(
                    f"{folder} was begun with {key} {before.get(key)!r}, not {now.get(key)!r}: give the same again to go on, "
                    "or remove that folder to begin anew"
                )

    @property
    def files(self) -> list[Path]:
        """In order; each is named after its first input and the one after its last."""
        return sorted(self.folder.glob("*-*.safetensors"))

    @property
    def inputs(self) -> int:
        """How many inputs there are in all parts."""
        return int(files[-1].stem.split("-")[1]) if (files := self.files) else 0

    def add(self, part: Part) -> None:
        """Write the next part."""
        first = self.inputs
        path = self.folder / f"{first:012d}-{first + len(part.lengths):012d}.safetensors"
        words = {"names": json.dumps(part.names), "unreadable": json.dumps(part.unreadable)}
        arrays = {"hidden": part.hidden, "lengths": part.lengths}
        with atomic_write(path) as tmp:
            save_file(arrays, tmp, words)

    def index(self) -> tuple[np.ndarray, list[str], list[str]]:
        """Lengths, names and what is unreadable, of all parts, without their features."""
        lengths: list[np.ndarray] = []
        names: list[str] = []
        unreadable: list[str] = []
        for path in self.files:
            with safe_open(path, "numpy") as file:
                words = file.metadata()
                lengths.append(file.get_tensor("lengths"))
                names += json.loads(words["names"])
                unreadable += json.loads(words["unreadable"])
        return np.concatenate(lengths), names, unreadable

    def hidden(self) -> Iterator[tuple[np.ndarray, int]]:
        """The features of each part, and how many inputs they are of."""
        for path in self.files:
            with safe_open(path, "numpy") as file:
                yield file.get_tensor("hidden"), len(file.get_tensor("lengths"))

    def remove(self) -> None:
        """Delete the parts, and the folder if nothing else is in it."""
        for path in (*self.files, *self.folder.glob(".*.tmp"), self.begun):
            path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
