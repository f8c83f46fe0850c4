"""A pickle as data: a machine with the operations that torch.save writes, which imports nothing and calls no name.

What a name in a pickle may make is in `builders`; other names of `builders.named` are `Stub`; all others are refused."""

import pickletools
from collections.abc import Callable, Iterator
from io import BytesIO
from mmap import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.interop.builders import BUILDERS, STORAGES, Refused, fill_array, keys, named
from data2vec.interop.inert import Stub

LITERALS = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set, "EMPTY_TUPLE": tuple}
COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
"""How many values an operation takes from the stack; others take all above the last mark."""
MOST_OPERATIONS = 10_000_000
"""Files of weights have far fewer. Without a bound, each byte of a file could make an object of a hundred."""


class Machine:
    """Reads the pickles of one file.

    `storage(dtype, key, count)` gives the numbers of a storage, a flat tensor; it is asked once for each key and checks
    `count` by the file. `limit`: how many bytes and items may be copied in memory, that is, the size of the file."""

    def __init__(self, storage: Callable[[torch.dtype, str, int], Tensor], limit: int):
        self._storage, self._room = storage, limit
        self.storages: dict[str, Tensor] = {}

    def read(self, source: BytesIO | mmap) -> Any:
        """The object of the pickle at the place of `source`, which is left behind the pickle.

        Raises Refused, or ValueError, TypeError, LookupError, OverflowError or RuntimeError for a damaged one."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def popped(name: str) -> list[Any]:
            start = len(stack) - COUNTS[name] if name in COUNTS else marks.pop()
            if start < 0:
                raise IndexError("the stack is empty")
            items = stack[start:]
            del stack[start:]
            return items

        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]
        operations = pickletools.genops(source)  # type: ignore[arg-type]
        for number, (operation, argument, _) in enumerate(operations):
            if number == MOST_OPERATIONS:
                raise ValueError(f"it has more than {MOST_OPERATIONS} operations")
            name = operation.name
            if name in LITERALS:
                stack.append(argument)
                continue
            match name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "NONE" | "NEWTRUE" | "NEWFALSE":
                    stack.append(CONSTANTS[name])
                case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET" | "EMPTY_TUPLE":
                    stack.append(EMPTY[name]())
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(popped(name)))
                case "FROZENSET":
                    stack.append(frozenset(keys(popped(name))))
                case "SETITEM" | "SETITEMS":
                    items = popped(name)
                    _filled(stack[-1], dict).update(zip(keys(items[::2]), items[1::2], strict=True))
                case "APPEND" | "APPENDS":
                    items = popped(name)
                    _filled(stack[-1], list).extend(items)
                case "ADDITEMS":
                    items = popped(name)
                    _filled(stack[-1], set).update(keys(items))
                case "GLOBAL":
                    module, _, attribute = argument.partition(" ")
                    stack.append(named(module, attribute))
                case "STACK_GLOBAL":
                    attribute, module = stack.pop(), stack.pop()
                    stack.append(named(module, attribute))
                case "BINPERSID":
                    stack.append(self._stored(stack.pop()))
                case "REDUCE" | "NEWOBJ":
                    arguments = stack.pop()
                    stack[-1] = self._made(stack[-1], arguments)
                case "BUILD":
                    state = stack.pop()
                    self._build(stack[-1], state)
                case "PROTO" | "FRAME" | "STOP":
                    pass
                case _:
                    raise Refused(f"the pickle operation {name} {'' if argument is None else argument}".strip())
        return stack.pop()

    def _stored(self, identity: Any) -> Tensor:
        """The storage that torch.save calls ("storage", type, key, device, count) or, in its old format, (…, None)."""
        match identity:
            case ("storage", Stub(name=name, arguments=None), str(key), str(), int(count), *view) if view in ([], [None]):
                if name not in STORAGES:
                    raise Refused(f"a storage of {name}")
                if count < 0:
                    raise ValueError(f"storage {key} has {count} numbers")
                if key not in self.storages:
                    self.storages[key] = self._storage(STORAGES[name], key, count)
                flat = self.storages[key]
                if (flat.dtype, flat.numel()) != (STORAGES[name], count):
                    raise ValueError(f"storage {key} is of two kinds")
                return flat
        raise Refused("an object outside of the pickle that is no storage of numbers")

    def _made(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Stub) or function.arguments is not None:
            raise Refused(f"a call of a {type(function).__name__}")
        if type(arguments) is not tuple:
            raise TypeError(f"the arguments of {function.name} are a {type(arguments).__name__}")
        if function.name not in BUILDERS:
            return Stub(function.name, arguments)
        made = BUILDERS[function.name](*arguments)
        if isinstance(made, str | bytes | set | frozenset):
            self._spend(len(made))
        return made

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Stub) and target.arguments is not None:
            target.state = state
        elif isinstance(target, np.ndarray):
            self._spend(fill_array(target, state))
        elif type(target) is not dict or type(state) is not dict or list(state) != ["_metadata"]:  # only a state dict's
            names = ", ".join(map(str, state)) if type(state) is dict else "a state"
            raise Refused(f"{names} to be set on a {target.name if isinstance(target, Stub) else type(target).__name__}")

    def _spend(self, size: int) -> None:
        """An honest file writes each item once; a hostile one copies the same ones again and again."""
        self._room -= size
        if self._room < 0:
            raise ValueError("it makes more than it holds")


def _filled(target: Any, kind: type) -> Any:
    """The container that is filled: `target`, or what a stand-in has been filled with."""
    if isinstance(target, Stub) and target.arguments is not None:
        target.items = kind() if target.items is None else target.items
        target = target.items
    if type(target) is not kind:
        raise Refused(f"a {type(target).__name__} to be filled like a {kind.__name__}")
    return target
