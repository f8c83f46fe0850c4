"""A static check of a pickle before `torch.load` reads it: nothing is created, imported or called.

`torch.load(weights_only=True)` runs no foreign code, but it has no bounds: a small file can make it take all memory (bytearray,
copies of a set or of bytes, tensors with a stride of 0), never return, or overflow the stack (hash of nested tuples). It also
allows more functions than a checkpoint needs. So the operations are simulated here on kinds and sizes only.
"""

import math
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # names of Python 2, which pickle and torch translate
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from mmap import mmap
from typing import Any

import torch

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
TORCH_FUNCTIONS = {
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state", "torch.Size", "torch.device", "collections.OrderedDict", "builtins.set",
    "_codecs.encode",
}  # fmt: skip
"""What may be called of the functions that `torch.load` allows by itself."""
STAND_INS = {
    "collections.defaultdict", "builtins.frozenset", "builtins.bytes", "numpy.dtype", "numpy.ndarray",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple", "type")),
    *("_operator.getitem", "operator.getitem", "types.GenericAlias"),  # types such as List[int] are pickled as calls
    *(f"pathlib.{module}{kind}Path" for module in ("", "_local.") for kind in ("Posix", "Windows")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
}  # fmt: skip
EXACT_CALLS = {*TORCH_FUNCTIONS, *STORAGES, "collections.defaultdict", "builtins.frozenset", "builtins.bytes"}
"""Names that are called only with the arguments that torch.save writes."""
STAND_IN_PACKAGES = {
    "argparse", "data2vec", "deepspeed", "enum", "examples", "fairseq", "fairseq_cli", "hydra", "omegaconf", "timm", "typing",
    "utils",
}  # fmt: skip
"""Packages whose objects are in real checkpoints. All of these names are replaced by stand-ins."""
MAX_OPERATIONS = 10_000_000
"""Far more than checkpoints have."""
MAX_AXES = 64
CONSTANTS = {"NONE": 0, "NEWTRUE": 1, "NEWFALSE": 0, "BINFLOAT": 0}
INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1"}
EMPTY = {"EMPTY_DICT": "dict", "EMPTY_LIST": "list", "EMPTY_SET": "value", "EMPTY_TUPLE": "tuple"}
COUNTS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
"""The number of values that an operation takes from the stack; others take those above the last mark."""


class RefusedError(Exception):
    """The pickle asks for something that a checkpoint does not need; `str(error)` names it."""


@dataclass(eq=False)
class Item:
    """What is known of a value on the stack."""

    kind: str
    """constant, integer, string, bytes, tuple, list, dict, global, stand-in, array, storage, tensor or value (any other)."""
    value: str | int = 0
    """Of integers, strings and globals (their name); of storages the number of elements, of bytes their size."""
    items: list["Item"] = field(default_factory=list)
    """Of tuples and lists; of a dict its keys and values in turn; of a stand-in its class."""

    @property
    def is_key(self) -> bool:
        """Whether its hash is cheap. That of a nested tuple can take forever, or overflow the C stack."""
        return self.kind in ("constant", "integer", "string", "bytes", "global", "stand-in")

    def __str__(self) -> str:
        return str(self.value) if self.kind == "global" else f"a {self.kind}"


class PickleCheck:
    """Checks the pickles of one file.

    `storage_size(key)` gives the bytes of a storage in the file. `file_size` bounds what may be copied in memory."""

    def __init__(self, storage_size: Callable[[str], int], file_size: int):
        self._storage_size, self._room = storage_size, file_size
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        """Data type and number of elements of each storage that the pickles use."""
        self.names: set[str] = set()
        """The names for which stand-ins are needed."""
        self.mappings: set[str] = set()
        """Those of `names` whose objects are filled like dictionaries."""
        self.sequences: set[str] = set()
        """Those of `names` whose objects are filled like lists."""

    def check(self, source: BytesIO | mmap) -> Item:
        """Check the pickle at the position of `source`, which is left behind it; returns what is known of its value.

        Raises RefusedError, or ValueError, TypeError, LookupError or OverflowError for a damaged pickle."""
        stack: list[Item] = []
        marks: list[int] = []
        memo: dict[int, Item] = {}

        def pop_items(operation: str) -> list[Item]:
            start = len(stack) - COUNTS[operation] if operation in COUNTS else marks.pop()
            if start < 0:
                raise IndexError("the stack is empty")
            items = stack[start:]
            del stack[start:]
            return items

        argument: Any
        for number, (operation, argument, _) in enumerate(pickletools.genops(source)):  # type: ignore[arg-type]
            if number == MAX_OPERATIONS:
                raise ValueError(f"it has more than {MAX_OPERATIONS} operations")
            name = operation.name
            if name in INTEGERS:
                stack.append(Item("integer", argument))
            elif name in CONSTANTS:
                stack.append(Item("constant", CONSTANTS[name]))
            elif name == "BINUNICODE":
                stack.append(Item("string", argument))
            elif name in EMPTY:
                stack.append(Item(EMPTY[name]))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                marks.append(len(stack))
            elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
                stack.append(Item("tuple", items=pop_items(name)))
            elif name in ("SETITEM", "SETITEMS"):
                items = pop_items(name)
                if len(items) % 2:
                    raise ValueError("a key has no value")
                check_keys(items[::2])
                self._fill(stack[-1], "dict", items, self.mappings)
            elif name in ("APPEND", "APPENDS"):
                items = pop_items(name)
                self._fill(stack[-1], "list", items, self.sequences)
            elif name == "GLOBAL":
                stack.append(self._global(argument))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments, name))
            elif name == "BUILD":
                state = stack.pop()
                self._set_state(stack[-1], state)
            elif name not in ("PROTO", "STOP"):
                of_protocol = f" of pickle protocol {operation.proto}" if operation.proto > 2 else ""
                raise RefusedError(
                    f"the pickle operation {name}{of_protocol} {argument if isinstance(argument, str) else ''}".strip()
                )
        return stack.pop()

    def _global(self, argument: str) -> Item:
        module, _, attribute = argument.partition(" ")
        module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
        name = f"{module}.{attribute}"
        if name in STAND_INS or module.partition(".")[0] in STAND_IN_PACKAGES:
            self.names.add(name)
        elif name not in STORAGES and name not in TORCH_FUNCTIONS and name not in map(str, STORAGES.values()):
            raise RefusedError(name)
        return Item("global", name)

    def _fill(self, target: Item, kind: str, items: list[Item], names: set[str]) -> None:
        if target.kind == "stand-in":
            names.add(str(target.items[0].value))
        elif target.kind != kind:
            raise RefusedError(f"{target} to be filled like a {kind}")
        else:
            target.items.extend(items)

    def _storage(self, identity: Item) -> Item:
        """The storage that torch.save pickles as ("storage", type, key, device, count), in its old format with a None."""
        match identity.items:
            case [
                Item("string", "storage"), Item("global", str(kind)), Item("string", str(key)), Item("string"),
                Item("integer", int(count)), *view,
            ] if [item.kind for item in view] in ([], ["constant"]):  # fmt: skip
                if kind not in STORAGES:
                    raise RefusedError(f"a storage of {kind}")
                dtype = STORAGES[kind]
                if self.storages.setdefault(key, (dtype, count)) != (dtype, count):
                    raise RefusedError(f"storage {key} of two kinds")
                if count < 0 or count * dtype.itemsize > (size := self._storage_size(key)):
                    raise ValueError(f"storage {key} has {size if count >= 0 else 0} bytes for {count} elements")
                return Item("storage", count)
        raise RefusedError("an external object that is not a storage")

    def _call(self, function: Item, arguments: Item, operation: str) -> Item:
        if function.kind != "global":
            raise RefusedError(f"a call of {function}")
        if arguments.kind != "tuple":
            raise TypeError(f"the arguments of {function.value} are {arguments}")
        match str(function.value), arguments.items:
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", [storage, offset, size, stride, *rest]:
                if len(rest) > 2:
                    raise RefusedError("a tensor with metadata")
                check_tensor(storage, offset, size, stride)
                return Item("tensor")
            case "torch._utils._rebuild_parameter", [Item("tensor"), _, _]:
                return Item("tensor")
            case "torch._utils._rebuild_parameter_with_state", [Item("tensor"), _, _, Item("dict", items=items)]:
                if any(name.kind != "string" or str(name.value).startswith("_") for name in items[::2]):
                    raise RefusedError("a parameter with private attributes")
                return Item("tensor")
            case "collections.OrderedDict", []:
                return Item("dict", "OrderedDict")
            case "collections.defaultdict", [] | [Item("global" | "constant")]:
                return Item("dict")
            case "torch.Size", [Item("tuple", items=sizes)] if all(size.kind == "integer" for size in sizes):
                return Item("tuple", items=sizes)
            case "torch.device", [Item("string")] | [Item("string"), Item("integer")]:
                return Item("value")
            case "builtins.set" | "builtins.frozenset", [Item("list", items=items)]:
                self._spend(len(check_keys(items)))
                return Item("value")
            case "builtins.bytes", []:
                return Item("bytes")
            case "_codecs.encode", [Item("string", str(text)), Item("string", "latin1" | "latin-1")]:
                self._spend(len(text))
                return Item("bytes", len(text))
            case name, _ if name in EXACT_CALLS or name not in self.names:
                raise RefusedError(f"a call of {name} with ({', '.join(map(str, arguments.items))})")
            case name, _ if name.startswith("numpy.") and name.endswith("._reconstruct"):
                return Item("array")
            case name, _ if name.endswith("multiarray.scalar") or name.startswith("pathlib."):
                return Item("constant")
        return Item("stand-in", items=[function])

    def _set_state(self, target: Item, state: Item) -> None:
        if target.kind == "array":
            self._spend(sum(int(item.value) for item in state.items if item.kind == "bytes"))
        elif target.kind == "dict" and target.value == "OrderedDict" and state.kind == "dict":
            keys = [str(key.value) for key in state.items[::2]]
            if keys != ["_metadata"]:  # that of a state dict
                raise RefusedError(f"{', '.join(keys)} to be set on a dict")
        elif target.kind != "stand-in":
            raise RefusedError(f"a state to be set on {target}")

    def _spend(self, size: int) -> None:
        """Count what is copied in memory: a checkpoint stores each value once, a bomb copies the same value many times."""
        self._room -= size
        if self._room < 0:
            raise ValueError("it makes more than it holds")


def check_keys(items: Iterable[Item]) -> list[Item]:
    """The same items, if each may be a key or in a set."""
    items = list(items)
    for item in items:
        if not item.is_key:
            raise TypeError(f"{item} is a key")
    return items


def check_tensor(storage: Item, offset: Item, size: Item, stride: Item) -> None:
    """Raises TypeError or ValueError unless the tensor is inside its storage and uses no element twice."""
    if storage.kind != "storage":
        raise TypeError("a tensor has no storage")
    if size.kind != "tuple" or stride.kind != "tuple" or not len(size.items) == len(stride.items) <= MAX_AXES:
        raise TypeError("a tensor has no shape")
    numbers = [item.value if item.kind == "integer" else -1 for item in (offset, *size.items, *stride.items)]
    first, *axes = [number if isinstance(number, int) else -1 for number in numbers]
    if min(first, *axes, 0) < 0:
        raise ValueError("a tensor has an invalid shape")
    sizes, strides = axes[: len(axes) // 2], axes[len(axes) // 2 :]
    count = math.prod(sizes)
    end = first + 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if count else first
    if max(count, end) > int(storage.value):
        raise ValueError("a tensor reaches outside of its storage")
