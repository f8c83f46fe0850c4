"""The forms of a file of features: safetensors, npy with a json beside it, parquet. Each is written part by part.

Shapes: n inputs, N positions of all of them, one input after the other, L layers, D width.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.atomic_io import atomic_write


@dataclass(frozen=True)
class Content:
    """All that goes into the file."""

    hidden: Iterable[tuple[np.ndarray, int]]
    """Parts, (rows, L, D) float32, and of how many inputs each is."""
    shape: tuple[int, ...]
    """Of all parts together: (N, [L,] D), or pooled (n, [L,] D)."""
    pooled: bool
    lengths: np.ndarray
    """(n,) int64"""
    names: list[str]
    about: dict[str, Any]
    """Settings and what is unreadable, fit for JSON."""
    columns: Callable[[int, int], dict[str, Any]]
    """The data's own columns of a range of inputs, as Arrow arrays; only parquet has them."""

    @property
    def offsets(self) -> np.ndarray:
        """(n+1,) where the positions of each input begin and end."""
        return np.concatenate([[0], self.lengths.cumsum()])


def write(path: Path, content: Content) -> None:
    """The file in the form that its ending says, whole or not at all."""
    with atomic_write(path) as tmp:
        FORMS[path.suffix](tmp, content)
    if path.suffix == ".npy":
        beside = content.about | {"names": content.names, "lengths": content.lengths.tolist()}
        text = json.dumps(beside, indent=1, ensure_ascii=False)
        with atomic_write(path.with_name(f"{path.name}.json")) as tmp:
            tmp.write_text(text, encoding="utf-8")


def _npy(path: Path, content: Content) -> None:
    with open(path, "wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": content.shape}
        np.lib.format.write_array_header_1_0(file, head)
        for rows, _ in content.hidden:
            rows.astype("<f4", copy=False).tofile(file)


def _safetensors(path: Path, content: Content) -> None:
    """By hand, since the library needs all tensors in memory: the length of a JSON header, the header, the tensors."""
    small = {"lengths": content.lengths.astype("<i8"), "offsets": content.offsets.astype("<i8")}
    names = json.dumps(content.names, ensure_ascii=False).encode()
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.about.items()}
    header: dict[str, Any] = {"__metadata__": about}
    end = 0

    def announce(name: str, kind: str, shape: tuple[int, ...], size: int) -> None:
        nonlocal end
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (end, end := end + size)}

    for name, array in small.items():
        announce(name, "I64", array.shape, array.nbytes)
    announce("hidden", "F32", content.shape, 4 * int(np.prod(content.shape)))
    announce("names", "U8", (len(names),), len(names))
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in small.values():
            file.write(array.tobytes())
        for rows, _ in content.hidden:
            file.write(rows.astype("<f4", copy=False).data)
        file.write(names)


def _parquet(path: Path, content: Content) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    about = {key: json.dumps(value, ensure_ascii=False) for key, value in content.about.items()}
    writer, first = None, 0
    for rows, count in content.hidden:
        lengths, offsets = content.lengths[first : first + count], content.offsets[first : first + count + 1]
        features: Any = pa.array(rows.reshape(-1))
        for size in reversed(content.shape[1:]):
            features = _lists(features, np.arange(0, len(features) + 1, size))
        features = features if content.pooled else _lists(features, offsets - offsets[0])
        columns = {
            "name": content.names[first : first + count],
            "length": lengths,
            "seconds_per_position": pa.array([content.about["seconds_per_position"]] * count, pa.float64()),
            "features": pc.if_else(pa.array(lengths > 0), features, pa.scalar(None, features.type)),
        }
        table = pa.table({**content.columns(first, first + count), **columns}).replace_schema_metadata(about)
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=["name"])
        writer.write_table(table)
        first += count
    if writer is not None:
        writer.close()


def _lists(values: Any, offsets: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


FORMS: dict[str, Callable[[Path, Content], None]] = {".safetensors": _safetensors, ".npy": _npy, ".parquet": _parquet}
