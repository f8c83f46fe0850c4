"""The files of torch.save, read without running anything in them."""

import mmap
import struct
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from data2vec.errors import UserError
from data2vec.interop.inert import Stub, to_plain
from data2vec.interop.pickles import Machine, Refused

__all__ = ["Stub", "safe_load", "to_plain"]

MAGIC = 0x1950A86A20F9469CFC6C
"""The first thing in a file of the format before torch 1.6."""
AGAIN = "if you trust it, load it where its model was made and save only its weights again"


class _Foreign(Exception):
    """A file that is not of torch.save."""


def safe_load(path: Path) -> Any:
    """The content of a torch.save file: tensors (CPU), plain containers, numbers, strings, and `Stub` stand-ins.

    Nothing that the file names is imported or called. Parameters are tensors and need no gradient; an OrderedDict is a
    dict, a path a string, a NumPy number a Python number. Tensors of a zip file are read from it as they are used, so
    the file must stay as it is; writing to a tensor does not change the file. Containers may be nested to any depth and
    may contain themselves: see `to_plain`. Raises UserError for a file that is missing, damaged, of another kind, or that
    asks for anything else, which is named."""
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # pickletools warns of odd names
            start = file.read(512)
            if start.startswith(b"PK\3\4"):
                return _zip(file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            if start.startswith(b"\x80"):
                return _stream(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            if start[257:262] == b"ustar":
                raise Refused("the tar format of torch before 0.1.10")
            raise _Foreign
    except _Foreign:
        raise UserError(f"{path} is not a file of torch.save; give a .pt or .pth file, or a folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Refused as refused:
        raise UserError(f"{path} is refused: it asks for {_line(refused)}, which no file of weights needs; {AGAIN}") from None
    except (ValueError, TypeError, LookupError, OverflowError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged: {_line(error)}; copy it again") from None


def _line(error: Exception) -> str:
    """One line that is safe to print, whatever a file has put into it."""
    return ascii(str(error) if isinstance(error, ValueError | Refused) else repr(error))[1:-1][:200]


def _zip(file: IO[bytes], memory: mmap.mmap) -> Any:
    """The format since torch 1.6: a pickle and one record for each storage, none compressed."""
    records = _records(file, memory)
    if "constants.pkl" in records:
        raise Refused("TorchScript, which is a program")
    if "data.pkl" not in records:
        raise _Foreign
    place, size = records.get("byteorder", (0, 0))
    if memory[place : place + size] not in (b"", b"little"):
        raise Refused("big-endian numbers")

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        place, size = records.get(f"data/{key}", (0, 0))
        if count * dtype.itemsize > size:
            raise ValueError(f"storage {key} has {size} bytes for {count} numbers")
        return _numbers(memory, place, dtype, count)

    place, size = records["data.pkl"]
    return Machine(storage, len(memory)).read(BytesIO(memory[place : place + size]))


def _records(file: IO[bytes], memory: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Where each record lies and its size, by its name without the archive's own folder."""
    records: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
    for info in infos:
        folder, _, name = info.filename.partition("/")
        if folder != infos[0].filename.partition("/")[0] or name in records or {"", ".", ".."} & {folder, *name.split("/")}:
            raise Refused(f"a record named {info.filename}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise Refused(f"the compressed record {info.filename}")
        signature, name_size, extra_size = struct.unpack_from("<4s22xHH", memory, info.header_offset)
        place = info.header_offset + 30 + name_size + extra_size
        if signature != b"PK\3\4" or place + info.file_size > len(memory):
            raise ValueError(f"the record {info.filename} reaches outside of the file")
        records[name] = (place, info.file_size)
    if sum(size for _, size in records.values()) > len(memory):
        raise Refused("records that lie over one another")
    return records


def _stream(memory: mmap.mmap) -> Any:
    """The format before torch 1.6: five pickles, then the numbers of all storages in the order of the last one."""
    room = len(memory)

    def storage(dtype: torch.dtype, key: str, count: int) -> Tensor:
        nonlocal room
        room -= count * dtype.itemsize
        if room < 0:
            raise ValueError(f"storage {key} has {count} numbers, more than the file")
        return torch.empty(count, dtype=dtype)

    machine = Machine(storage, len(memory))
    if machine.read(memory) != MAGIC:
        raise _Foreign
    machine.read(memory)  # the version of the format
    if not machine.read(memory)["little_endian"]:
        raise Refused("big-endian numbers")
    content, keys = machine.read(memory), machine.read(memory)
    if sorted(keys) != sorted(machine.storages):
        raise ValueError("its storages are not those of its tensors")
    for key in keys:
        flat = machine.storages[key]
        (count,) = struct.unpack("<q", memory.read(8))
        if count != flat.numel():
            raise ValueError(f"storage {key} has {count} numbers for {flat.numel()}")
        flat.copy_(_numbers(memory, memory.tell(), flat.dtype, count))
        memory.seek(count * flat.dtype.itemsize, 1)
    return content


def _numbers(memory: mmap.mmap, place: int, dtype: torch.dtype, count: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    numbers = torch.frombuffer(memory, dtype=torch.uint8, count=count * dtype.itemsize, offset=place)
    return (numbers if place % dtype.itemsize == 0 else numbers.clone()).view(dtype)
