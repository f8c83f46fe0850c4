"""Writers of feature files: safetensors, npy with a JSON file beside it, and parquet, each shard by shard in bounded memory.

Shapes: n inputs, N positions of all inputs together, L layers, D width.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data2vec.atomic_io import atomic_write, write_text
from data2vec.settings import JsonDict


@dataclass(frozen=True)
class FeatureTable:
    """The content of a feature file."""

    hidden: Iterable[tuple[np.ndarray, int]]
    """Shards, (rows, L, D) float32, and the number of inputs in each."""
    shape: tuple[int, ...]
    """Of all shards together: (N, [L,] D), or if pooled (n, [L,] D)."""
    pooled: bool
    lengths: np.ndarray
    """(n,) int64"""
    names: list[str]
    metadata: JsonDict
    """Settings and reasons of unreadable inputs, JSON values."""
    columns: Callable[[int, int], JsonDict]
    """The dataset's own columns of a range of inputs, as Arrow arrays; only written to parquet."""

    @property
    def offsets(self) -> np.ndarray:
        """(n+1,) boundaries of the inputs among the positions."""
        return np.concatenate([[0], self.lengths.cumsum()])


def write_features(path: Path, table: FeatureTable) -> None:
    """Write the file atomically, in the format of its extension."""
    with atomic_write(path) as tmp:
        WRITERS[path.suffix](tmp, table)
    if path.suffix == ".npy":
        sidecar = table.metadata | {"names": table.names, "lengths": table.lengths.tolist()}
        text = json.dumps(sidecar, indent=1, ensure_ascii=False)
        write_text(path.with_name(f"{path.name}.json"), text)


def _npy(path: Path, table: FeatureTable) -> None:
    with open(path, "wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": table.shape}
        np.lib.format.write_array_header_1_0(file, head)
        for rows, _ in table.hidden:
            rows.astype("<f4", copy=False).tofile(file)


def _safetensors(path: Path, table: FeatureTable) -> None:
    """Written without the library, which needs all tensors in memory: header length, JSON header, tensors."""
    small = {"lengths": table.lengths.astype("<i8"), "offsets": table.offsets.astype("<i8")}
    names = json.dumps(table.names, ensure_ascii=False).encode()
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in table.metadata.items()}
    header: JsonDict = {"__metadata__": metadata}
    end = 0

    def declare(name: str, kind: str, shape: tuple[int, ...], size: int) -> None:
        nonlocal end
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": (end, end := end + size)}

    for name, array in small.items():
        declare(name, "I64", array.shape, array.nbytes)
    declare("hidden", "F32", table.shape, 4 * int(np.prod(table.shape)))
    declare("names", "U8", (len(names),), len(names))
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in small.values():
            file.write(array.tobytes())
        for rows, _ in table.hidden:
            file.write(rows.astype("<f4", copy=False).data)
        file.write(names)


def _parquet(path: Path, table: FeatureTable) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in table.metadata.items()}
    writer, first = None, 0
    for rows, count in table.hidden:
        lengths, offsets = table.lengths[first : first + count], table.offsets[first : first + count + 1]
        features: Any = pa.array(rows.reshape(-1))
        for size in reversed(table.shape[1:]):
            features = _nested(features, np.arange(0, len(features) + 1, size))
        features = features if table.pooled else _nested(features, offsets - offsets[0])
        columns = {
            "name": table.names[first : first + count],
            "length": lengths,
            "seconds_per_position": pa.array([table.metadata["seconds_per_position"]] * count, pa.float64()),
            "features": pc.if_else(pa.array(lengths > 0), features, pa.scalar(None, features.type)),
        }
        rows_table = pa.table({**table.columns(first, first + count), **columns}).replace_schema_metadata(metadata)
        writer = writer or pq.ParquetWriter(path, rows_table.schema, use_dictionary=["name"])
        writer.write_table(rows_table)
        first += count
    if writer is not None:
        writer.close()


def _nested(values: Any, offsets: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


WRITERS: dict[str, Callable[[Path, FeatureTable], None]] = {".safetensors": _safetensors, ".npy": _npy, ".parquet": _parquet}
