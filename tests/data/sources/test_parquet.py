"""A row, a row group or a file of parquet that cannot be read is one bad example a row, named with file and row; the rest is
read. Data without a row that can be read is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from data2vec.data.audio import decode_audio
from data2vec.data.check.check import check
from data2vec.data.image import decode_image
from data2vec.data.sources.open_dataset import open_dataset
from data2vec.data.text import read_text
from data2vec.errors import CorruptExample, UserError

STREAMING = pytest.mark.parametrize("streaming", [False, True])
KINDS = pytest.mark.parametrize("kind", ["text", "image", "image as bytes", "audio", "decoded"])
ROWS = 12
"""Of a file, in row groups of 4."""


@pytest.fixture
def values(encoded: Callable[..., bytes], picture: Callable[..., Any]) -> Callable[[str], pa.Array]:
    """The column of a kind."""

    def make(kind: str) -> pa.Array:
        if kind == "text":
            return pa.array([f"text {i} " * 50 for i in range(ROWS)])
        if kind == "audio":
            rng = np.random.default_rng(0)
            return pa.array([{"bytes": rng.bytes(300), "path": f"{i}.wav"} for i in range(ROWS)])
        if kind == "decoded":
            return pa.array([{"array": [0.1 * i] * 100, "sampling_rate": 16000} for i in range(ROWS)])
        content = [encoded(picture(), "PNG") for _ in range(ROWS)]
        return pa.array(content if kind == "image as bytes" else [{"bytes": each, "path": None} for each in content])

    return make


def write(path: Path, column: pa.Array, name: str = "x", **options: Any) -> Path:
    table = pa.table({name: column, "number": range(len(column))})
    parquet.write_table(table, path, row_group_size=4, use_dictionary=False, **options)
    return path


def break_group(path: Path, group: int) -> None:
    """Overwrite the data of the first column of a row group."""
    column = parquet.ParquetFile(path).metadata.row_group(group).column(0)
    content = bytearray(path.read_bytes())
    start = column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)


def reason(row: dict[str, Any], kind: str) -> str:
    def read() -> object:
        if kind == "text":
            return list(read_text(row))
        return decode_image(row["image"]) if kind.startswith("image") else decode_audio(row["audio"])

    with pytest.raises(CorruptExample) as raised:
        read()
    return str(raised.value)


def rows_of(path: Path, kind: str, streaming: bool) -> list[dict[str, Any]]:
    signal: Any = {"image as bytes": "image", "decoded": "audio"}.get(kind, kind)
    rows = list(open_dataset(str(path), signal, streaming=streaming, column="x"))
    return sorted(rows, key=lambda row: (row["number"] is None, row["number"]))


def content_of(row: dict[str, Any], kind: str) -> Any:
    if kind == "text":
        return row["text"]
    return row["audio"]["array"] if kind == "decoded" else row["image" if kind.startswith("image") else kind]["bytes"]


@STREAMING
@KINDS
def test_rows_of_a_broken_row_group_are_bad_examples_and_the_others_are_read(
    tmp_path: Path, values: Callable[[str], pa.Array], kind: str, streaming: bool
) -> None:
    path = write(tmp_path / "a.parquet", values(kind))
    whole = rows_of(path, kind, streaming)
    break_group(path, 1)
    rows = rows_of(path, kind, streaming)
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 8, 9, 10, 11, *[None] * 4]
    assert [content_of(row, kind) for row in rows[:8]] == [content_of(row, kind) for row in whole[:4] + whole[8:]]
    for number, row in enumerate(rows[8:], 5):
        assert reason(row, kind).startswith(f"{path}, row {number}: row group 2 is damaged (")


@STREAMING
def test_broken_first_row_group_of_paths_hides_no_column(tmp_path: Path, streaming: bool) -> None:
    for number in range(ROWS):
        (tmp_path / f"{number}.png").write_bytes(b"")
    break_group(path := write(tmp_path / "a.parquet", pa.array([f"{i}.png" for i in range(ROWS)]), "file_name"), 0)
    rows = list(open_dataset(str(path), "image", streaming=streaming))
    bad = [row["image"] for row in rows if row["image"]["unreadable_because"]]
    assert len(rows) == ROWS and [each["path"] for each in bad] == [f"{path}, row {number}" for number in (1, 2, 3, 4)]


@STREAMING
@KINDS
def test_null_is_a_bad_example_named_with_its_row(
    tmp_path: Path, values: Callable[[str], pa.Array], kind: str, streaming: bool
) -> None:
    mask = np.arange(ROWS) == 6
    column = values(kind)
    path = write(
        tmp_path / "a.parquet", column.filter(pa.array(~mask)).take(pa.array(np.where(mask, None, np.cumsum(~mask) - 1)))
    )
    row = rows_of(path, kind, streaming)[6]
    assert reason(row, kind).startswith(f"{path}, row 7: ")
    assert "no such file" not in reason(row, kind)


@STREAMING
def test_text_that_is_not_utf_8_is_one_bad_example(tmp_path: Path, streaming: bool) -> None:
    content = pa.array([b"one", b"caf\xe9", b"three"]).view(pa.string())
    path = write(tmp_path / "a.parquet", content)
    rows = list(open_dataset(str(path), "text", streaming=streaming, column="x"))
    assert [row["text"] for row in rows] == ["one", None, "three"]
    assert reason(rows[1], "text").startswith(f"{path}, row 2: a cell is no value of its column (")


@STREAMING
def test_page_with_a_wrong_checksum_is_damaged(tmp_path: Path, streaming: bool) -> None:
    path = write(
        tmp_path / "a.parquet", pa.array([f"text {i}" for i in range(ROWS)]), write_page_checksum=True, compression="none"
    )
    content = path.read_bytes()
    path.write_bytes(content.replace(b"text 5", b"test 5", 1))
    rows = rows_of(path, "text", streaming)
    assert [row["number"] for row in rows] == [0, 1, 2, 3, 8, 9, 10, 11, *[None] * 4]
    assert "checksum" in reason(rows[-1], "text") or "CRC" in reason(rows[-1], "text")


@STREAMING
def test_file_that_is_no_parquet_is_one_bad_example_beside_others(tmp_path: Path, streaming: bool) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.parquet", pa.array([f"{name} {i}" for i in range(ROWS)]))
    whole = (tmp_path / "b.parquet").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no table", whole[:-20] + b"\xff" * 12 + whole[-8:]):
        (tmp_path / "b.parquet").write_bytes(damaged)
        rows = rows_of(tmp_path, "text", streaming)
        assert len(rows) == 2 * ROWS + 1
        assert reason(rows[-1], "text").startswith(f"{tmp_path / 'b.parquet'}: not a complete parquet file (")
    (part,) = check(str(tmp_path), workers=0, column="x", kind="text").parts
    assert part.examples == 2 * ROWS + 1 and len(part.unreadable) == 1 and "b.parquet: not a complete" in part.unreadable[0]


@STREAMING
def test_data_without_a_file_that_can_be_opened_is_refused_in_one_line(tmp_path: Path, streaming: bool) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_bytes(b"no table")
    with pytest.raises(
        UserError, match=r"has no file that can be read: .*a\.parquet: not a complete parquet file \(.*\); copy"
    ):
        open_dataset(str(tmp_path), "text", streaming=streaming)


def test_data_without_a_row_that_can_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([f"text {i}" for i in range(ROWS)]))
    for group in range(3):
        break_group(path, group)
    with pytest.raises(UserError, match=r"a\.parquet, row 1: row group 1 is damaged \(.*\); no row can be read; copy"):
        open_dataset(str(path), "text", column="x")


def test_row_groups_are_shards_and_a_damaged_file_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.array([f"text {i}" for i in range(ROWS)]))
    (tmp_path / "b.parquet").write_bytes(b"no table")
    rows = open_dataset(str(tmp_path), "text", streaming=True, column="x").reshard()
    assert rows.num_shards == 4
    assert [len(list(rows.shard(4, index))) for index in range(4)] == [4, 4, 4, 1]


@STREAMING
def test_one_url_among_paths_is_one_bad_example(
    tmp_path: Path, streaming: bool, encoded: Callable[..., bytes], picture: Callable[..., Any]
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture(), "PNG"))
    url = "https://host/b.png"
    path = write(tmp_path / "t.parquet", pa.array(["a.png", url, "a.png"]), "file_name")
    (tmp_path / "t.csv").write_text(f"file_name\na.png\n{url}\na.png\n")
    for table in (path, tmp_path / "t.csv"):
        rows = [row["image"] for row in open_dataset(str(table), "image", streaming=streaming)]
        bad = [each for each in rows if each["unreadable_because"]]
        assert len(rows) == 3 and len(bad) == 1 and "URL" in reason({"image": bad[0]}, "image")
        assert "download it" in bad[0]["unreadable_because"]
