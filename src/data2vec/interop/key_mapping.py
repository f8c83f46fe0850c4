"""Key tables: our parameters under the names of other libraries.

A table has our name on the left. A tuple on the right is joined along the first axis (q, k and v are one matrix here);
`{i}` stands for one number; shapes that differ only by axes of length 1 or by flattened patches are reshaped.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, cat

Table = Mapping[str, str | tuple[str, ...]]
Tensors = Mapping[str, Tensor]


def affine(ours: str, *foreign: str) -> dict[str, str | tuple[str, ...]]:
    """The two rows for a weight and a bias."""
    return {
        f"{ours}.{kind}": f"{foreign[0]}.{kind}" if len(foreign) == 1 else tuple(f"{f}.{kind}" for f in foreign)
        for kind in ("weight", "bias")
    }


def names(ours: Iterable[str], table: Table) -> dict[str, tuple[str, ...]]:
    """For each of our parameter names, the foreign name or names. Raises KeyError for one that is in no table."""
    found = {}
    for name in ours:
        for number in (None, *re.finditer(r"\d+", name)):
            key = name if number is None else f"{name[: number.start()]}{{i}}{name[number.end() :]}"
            if key in table:
                entry = table[key]
                entries = entry if isinstance(entry, tuple) else (entry,)
                found[name] = tuple(foreign.format(i=number and number[0]) for foreign in entries)
                break
        else:
            raise KeyError(f"{name} has no counterpart")
    return found


def read(foreign: Tensors, ours: Tensors, table: Table) -> dict[str, Tensor]:
    """Foreign tensors under our names and in the shapes of `ours`. Raises KeyError for a missing one, by its name."""
    return {name: cat([foreign[key] for key in keys]).reshape(ours[name].shape) for name, keys in names(ours, table).items()}


def write(ours: Tensors, like: Tensors, table: Table) -> dict[str, Tensor]:
    """Our tensors under their foreign names, in the shapes of `like` where it has them."""
    foreign: dict[str, Tensor] = {}
    for name, keys in names(ours, table).items():
        for key, part in zip(keys, ours[name].chunk(len(keys)), strict=True):
            foreign[key] = part.reshape(like[key].shape) if key in like else part
    return foreign
