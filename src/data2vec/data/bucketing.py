"""How examples are put together: groups that are cropped and masked as one, and what each process loads of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from data2vec.errors import UserError
from data2vec.modalities.base import Examples

ORDER, EXAMPLE, MASK, REPLACE, SHARDS, MIX = 1, 2, 3, 4, 5, 6
"""Each use of chance has its own stream: (seed, epoch, number, use)."""


@dataclass(frozen=True)
class Group:
    """Examples that are cropped to one length and whose masks are drawn together."""

    keys: np.ndarray
    """Indices of all rows."""
    mine: slice
    """The rows this process loads."""
    limit: float
    """Smallest cost among the keys: every row is cropped to it."""
    seed: tuple[int, int, int]
    """(seed, epoch, number), or (seed, number in the run, 0): all chance in the group comes from it and from the keys."""
    examples: Examples | None = None
    """With streaming: the window of which `keys` are indices."""
    place: tuple[str, list[int]] | None = None
    """With streaming: the stream, and where its window starts."""
    bad: Sequence[str] = ()
    """With streaming: names of what cannot be read in a window, told by its first group."""


def cut(costs: np.ndarray, micro_batch: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled groups of indices, with rows · longest ≤ micro_batch in each.

    Examples of unlike cost are grouped by cost, ties in random order. A last group that is not full is left out, unless
    it is the only one; where costs differ, and with them the shapes, half full is enough."""
    if len(costs) == 0:
        return []
    order = rng.permutation(len(costs))
    equal = costs.min() == costs.max()
    if not equal:
        order = order[np.argsort(-costs[order], kind="stable")]
    groups, start, full = [], 0, 1
    while start < len(order):
        full = max(1, int(micro_batch / costs[order[start]] + 1e-6))
        groups.append(order[start : start + full])
        start += full
    if len(groups) > 1 and len(groups[-1]) < (full if equal else full / 2):
        groups.pop()
    return [groups[i] for i in rng.permutation(len(groups))]


def per_step(batch: float, micro_batch: float) -> int:
    """Groups of an optimizer step."""
    return max(1, ceil(batch / micro_batch - 1e-6))


def stride(groups_a_step: int, world: int) -> int:
    """How far apart the groups of one process are; 1 where each has a part of every group."""
    return world if groups_a_step % world == 0 else 1


def share(keys: np.ndarray, groups_a_step: int, number: int, rank: int, world: int) -> slice | None:
    """The rows of group `number` that process `rank` of `world` loads; None when the group is another's.

    Whole groups where a step's groups can be dealt out evenly, else a part of every group."""
    if stride(groups_a_step, world) == world:
        return slice(None) if number % world == rank else None
    if len(keys) < world:
        raise UserError(
            f"a micro-batch of {len(keys)} examples cannot be divided among {world} processes: use fewer processes, "
            "or make the batch in the data section a multiple of processes times micro-batch"
        )
    return slice(rank, None, world)
