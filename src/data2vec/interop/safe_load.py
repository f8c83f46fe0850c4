"""Reading files of torch.save, without running anything in them.

`torch.load(weights_only=True)` does the reading, with stand-ins for the classes and functions of other libraries that a file
names. What torch itself does not bound is checked before, see `pickle_check`.
"""

import math
import mmap
import pickle
import struct
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from data2vec.errors import UserError
from data2vec.interop.pickle_check import PickleCheck, RefusedError
from data2vec.settings import JsonDict

MAGIC = 0x1950A86A20F9469CFC6C
"""The first value in a file of the format before torch 1.6."""
ALIGNMENT = 64
"""torch.save aligns storages to this many bytes; torch cannot map others into memory."""
MAX_DEPTH = 100
"""How deep a configuration may be nested, so that code that walks through it may recurse."""
NUMBER_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
_lock = threading.Lock()


class NotACheckpointError(Exception):
    """The file was not written by torch.save."""


class Stub:
    """Stands for an object of another library. A subclass stands for its class or function; nothing was imported or called."""

    name: ClassVar[str]
    """The full name, such as "omegaconf.dictconfig.DictConfig"."""
    arguments: tuple[object, ...]
    """What the class or function was called with."""
    state: object
    """What the attributes were to be set from."""

    def __new__(cls, *arguments: object) -> Self:
        stub = super().__new__(cls)
        stub.arguments, stub.state = arguments, None
        return stub

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"Stub({self.name!r})"

    @property
    def content(self) -> object:
        """Its attributes, or what an Enum member or an OmegaConf node holds; None where that cannot be known."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:  # attributes and slots
            state = {key: value for part in state if isinstance(part, dict) for key, value in part.items()}
        if state is None:
            return self.arguments[0] if len(self.arguments) == 1 else None
        if isinstance(state, dict) and self.name.startswith("omegaconf."):  # a container, or a node with one value
            return state.get("_content", state.get("_val", state))
        return state


class _MappingStub(Stub):
    """For subclasses of dict, which become dictionaries: torch fills no others."""

    def __new__(cls, *arguments: object) -> Any:
        return OrderedDict()


class _ListStub(Stub):
    """For subclasses of list, which become lists."""

    def __new__(cls, *arguments: object) -> Any:
        return []


class _Array(np.ndarray):
    """A NumPy array, whose data type must be a plain number."""

    def __new__(cls, *arguments: object) -> Self:
        return super().__new__(cls, 0)

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), dtype, bool(fortran), bytes(data)):
                number_type = _numpy_dtype(dtype)
                if all(type(n) is int and n >= 0 for n in shape) and len(data) == math.prod(shape) * number_type.itemsize:
                    super().__setstate__((1, shape, number_type, fortran, data))  # type: ignore[arg-type]
                    return
        raise ValueError("an array of NumPy is not a block of numbers of its size")


def _numpy_dtype(dtype: object) -> np.dtype[np.generic]:
    match dtype:
        case Stub(name="numpy.dtype", arguments=(str(code), *_), state=(_, "<" | ">" | "|" as order, None, None, None, *_)):
            if code in NUMBER_TYPES:
                return np.dtype(order + code)
    raise ValueError("a numpy.dtype is not of plain numbers")


def _numpy_scalar(dtype: object, data: object) -> object:
    number_type = _numpy_dtype(dtype)
    if type(data) is not bytes or len(data) != number_type.itemsize:
        raise ValueError("a number of NumPy has the wrong size")
    return np.frombuffer(data, number_type)[0].item()


def _posix_path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _windows_path(*parts: str) -> str:
    return str(PureWindowsPath(*parts))


def _plain_dict(factory: object = None) -> dict[object, object]:
    return {}


_STAND_INS: JsonDict = {
    "collections.defaultdict": _plain_dict,
    "builtins.frozenset": frozenset,
    "builtins.bytes": bytes,
    "pathlib.PosixPath": _posix_path,
    "pathlib._local.PosixPath": _posix_path,
    "pathlib.WindowsPath": _windows_path,
    "pathlib._local.WindowsPath": _windows_path,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
}
"""What else is made of a name than a `Stub`."""


def safe_load(path: Path) -> Any:
    """The content of a torch.save file: tensors (CPU), plain containers, numbers, strings, and `Stub` objects.

    Nothing that the file names is imported or called. Parameters become tensors without gradient, defaultdicts and subclasses
    of dict dictionaries, paths strings, NumPy numbers Python numbers. Tensors of a zip file are memory-mapped, so the file must
    not change meanwhile; writing to a tensor does not change the file. Containers may be nested to any depth and may contain
    themselves: see `to_plain`. Raises UserError for a file that is missing, damaged, of another kind, or that asks for anything
    else, which is named."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            start = file.read(512)
            if start.startswith(b"PK\3\4"):
                check, aligned = _check_zip(file)
            elif start.startswith(b"\x80"):
                check, aligned = _check_legacy(file), False
            elif start[257:262] == b"ustar":
                raise RefusedError("the tar format of torch before 0.1.10")
            else:
                raise NotACheckpointError
            with _stand_ins(check):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=aligned)
        _detach_parameters(content)
        return content
    except NotACheckpointError:
        raise UserError(f"{path} is not a file of torch.save; give a .pt or .pth file, or a folder") from None
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror or error}") from None
    except (RefusedError, pickle.UnpicklingError) as refused:
        by_torch = isinstance(refused, pickle.UnpicklingError)  # whose message is an essay
        content = "objects that torch.load does not restore with weights_only=True" if by_torch else _one_line(refused)
        raise UserError(
            f"{path} is refused: it contains {content}, which a file of weights does not need; "
            "if you trust it, load it where the model was trained and save the weights only"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RuntimeError, EOFError,
            MemoryError, struct.error, zipfile.BadZipFile) as error:  # fmt: skip
        raise UserError(f"{path} is damaged: {_one_line(error)}; copy it again") from None


def _one_line(error: Exception) -> str:
    """A line that is safe to print, whatever a file has put into the message."""
    return ascii(str(error) if isinstance(error, ValueError | RefusedError) else repr(error))[1:-1][:200]


def _check_zip(file: IO[bytes]) -> tuple[PickleCheck, bool]:
    """Check the format since torch 1.6: a pickle and a record per storage, uncompressed. Whether storages are aligned."""
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    records = _zip_records(file, memory)
    if "constants.pkl" in records:
        raise RefusedError("TorchScript, which is a program")
    if "data.pkl" not in records:
        raise NotACheckpointError
    position, size = records.get("byteorder", (0, 0))
    if memory[position : position + size] not in (b"", b"little"):
        raise RefusedError("big-endian numbers")
    check = PickleCheck(lambda key: records.get(f"data/{key}", (0, 0))[1], len(memory))
    position, size = records["data.pkl"]
    check.check(BytesIO(memory[position : position + size]))
    return check, all(records[f"data/{key}"][0] % ALIGNMENT == 0 for key in check.storages if f"data/{key}" in records)


def _zip_records(file: IO[bytes], memory: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Position and size of each record, by its name without the archive's folder."""
    records: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if folder != infos[0].filename.partition("/")[0] or name in records or {"", ".", ".."} & {folder, *name.split("/")}:
            raise RefusedError(f"a record named {info.filename}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RefusedError(f"the compressed record {info.filename}")
        signature, name_size, extra_size = struct.unpack_from("<4s22xHH", memory, info.header_offset)
        position = info.header_offset + 30 + name_size + extra_size
        if signature != b"PK\3\4" or position + info.file_size > len(memory):
            raise ValueError(f"the record {info.filename} reaches outside of the file")
        records[name] = (position, info.file_size)
    if sum(size for _, size in records.values()) > len(memory):
        raise RefusedError("overlapping records")
    return records


def _check_legacy(file: IO[bytes]) -> PickleCheck:
    """Check the format before torch 1.6: five pickles, then the storages in the order of the last one."""
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    check = PickleCheck(lambda key: len(memory), len(memory))
    if check.check(memory).value != MAGIC:
        raise NotACheckpointError
    check.check(memory)  # the version of the format
    system = check.check(memory).items
    if not any(key.value == "little_endian" and value.value for key, value in zip(system[::2], system[1::2], strict=True)):
        raise RefusedError("big-endian numbers")
    check.check(memory)
    keys = [str(key.value) for key in check.check(memory).items]
    if sorted(keys) != sorted(check.storages):
        raise ValueError("its storages are not those of its tensors")
    for key in keys:
        dtype, count = check.storages[key]
        (stored,) = struct.unpack("<q", memory.read(8))
        if stored != count or memory.tell() + count * dtype.itemsize > len(memory):
            raise ValueError(f"storage {key} has {stored} elements instead of {count}, or is cut off")
        memory.seek(count * dtype.itemsize, 1)
    return check


@contextmanager
def _stand_ins(check: PickleCheck) -> Iterator[None]:
    """Let torch.load know the stand-ins for the names in a file, and nothing else that was registered with it."""

    def stand_in(name: str) -> Callable[..., object]:
        if name in _STAND_INS:
            return _STAND_INS[name]
        base = _MappingStub if name in check.mappings else _ListStub if name in check.sequences else Stub
        return type(name.rpartition(".")[2], (base,), {"name": name})

    with _lock:
        registered = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals([(stand_in(name), name) for name in sorted(check.names)]):
                yield
        finally:
            torch.serialization.add_safe_globals(registered)


def _detach_parameters(content: object) -> None:
    """Replace parameters in containers by tensors, in place."""
    seen, stack = set(), [content]
    while stack:
        value = stack.pop()
        if id(value) in seen or not isinstance(value, dict | list | tuple | Stub):
            continue
        seen.add(id(value))
        if isinstance(value, Stub):
            stack += [value.arguments, value.state]
        elif isinstance(value, tuple):
            stack += value
        else:
            for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if isinstance(part, nn.Parameter):
                    value[key] = part.detach()
                else:
                    stack.append(part)


def to_plain(value: object) -> Any:
    """A configuration as plain containers; tensors, arrays, numbers and strings stay as they are.

    Namespaces, dataclasses and other objects become dictionaries of their attributes, Enum members their value, OmegaConf nodes
    what they hold ("???" is kept), classes their names. What was shared is shared in the result. Raises UserError for what
    contains itself or is nested deeper than `MAX_DEPTH`, and for keys that are not strings or numbers."""
    known: dict[
        int, tuple[object, object, int]
    ] = {}  # by identity: the object (kept alive, for its id), its plain form, its height

    def convert(value: object, depth: int) -> tuple[object, int]:
        if isinstance(value, type) and issubclass(value, Stub):
            return value.name, 0
        if isinstance(value, torch.dtype | torch.device):
            return str(value), 0
        if not isinstance(value, Stub | dict | list | tuple | set | frozenset):
            return value, 0
        if id(value) not in known and depth <= MAX_DEPTH:
            known[id(value)] = value, None, MAX_DEPTH + 1  # until it is converted
            inner: Iterable[object] = (
                [value.content] if isinstance(value, Stub) else value.values() if isinstance(value, dict) else value
            )
            parts = [convert(part, depth + 1) for part in inner]
            plain: Any = [part for part, _ in parts]
            if isinstance(value, Stub):
                (plain,) = plain
            elif isinstance(value, dict):
                plain = dict(zip(_plain_keys(convert(key, depth + 1)[0] for key in value), plain, strict=True))
            elif isinstance(value, set | frozenset):
                plain = type(value)(_plain_keys(plain))
            elif isinstance(value, tuple):
                plain = tuple(plain)
            known[id(value)] = value, plain, 1 + max((height for _, height in parts), default=0)
        _, plain, height = known.get(id(value), (None, None, MAX_DEPTH + 1))
        if depth + height > MAX_DEPTH:
            raise UserError(f"a configuration that contains itself, or is nested deeper than {MAX_DEPTH}, is not supported")
        return plain, height

    return convert(value, 0)[0]


def _plain_keys(values: Iterable[object]) -> Iterator[object]:
    for value in values:
        if value is not None and type(value) not in (str, bytes, bool, int, float):
            raise UserError(
                f"a configuration with a {type(value).__name__} as a key is not supported, only strings and numbers"
            )
        yield value
