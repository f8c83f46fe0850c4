"""Shards of a feature file: computed results kept in a folder, so that an interrupted extraction can be resumed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from data2vec.atomic_io import atomic_write, write_text
from data2vec.errors import UserError
from data2vec.settings import JsonMapping
from data2vec.tasks.extraction.decode import NAMED


@dataclass(frozen=True)
class Shard:
    """The features of n consecutive inputs."""

    hidden: np.ndarray
    """(N, L, D) float32, the positions of all inputs; if pooled, (n, L, D), zeros for an input that cannot be decoded."""
    lengths: np.ndarray
    """(n,) positions of each input; 0 if it cannot be decoded."""
    names: list[str]
    unreadable: list[str]
    """ "name: reason" """

    @staticmethod
    def concat(shards: "Sequence[Shard]") -> "Shard":
        """Several shards as one."""
        return Shard(
            np.concatenate([shard.hidden for shard in shards]),
            np.concatenate([shard.lengths for shard in shards]),
            [name for shard in shards for name in shard.names],
            [reason for shard in shards for reason in shard.unreadable],
        )


class ShardWriter:
    """A folder of shards that were all computed with the same `settings`, which are stored in it as JSON.

    Raises UserError if the folder was started with other settings."""

    def __init__(self, folder: Path, settings: JsonMapping):
        self.folder = folder
        self.settings_file = folder / "settings.json"
        text = json.dumps(settings, ensure_ascii=False)
        if not self.settings_file.exists():
            folder.mkdir(exist_ok=True)
            write_text(self.settings_file, text)
        stored, current = json.loads(self.settings_file.read_text(encoding="utf-8")), json.loads(text)
        for key in stored.keys() | current.keys():
            if stored.get(key) != current.get(key):
                raise UserError(
                    f"{folder} was started with {key} {stored.get(key)!r}, not {current.get(key)!r}: use the same to resume, "
                    "or delete that folder to start over"
                )

    @property
    def files(self) -> list[Path]:
        """The shards in order; each is named by the index of its first input and the one after its last."""
        return sorted(self.folder.glob("*-*.safetensors"))

    @property
    def num_inputs(self) -> int:
        """The number of inputs in all shards."""
        return int(files[-1].stem.split("-")[1]) if (files := self.files) else 0

    def add(self, shard: Shard) -> None:
        """Write the next shard."""
        first = self.num_inputs
        path = self.folder / f"{first:012d}-{first + len(shard.lengths):012d}.safetensors"
        metadata = {"names": json.dumps(shard.names), "unreadable": json.dumps(shard.unreadable)}
        arrays = {"hidden": shard.hidden, "lengths": shard.lengths}
        with atomic_write(path) as tmp:
            save_file(arrays, tmp, metadata)

    def index(self) -> tuple[np.ndarray, list[str], list[str], int]:
        """Of all shards: lengths, names, reasons of the first NAMED unreadable inputs, and the number of these inputs."""
        lengths: list[np.ndarray] = []
        names: list[str] = []
        unreadable: list[str] = []
        num_unreadable = 0
        for path in self.files:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata()
                lengths.append(file.get_tensor("lengths"))
                names += json.loads(metadata["names"])
                num_unreadable += len(reasons := json.loads(metadata["unreadable"]))
                unreadable += reasons[: NAMED - len(unreadable)]
        return np.concatenate(lengths), names, unreadable, num_unreadable

    def features(self) -> Iterator[tuple[np.ndarray, int]]:
        """The features of each shard, and the number of inputs they are of."""
        for path in self.files:
            with safe_open(path, "numpy") as file:
                yield file.get_tensor("hidden"), len(file.get_tensor("lengths"))

    def remove(self) -> None:
        """Delete the shards, and the folder if it is then empty."""
        for path in (*self.files, *self.folder.glob(".*.tmp"), self.settings_file):
            path.unlink()
        (self.folder / ".lock").unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
