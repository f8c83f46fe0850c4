"""Shards of a feature file: computed results kept in a folder, so that an interrupted extraction can be resumed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from data2vec.tasks.extraction.decode import NAMED
from data2vec.tasks.shares import ShardFolder, Share


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


class ShardWriter(ShardFolder[Shard]):
    """The shards of a feature file."""

    def __init__(self, folder: Path, num_inputs: int, share: Share):
        super().__init__(folder, ".safetensors", num_inputs, share)

    def write(self, path: Path, parts: list[Shard]) -> None:
        shard = Shard.concat(parts)
        metadata = {"names": json.dumps(shard.names), "unreadable": json.dumps(shard.unreadable)}
        save_file({"hidden": shard.hidden, "lengths": shard.lengths}, path, metadata)

    def size(self, part: Shard) -> int:
        return part.hidden.nbytes

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
