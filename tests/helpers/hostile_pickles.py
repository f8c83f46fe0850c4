"""Pickles and checkpoints that are hostile, damaged or foreign, and what of each is named as refused.

A payload is the middle of a pickle, written by hand. CANARY is a file that it would make in the current folder."""

import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from copy import copy as copy_of
from pathlib import Path

CANARY = "canary"


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def many(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def listed(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def attributes(key: str, value: bytes) -> bytes:
    return b"}" + text(key) + value + b"sb"


def call(function: str | bytes, *arguments: bytes) -> bytes:
    return (name(function) if isinstance(function, str) else function) + many(*arguments) + b"R"


def persistent(*items: bytes) -> bytes:
    return many(*items) + b"Q"


def storage(key: str = "0", count: int = 4, kind: str = "torch.FloatStorage") -> bytes:
    return persistent(text("storage"), name(kind), text(key), text("cpu"), number(count))


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...], of: bytes | None = None) -> bytes:
    shape = [many(*map(number, axes)) for axes in (size, stride)]
    of = storage() if of is None else of
    return call("torch._utils._rebuild_tensor_v2", of, number(offset), *shape, b"\x89", call("collections.OrderedDict"))


def pickled(payload: bytes) -> bytes:
    return b"\x80\x04" + payload + b"."


TOUCH, OPEN = text(f"touch {CANARY}"), text(f"open({CANARY!r}, 'w').close()")
SYSTEM = call("os.system", TOUCH)
OS = call("builtins.__import__", text("os"))
ORDERED = call("collections.OrderedDict")
NAMESPACE = name("argparse.Namespace") + b")\x81"
DATA = b"B" + struct.pack("<I", len(pickled(SYSTEM))) + pickled(SYSTEM)
ENCODED = call("_codecs.encode", text(pickled(SYSTEM).decode("latin1")), text("latin1"))
OBJECTS = call("numpy.dtype", text("O8"), b"\x89", b"\x88") + many(number(3), text("|"), b"NNN", number(63)) + b"b"
FLOATS = call("numpy.dtype", text("f8"), b"\x89", b"\x88") + many(number(3), text("<"), b"NNN", number(0)) + b"b"
ARRAY = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), many(number(0)), text("b"))

# What pickle would run, and what is named as refused.
LIVE: dict[str, tuple[bytes, str]] = {
    "os.system": (SYSTEM, "os.system"),
    "posix.system": (call("posix.system", TOUCH), "posix.system"),
    "os.mkdir": (call("os.mkdir", text(CANARY)), "os.mkdir"),
    "subprocess": (call("subprocess.check_output", listed(text("touch"), text(CANARY))), "subprocess.check_output"),
    "eval": (call("builtins.eval", OPEN), "builtins.eval"),
    "exec": (call("builtins.exec", OPEN), "builtins.exec"),
    "copy": (call("shutil.copyfile", text(os.devnull), text(CANARY)), "shutil.copyfile"),
    "getattr": (call(call("builtins.getattr", OS, text("system")), TOUCH), "builtins.getattr"),
    "import": (OS + b"0" + SYSTEM, "builtins.__import__"),
    "import-module": (call("importlib.import_module", text("os")) + b"0" + SYSTEM, "importlib.import_module"),
    "attrgetter": (call(call(call("operator.attrgetter", text("system")), OS), TOUCH), "operator.attrgetter"),
    "methodcaller": (call(call("operator.methodcaller", text("system"), TOUCH), OS), "operator.methodcaller"),
    "partial": (call(call("functools.partial", name("os.system"), TOUCH)), "functools.partial"),
    "map": (call("builtins.list", call("builtins.map", name("os.system"), listed(TOUCH))), "builtins.map"),
    "default-factory": (call("collections.defaultdict", name("os.system")) + b"0" + SYSTEM, "os.system"),
    "nested-reduce": (call("builtins.str", call("builtins.eval", OPEN)), "builtins.eval"),
    "in-a-list": (listed(number(1), SYSTEM), "os.system"),
    "in-a-dict": (b"}" + text("model") + SYSTEM + b"s", "os.system"),
    "in-an-ordered-dict": (ORDERED + b"(" + text("model") + SYSTEM + b"u", "os.system"),
    "as-a-key": (b"}" + SYSTEM + number(1) + b"s", "os.system"),
    "in-a-state": (NAMESPACE + attributes("lr", SYSTEM), "os.system"),
    "in-arguments": (call("argparse.Namespace", SYSTEM), "os.system"),
    "behind-a-stand-in": (many(NAMESPACE, SYSTEM), "os.system"),
    "pickle.loads": (call("pickle.loads", DATA), "pickle.loads"),
    "storage-from-bytes": (call("torch.storage._load_from_bytes", DATA), "torch.storage._load_from_bytes"),
    "runpy": (call("runpy._run_code", call("builtins.compile", OPEN, text("x"), text("exec")), b"}"), "runpy._run_code"),
    "timeit": (call("timeit.timeit", OPEN, text("pass"), name("time.perf_counter"), number(1)), "timeit.timeit"),
    "stack-global": (text("os") + text("system") + b"\x93" + many(TOUCH) + b"R", "operation STACK_GLOBAL"),
    "stack-global-dotted": (text("shutil") + text("os.system") + b"\x93" + many(TOUCH) + b"R", "operation STACK_GLOBAL"),
    "inst": (b"(" + TOUCH + b"ios\nsystem\n", "the pickle operation INST os system"),
    "obj": (call("builtins.list", b"(" + name("builtins.map") + name("os.system") + listed(TOUCH) + b"o"), "builtins.map"),
    "newobj": (call("builtins.list", name("builtins.map") + many(name("os.system"), listed(TOUCH)) + b"\x81"), "builtins.map"),
}

REACH, SIZE, SHAPE = "reaches outside of its storage", "for 4 elements", "an invalid shape"
HOOK = b"}" + text(CANARY) + number(1) + b"s"

# What would read or take memory that is not the file's, change an object of ours, or only confuse.
ODD: dict[str, tuple[bytes, str]] = {
    "eval-of-python-2": (call("__builtin__.eval", OPEN), "builtins.eval"),
    "torch.load": (call("torch.load", text("other.pt")), "torch.load"),
    "torch.hub": (call("torch.hub.load", text("someone/something"), text("model")), "torch.hub.load"),
    "torch.serialization": (call("torch.serialization.load", text("other.pt")), "torch.serialization.load"),
    "torch.jit": (call("torch.jit.load", text("other.pt")), "torch.jit.load"),
    "numpy.load": (call("numpy.load", text("other.npy")), "numpy.load"),
    "numpy.f2py": (call("numpy.f2py.compile", text("x")), "numpy.f2py.compile"),
    "nt": (call("nt.system", TOUCH), "nt.system"),
    "sparse": (call("torch._utils._rebuild_sparse_tensor", b"N", b")"), "torch._utils._rebuild_sparse_tensor"),
    "quantized": (call("torch._utils._rebuild_qtensor"), "torch._utils._rebuild_qtensor"),
    "meta": (call("torch._utils._rebuild_meta_tensor_no_storage"), "torch._utils._rebuild_meta_tensor_no_storage"),
    "tensor-subclass": (call("torch._tensor._rebuild_from_type_v2"), "torch._tensor._rebuild_from_type_v2"),
    "dotted-name": (name("collections.OrderedDict").replace(b"Dict", b"Dict.__init__.__globals__"), "__globals__"),
    "name-with-escapes": (b"cos\nsys\x1b[2Jtem\n", "os.sys\\x1b[2Jtem,"),
    "name-with-a-backslash": (b"cos\nsys\\qtem\n", "os.sys\\\\qtem,"),
    "name-of-a-number": (number(1) + text("system") + b"\x93", "the pickle operation STACK_GLOBAL"),
    "obj-of-a-stand-in": (b"(" + name("argparse.Namespace") + b"o", "the pickle operation OBJ"),
    "newobj-ex-of-a-stand-in": (name("argparse.Namespace") + b")}\x92", "the pickle operation NEWOBJ_EX"),
    "ext1": (b"\x82\x01", "the pickle operation EXT1"),
    "ext2": (b"\x83\x01\x00", "the pickle operation EXT2"),
    "ext4": (b"\x84\x01\x00\x00\x00", "the pickle operation EXT4"),
    "persid": (b"Pos.system\n", "the pickle operation PERSID"),
    "next-buffer": (b"\x97", "the pickle operation NEXT_BUFFER"),
    "class-of-a-dict": (ORDERED + attributes("__class__", name("argparse.Namespace")), "__class__ to be set on a dict"),
    "dict-of-a-dict": (ORDERED + attributes("__dict__", b"}"), "__dict__ to be set on a dict"),
    "slots-of-a-dict": (ORDERED + b"N" + HOOK + b"\x86b", "a state to be set on a dict"),
    "state-of-a-class": (name("collections.OrderedDict") + HOOK + b"b", "to be set on collections.OrderedDict"),
    "state-of-a-stand-in-class": (name("argparse.Namespace") + HOOK + b"b", "to be set on argparse.Namespace"),
    "state-of-a-tensor": (tensor(0, (4,), (1,)) + HOOK + b"b", "to be set on a tensor"),
    "call-of-a-tensor": (tensor(0, (4,), (1,)) + b")R", "a call of a tensor"),
    "call-of-a-stand-in": (NAMESPACE + b")R", "a call of a stand-in"),
    "call-of-a-string": (text("os.system") + b")R", "a call of a string"),
    "arguments-of-a-list": (name("collections.OrderedDict") + b"]R", "the arguments of collections.OrderedDict are a list"),
    "items-of-a-class": (
        name("argparse.Namespace") + text("a") + number(1) + b"s",
        "argparse.Namespace to be filled like a dict",
    ),
    "items-of-a-tensor": (tensor(0, (4,), (1,)) + number(0) + number(1) + b"s", "a tensor to be filled like a dict"),
    "dict-of-something": (call("collections.OrderedDict", b"]"), "a call of collections.OrderedDict with (a list)"),
    "object-scalar": (call("numpy.core.multiarray.scalar", OBJECTS, ENCODED), "a numpy.dtype is not of plain numbers"),
    "object-array": (ARRAY + many(number(1), many(number(1)), OBJECTS, b"\x89", listed(NAMESPACE)) + b"b", "an array of NumPy"),
    "object-array-of-bytes": (
        ARRAY + many(number(1), many(number(1)), OBJECTS, b"\x89", ENCODED) + b"b",
        "a numpy.dtype is not of plain numbers",
    ),
    "array-too-large": (ARRAY + many(number(1), many(number(2**40)), FLOATS, b"\x89", ENCODED) + b"b", "an array of NumPy"),
    "array-below-zero": (ARRAY + many(number(1), many(number(-1)), FLOATS, b"\x89", ENCODED) + b"b", "an array of NumPy"),
    "scalar-too-short": (
        call("numpy.core.multiarray.scalar", FLOATS, call("_codecs.encode", text("x"), text("latin1"))),
        "a number of NumPy has the wrong size",
    ),
    "codec": (call("_codecs.encode", text("x"), text("zip")), "a call of _codecs.encode with (a string, a string)"),
    "persistent-module": (
        persistent(text("module"), name("argparse.Namespace"), text("x.py"), text("x")),
        "an external object that is not a storage",
    ),
    "persistent-string": (text("0") + b"Q", "an external object that is not a storage"),
    "persistent-short": (persistent(text("storage")), "an external object that is not a storage"),
    "persistent-view": (
        storage()[:-2] + many(text("1"), number(0), number(4)) + b"tQ",
        "an external object that is not a storage",
    ),
    "storage-of-objects": (storage(kind="argparse.Namespace"), "a storage of argparse.Namespace"),
    "storage-of-another-type": (storage(kind="torch.QInt8Storage"), "torch.QInt8Storage"),
    "storage-below-zero": (storage(count=-1), "storage 0 has 0 bytes for -1 elements"),
    "storage-too-large": (storage(count=2**40), "bytes for 1099511627776 elements"),
    "storage-beyond-64-bits": (storage(count=2**70), "bytes for 1180591620717411303424 elements"),
    "storage-twice": (many(storage(), storage(count=2)), "storage 0 of two kinds"),
    "storage-as-two-types": (many(storage(), storage(kind="torch.IntStorage")), "storage 0 of two kinds"),
    "tensor-too-large": (tensor(0, (5,), (1,)), REACH),
    "tensor-behind-the-end": (tensor(4, (1,), (1,)), REACH),
    "tensor-far-strides": (tensor(0, (2, 2), (1, 2**40)), REACH),
    "tensor-repeated": (tensor(0, (2**40,), (0,)), REACH),
    "tensor-beyond-64-bits": (tensor(0, (2**62, 2**62), (0, 0)), REACH),
    "tensor-before-the-start": (tensor(-1, (1,), (1,)), SHAPE),
    "tensor-below-zero": (tensor(0, (-1,), (1,)), SHAPE),
    "tensor-backwards": (tensor(3, (4,), (-1,)), SHAPE),
    "tensor-without-strides": (tensor(0, (4,), ()), "a tensor has no shape"),
    "tensor-of-many-axes": (tensor(0, (1,) * 65, (1,) * 65), "a tensor has no shape"),
    "tensor-of-a-list": (tensor(0, (1,), (1,), b"]"), "a tensor has no storage"),
    "tensor-of-a-tensor": (tensor(0, (4,), (1,), tensor(0, (2, 2), (2, 1))), "a tensor has no storage"),
    "parameter-of-a-string": (
        call("torch._utils._rebuild_parameter", text("x"), b"\x89", b"}"),
        "a call of torch._utils._rebuild_parameter with (a string",
    ),
    "copies-of-a-set": (listed(*map(number, range(300))) + b"q\0(" + call("builtins.set", b"h\0") * 99 + b"t", "more than"),
    "copies-of-bytes": (text("x" * 5000) + b"q\0(" + call("_codecs.encode", b"h\0", text("latin1")) * 999 + b"t", "more than"),
    "key-of-a-tuple": (b"})" + b"\x85" * 100_000 + number(1) + b"s", "a tuple is a key"),
    "set-of-tuples": (call("builtins.set", listed(b")")), "a tuple is a key"),
    "key-without-a-value": (b"}(" + text("a") + b"u", "a key has no value"),
    "long-string": (b"\x8d" + struct.pack("<Q", 2**62), "expected 4611686018427387904 bytes"),
    "long-bytes": (b"B" + struct.pack("<I", 2**31) + b"x", "expected 2147483648 bytes"),
    "long-number": (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x", "not enough data"),
    # What torch.load(weights_only=True) would call by itself.
    "bytearray-of-a-size": (call("builtins.bytearray", number(2**40)), "builtins.bytearray"),
    "storage-of-a-size": (call("torch.storage.UntypedStorage", number(2**40)), "torch.storage.UntypedStorage"),
    "tensor-of-a-size": (call("torch.Tensor", number(2**30), number(2**30)), "torch.Tensor"),
    "counter": (call("collections.Counter", text("x" * 99)), "collections.Counter"),
    "wrapper-subclass": (call("torch._utils._rebuild_wrapper_subclass"), "torch._utils._rebuild_wrapper_subclass"),
    "bytes-that-double": (
        call("_codecs.encode", call("_codecs.encode", text("x"), text("hex")), text("hex")),
        "_codecs.encode",
    ),
    "size-of-strings": (call("torch.Size", many(text("x"))), "a call of torch.Size with (a tuple)"),
    "frozenset-of-a-string": (call("builtins.frozenset", text("x")), "a call of builtins.frozenset"),
    "tensor-with-metadata": (
        call("torch._utils._rebuild_tensor_v2", storage(), number(0), many(number(4)), many(number(1)), b"\x89", ORDERED, b"}"),
        "a tensor with metadata",
    ),
    "parameter-with-private-attributes": (
        call(
            "torch._utils._rebuild_parameter_with_state",
            tensor(0, (4,), (1,)),
            b"\x89",
            ORDERED,
            b"}" + text("__class__") + b"Ns",
        ),
        "a parameter with private attributes",
    ),
    "list-of-a-stand-in-with-a-state": (
        NAMESPACE + b"]b" + number(1) + b"a" + HOOK + b"b",
        "objects that torch.load does not restore",
    ),
    "unknown-memo": (b"h\x07", "KeyError"),
    "empty-stack": (b"\x87", "the stack is empty"),
    "unknown-operation": (b"\xff", "opcode"),
}
CASES = LIVE | ODD


def zipped(path: Path, payload: bytes = b"N", **options: int) -> Path:
    return archived(path, {"model/data.pkl": pickled(payload), "model/version": b"3\n", "model/data/0": bytes(16)}, **options)


def archived(path: Path, records: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:  # type: ignore[call-overload]
        for record, data in records.items():
            archive.writestr(record, data)
    return path


def legacy(path: Path, payload: bytes = b"N", little: bool = True, keys: object = None, count: int = 4) -> Path:
    """A file of the format before torch 1.6; its storages are those that the payload uses, unless `keys` says otherwise."""
    keys = (("0",) if b"storage" in payload else ()) if keys is None else keys
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {}}
    header = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, system)]
    numbers = pickle.dumps(keys, 2) + struct.pack("<q", count) + bytes(16)
    path.write_bytes(b"".join(header) + pickled(payload) + numbers)
    return path


def overlapping(path: Path) -> Path:
    """A bomb without compression: many names for the same bytes."""
    archived(path, {"model/data.pkl": PICKLE, "model/data/0": bytes(10**5)})
    with zipfile.ZipFile(path, "a") as archive:
        for copy in range(1, 99):
            info = copy_of(archive.getinfo("model/data/0"))
            info.filename = f"model/data/{copy}"
            archive.filelist.append(info)
        archive._didModify = True  # type: ignore[attr-defined]
    return path


def torchscript(path: Path) -> Path:
    records = {"model/data.pkl": pickled(b"N"), "model/constants.pkl": pickled(b")"), "model/code/__torch__.py": b"import os"}
    return archived(path, records)


def tarred(path: Path) -> Path:
    """The oldest format, with links and paths as a hostile file may have."""
    with tarfile.open(path, "w") as archive:
        for member in ("storages", "tensors", "pickle", f"../{CANARY}"):
            info = tarfile.TarInfo(member)
            info.size = len(pickled(SYSTEM))
            archive.addfile(info, io.BytesIO(pickled(SYSTEM)))
    return path


def edited(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def cut(path: Path, kept: int) -> Path:
    path.write_bytes(path.read_bytes()[:kept])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


PICKLE = pickled(b"N")
USED = tensor(0, (4,), (1,))
FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip-compressed": (lambda p: zipped(p, compression=zipfile.ZIP_DEFLATED), "the compressed record model/data.pkl"),
    "zip-bomb": (
        lambda p: archived(p, {"m/data.pkl": PICKLE, "m/data/0": bytes(10**7)}, compression=zipfile.ZIP_BZIP2), "compressed"
    ),
    "zip-overlapping": (overlapping, "overlapping records"),
    "zip-encrypted": (lambda p: edited(zipped(p), b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), "compressed"),
    "zip-above": (lambda p: archived(p, {"m/data.pkl": PICKLE, f"m/../../{CANARY}": b""}), "a record named m/../../canary"),
    "zip-absolute": (lambda p: archived(p, {"/data.pkl": PICKLE}), "a record named /data.pkl"),
    "zip-two-folders": (lambda p: archived(p, {"m/data.pkl": PICKLE, "n/data.pkl": PICKLE}), "a record named n/data.pkl"),
    "zip-twice": (
        lambda p: edited(archived(p, {"m/data.pkl": PICKLE, "m/data.pk2": PICKLE}), b"pk2", b"pkl"), "a record named m/data.pkl"
    ),
    "zip-of-something": (lambda p: archived(p, {"word/document.xml": b"<x/>"}), "not a file of torch.save"),
    "zip-big-endian": (lambda p: archived(p, {"m/data.pkl": PICKLE, "m/byteorder": b"big"}), "big-endian"),
    "zip-without-a-storage": (lambda p: archived(p, {"m/data.pkl": pickled(USED)}), "storage 0 has 0 bytes for 4 elements"),
    "zip-storage-above": (lambda p: zipped(p, storage(key="../data.pkl")), "has 0 bytes for 4 elements"),
    "zip-with-a-record-outside": (lambda p: edited(zipped(p), b"\x10\0\0\0" * 2, b"\x99\x99\0\0" * 2), "outside"),
    "zip-cut": (lambda p: cut(zipped(p, USED), 200), "is damaged"),
    "torchscript": (torchscript, "TorchScript"),
    "tar": (tarred, "the tar format"),
    "legacy-cut": (lambda p: cut(legacy(p, USED), -4), "is damaged"),
    "legacy-cut-in-the-pickle": (lambda p: cut(legacy(p, USED), 150), "is damaged"),
    "legacy-big-endian": (lambda p: legacy(p, USED, little=False), "big-endian"),
    "legacy-without-a-storage": (lambda p: legacy(p, USED, keys=()), "its storages are not those of its tensors"),
    "legacy-storage-of-no-tensor": (lambda p: legacy(p, keys=("0",)), "its storages are not those of its tensors"),
    "legacy-storage-twice": (lambda p: legacy(p, USED, keys=("0", "0")), "its storages are not those of its tensors"),
    "legacy-keys-of-a-number": (lambda p: legacy(p, USED, keys=7), "is damaged"),
    "legacy-count": (lambda p: legacy(p, USED, count=2**60), "storage 0 has 1152921504606846976 elements instead of 4"),
    "pickle": (lambda p: written(p, PICKLE), "not a file of torch.save"),
    "hostile-pickle": (lambda p: written(p, pickled(SYSTEM)), "os.system"),
    "text": (lambda p: written(p, b"<!DOCTYPE html><title>404</title>"), "not a file of torch.save"),
    "empty": (lambda p: written(p, b""), "not a file of torch.save"),
}  # fmt: skip
