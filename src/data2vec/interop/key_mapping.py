"""Key tables: our parameters under the names that other libraries use.

A table has our name on the left. A tuple on the right is concatenated along the first axis (q, k and v are one matrix here);
`{i}` stands for one number. Shapes that differ only by axes of length 1 or by flattened patches are reshaped. The tables are in
`fairseq/key_mapping.py` and `transformers/key_mapping.py`.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, cat

Table = Mapping[str, str | tuple[str, ...]]
TensorMap = Mapping[str, Tensor]


def affine(ours: str, *foreign: str) -> dict[str, str | tuple[str, ...]]:
    """The two rows of a module with a weight and a bias."""
    return {
        f"{ours}.{kind}": f"{foreign[0]}.{kind}" if len(foreign) == 1 else tuple(f"{f}.{kind}" for f in foreign)
        for kind in ("weight", "bias")
    }


def foreign_keys(ours: Iterable[str], table: Table) -> dict[str, tuple[str, ...]]:
    """The foreign key or keys of each of our parameter names. Raises KeyError for a name that is not in the table."""
    keys = {}
    for name in ours:
        for number in (None, *re.finditer(r"\d+", name)):
            pattern = name if number is None else f"{name[: number.start()]}{{i}}{name[number.end() :]}"
            if pattern in table:
                entry = table[pattern]
                entries = entry if isinstance(entry, tuple) else (entry,)
                keys[name] = tuple(foreign.format(i=number and number[0]) for foreign in entries)
                break
        else:
            raise KeyError(f"{name} has no counterpart")
    return keys


def to_our_keys(foreign: TensorMap, ours: TensorMap, table: Table) -> dict[str, Tensor]:
    """Foreign tensors under our names and in the shapes of `ours`. Raises KeyError with the name of a missing tensor."""
    keys = foreign_keys(ours, table)
    return {name: cat([foreign[key] for key in keys[name]]).reshape(ours[name].shape) for name in keys}


def to_foreign_keys(ours: TensorMap, shapes: TensorMap, table: Table) -> dict[str, Tensor]:
    """Our tensors under their foreign names, reshaped like the tensor of that name in `shapes` if there is one."""
    foreign: dict[str, Tensor] = {}
    for name, keys in foreign_keys(ours, table).items():
        for key, part in zip(keys, ours[name].chunk(len(keys)), strict=True):
            foreign[key] = part.reshape(shapes[key].shape) if key in shapes else part
    return foreign
