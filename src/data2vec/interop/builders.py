"""What the names in a pickle may make: tensors, plain containers and numbers, from arguments that nobody vouches for.

None of these is the real thing of that name; each checks what it is given. They raise ValueError or TypeError for what
a pickle never holds, Refused for what it may hold but a file of weights does not."""

import math
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.interop.inert import Stub, is_key

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
STUB_PACKAGES = {
    "argparse", "data2vec", "deepspeed", "enum", "examples", "fairseq", "fairseq_cli", "hydra", "omegaconf", "timm", "typing",
    "utils",
}  # fmt: skip
"""Real files hold objects of these. fairseq imports its examples by their folder's name, which is also ours."""
TYPES = ("bool", "bytes", "dict", "float", "int", "list", "long", "object", "set", "str", "tuple", "type", "unicode")
STUB_NAMES = {
    *STORAGES,
    *map(str, STORAGES.values()),
    *(f"builtins.{name}" for name in TYPES),
    *("_operator.getitem", "operator.getitem", "types.GenericAlias"),  # types such as List[int] are written as their calls
    *("numpy.dtype", "numpy.ndarray", "torch.device"),
}
NUMBERS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}
MOST_AXES = 64


class Refused(Exception):
    """A pickle asks for something that is not allowed; `str(error)` names it."""


def named(module: Any, name: Any) -> Stub:
    """What a pickle has for the name of a class or function."""
    if not (type(module) is type(name) is str):
        raise TypeError("a name is not a string")
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if full in BUILDERS or full in STUB_NAMES or full.partition(".")[0] in STUB_PACKAGES:
        return Stub(full)
    raise Refused(full)


def keys(values: list[Any]) -> list[Any]:
    """The same values, if each may be a key or in a set."""
    for value in values:
        if not is_key(value) and not isinstance(value, Stub):
            raise TypeError(f"a {type(value).__name__} is a key")
    return values


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None, metadata: Any = None
) -> Tensor:
    """torch._utils._rebuild_tensor_v2, within the bounds of the storage."""
    if not (isinstance(storage, Tensor) and storage.dim() == 1 and storage.is_contiguous()):
        raise TypeError("a tensor has no storage")
    if not (type(size) is type(stride) is tuple and len(size) == len(stride) <= MOST_AXES):
        raise TypeError("a tensor has no shape")
    if not all(type(number) is int and number >= 0 for number in (offset, *size, *stride)):
        raise ValueError("a tensor has a shape that is none")
    if metadata:
        raise Refused("a tensor with a conjugate or negative bit")
    count = math.prod(size)
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else offset
    if max(count, reach) > storage.numel():
        raise ValueError("a tensor reaches outside of its storage")
    return storage[offset:].as_strided(size, stride)


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter has no tensor")
    return data


def _dict(factory: Any = None) -> dict[Any, Any]:
    """An OrderedDict or a defaultdict; the pickle fills it afterwards."""
    if not (factory is None or isinstance(factory, Stub)):
        raise TypeError("a dictionary is made of something")
    return {}


def _size(numbers: Any) -> tuple[int, ...]:
    if type(numbers) is not tuple or not all(type(number) is int for number in numbers):
        raise TypeError("a torch.Size is not of numbers")
    return numbers


def _set(items: Any) -> set[Any]:
    if type(items) is not list:
        raise TypeError("a set is not made of a list")
    return set(keys(items))


def _frozenset(items: Any) -> frozenset[Any]:
    return frozenset(_set(items))


def _empty_bytes() -> bytes:
    return b""


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("_codecs.encode of anything but bytes")
    return text.encode("latin1")


def _posix_path(*parts: Any) -> str:
    return str(PurePosixPath(*parts))


def _windows_path(*parts: Any) -> str:
    return str(PureWindowsPath(*parts))


def _dtype(dtype: Any) -> np.dtype[Any]:
    match dtype:
        case Stub(
            name="numpy.dtype", arguments=(str(code), *_), state=(_, "<" | ">" | "|" | "=" as order, None, None, None, *_)
        ):
            if code in NUMBERS:
                return np.dtype(order + code)
    raise Refused("a numpy.dtype that is not of plain numbers")


def _scalar(dtype: Any, data: Any) -> Any:
    kind = _dtype(dtype)
    if type(data) is not bytes or len(data) != kind.itemsize:
        raise ValueError("a number of NumPy has the wrong size")
    return np.frombuffer(data, kind)[0].item()


def _array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    return np.empty(0)


def fill_array(array: np.ndarray, state: Any) -> int:
    """Give an array its numbers; returns how many bytes they are."""
    match state:
        case (int(), tuple(shape), dtype, bool(fortran), bytes(data)) if len(shape) <= MOST_AXES:
            kind = _dtype(dtype)
            if all(type(n) is int and n >= 0 for n in shape) and len(data) == math.prod(shape) * kind.itemsize:
                array.__setstate__((1, shape, kind, fortran, data))  # type: ignore[arg-type]
                return len(data)
    raise ValueError("an array of NumPy has not the size of its numbers")


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": _empty_bytes,
    "_codecs.encode": _encode,
    "pathlib.PosixPath": _posix_path,
    "pathlib._local.PosixPath": _posix_path,
    "pathlib.WindowsPath": _windows_path,
    "pathlib._local.WindowsPath": _windows_path,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
}
