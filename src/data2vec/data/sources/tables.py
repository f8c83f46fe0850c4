"""Tables as columns: csv and tsv, whose cells are text as written; jsonl and parquet, which have types."""

import csv
import json
import os
import re
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data2vec.data.dataset import UNREADABLE, Row
from data2vec.data.sources.columns import KNOWN_COLUMNS, NoSignal, find_column
from data2vec.data.sources.formats import JSON_LINES, MANIFESTS, PARQUET, is_utf8, utf8
from data2vec.data.sources.parquet.blocks import DamagedParquet, open_parquet, read_blocks
from data2vec.data.sources.remote import open_binary, require_file
from data2vec.errors import UserError

ArrowTable = Any
"""A `pyarrow.Table`; the library has no type stubs."""
PEEKED_ROWS = 1000
"""Rows in which the column of the signal is looked for."""
LONGEST_NAME = 4
"""The words of a column's name at most; more are a text."""
_MANIFEST_LINE = re.compile(r"([^\t]+)\t(\d+)")
FIRST_LINE_BYTES = 2**16
"""A longer first line of a .json file is no line of a table."""
BLOCK_ROWS = 10_000
"""Rows of a text table that are made columns at a time."""
MAX_SEARCHED_LINES = 10_000_000
"""Lines of a text table that are read again, as a quote before them is not closed."""
SEPARATORS = (";", "|", "\t", ",")
"""What separates columns, if a header has only one."""
NOT_UTF8 = "not UTF-8"
_REPAIR = {
    ".csv": "separate cells by commas, put cells with commas, quotes or line breaks in double quotes, and save it as UTF-8",
    ".tsv": "separate cells by tabs, and save it as UTF-8",
}


@dataclass(frozen=True)
class Table:
    """A table whose rows are all there: of a broken one every cell is null."""

    path: Path
    columns: ArrowTable
    lines: Sequence[int] | None
    """The line of each row, from 1; None: a format without lines."""
    broken: dict[int, str]
    """Why a row cannot be read, by its index."""

    def name(self, index: int) -> str:
        """What names a row in messages: FILE:LINE."""
        place = f", row {index + 1}" if self.lines is None else f":{self.lines[index]}"
        return f"{utf8(str(self.path))}{place}"

    def refuse_if_mostly_broken(self) -> None:
        """Raise UserError if more than half of the rows are broken, so that the file is likely to be no such table."""
        if 2 * len(self.broken) > self.columns.num_rows:
            index, why = min(self.broken.items())
            number = f"{len(self.broken)} of {self.columns.num_rows} rows"
            repair = _REPAIR.get(self.path.suffix.lower(), "repair or remove them")
            raise UserError(f"{self.path}: {number} cannot be read, such as {self.name(index)}: {why}; {repair}")


def read_table(path: Path) -> Table:
    """A csv, tsv, jsonl or parquet file, or one of JSON lines that ends in .json.

    Raises UserError for a malformed one: text of which more than half of the rows are broken, parquet of which all are."""
    require_file(path)
    if path.name.lower().endswith(PARQUET):
        return _read_parquet(path)
    table = _read_records(path) if path.name.lower().endswith((*JSON_LINES, *MANIFESTS)) else _read_text_table(path)
    table.refuse_if_mostly_broken()
    return table


def unwrapped(value: Any) -> Any:
    """The element of a list of one; any other value itself."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def first_values(path: Path) -> dict[str, list[str]]:
    """The text in the first rows of a table, by column, without reading all of it; empty if it is malformed."""
    require_file(path)
    if path.name.lower().endswith(PARQUET):
        return _first_of_parquet(path)
    if path.name.lower().endswith(MANIFESTS) and not _has_json_lines(path):
        return {}
    if path.name.lower().endswith((*JSON_LINES, *MANIFESTS)):
        records = [fields for _, fields in islice(_json_lines(str(path)), PEEKED_ROWS) if fields is not None]
        names = dict.fromkeys(name for fields in records for name in fields)
        columns = {name: [unwrapped(fields.get(name)) for fields in records] for name in names}
        return {name: [value for value in column if isinstance(value, str)] for name, column in columns.items()}
    header, *rows = [*islice(_text_rows(path), PEEKED_ROWS + 1)] or [_TextRow(1, [])]
    readable = [row.cells for row in rows if row.problem is None]
    return {} if header.problem else {name: list(column) for name, *column in zip(header.cells, *readable, strict=True)}


def read_manifest(path: Path, rows: int | None = None) -> Table | None:
    """The columns file_name and samples of a manifest of fairseq, whose first line is a folder and whose others are the path of
    an audio file in it and its number of samples; None for any other table. `rows`: how many to read, all by default.

    Paths are below the folder, or without it if it is not on this machine. Other lines are broken."""
    import pyarrow as pa

    if path.suffix.lower() != ".tsv":
        return None
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        root, first = file.readline().rstrip("\n"), file.readline().rstrip("\n")
        if not is_utf8(root) or "\t" in root or (root != "." and "/" not in root) or not _MANIFEST_LINE.fullmatch(first):
            return None
        texts = [first, *(line.rstrip("\n") for line in islice(file, None if rows is None else rows - 1))]
    lines = [number for number, text in enumerate(texts, 2) if text.strip()]
    found = [match if is_utf8(text) and (match := _MANIFEST_LINE.fullmatch(text)) else None for text in texts if text.strip()]
    broken = {i: "not a path, a tab and a number of samples in UTF-8" for i, match in enumerate(found) if not match}
    base = root if os.path.isdir(path.parent / root) else ""
    names = [str(Path(base, match[1])) if match else None for match in found]
    samples = [match[2] if match else None for match in found]
    return Table(path, pa.table({"file_name": pa.array(names, pa.string()), "samples": samples}), lines, broken)


def _first_of_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow as pa

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)

    def first(file: Any, field: Any) -> Any:
        """The first values of the first row group that can be read."""
        # Content may be large: one row is enough.
        rows = PEEKED_ROWS if is_text(field.type) else 1 if _is_signal(field.type) else 0
        for group in range(file.num_row_groups) if rows else ():
            with suppress(pa.ArrowException, OSError):
                if (batch := next(file.iter_batches(rows, row_groups=[group], columns=[field.name]), None)) is not None:
                    batch.validate(full=True)
                    return _paths(batch.column(0)).to_pylist()
        return []

    try:
        with open_parquet(str(path)) as file:
            values = {field.name: first(file, field) for field in file.schema_arrow}
    except DamagedParquet:
        return {}
    return {name: [value for value in column if isinstance(value, str) and value] for name, column in values.items()}


def _has_json_lines(path: Path) -> bool:
    """Whether the first line of a file is a JSON object, without reading a file of one long line."""
    with open(path, "rb") as file:
        line = file.readline(FIRST_LINE_BYTES)
    try:
        return isinstance(json.loads(line.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False


def _is_signal(kind: Any) -> bool:
    """Whether a type is {"bytes", "path"}."""
    import pyarrow as pa

    return pa.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(index).name for index in range(kind.num_fields)}


def _paths(column: Any) -> Any:
    """The paths of a column of {"bytes", "path"} without bytes; another column as it is."""
    import pyarrow.compute as pc

    if not _is_signal(column.type) or pc.struct_field(column, "bytes").null_count < len(column):
        return column
    return pc.struct_field(column, "path")


def concat_tables(tables: Sequence[ArrowTable], names: Sequence[str]) -> ArrowTable:
    """Tables one after another; a column that one of them lacks is null there. Raises UserError for different types."""
    import pyarrow as pa

    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowInvalid as error:
        raise UserError(f"{', '.join(names)}: a column has different types in them: {error}") from None


def name_broken(table: ArrowTable, broken: Mapping[int, tuple[str, str | None]]) -> ArrowTable:
    """The table of texts with (name, why it cannot be read) of some rows, in the columns `path` and `UNREADABLE`, which are
    added."""
    import pyarrow as pa

    for column, part in (("path", 0), (UNREADABLE, 1)):
        is_text = column in table.column_names and pa.types.is_string(table.schema.field(column).type)
        values = table[column].to_pylist() if is_text else [None] * table.num_rows
        for index, about in broken.items():
            values[index] = about[part]
        table = rename_column(table, column) if not is_text else table.drop_columns([column])
        table = table.append_column(column, pa.array(values, pa.string()))
    return table


def rename_column(table: ArrowTable, name: str) -> ArrowTable:
    """The table with another name for a column `name`, which is needed for something else."""
    names = [f"original_{name}" if column == name else column for column in table.column_names]
    return table.rename_columns(names).replace_schema_metadata(table.schema.metadata) if name in table.column_names else table


def _read_text_table(path: Path) -> Table:
    """A csv (with quoting) or tsv file (without quoting or escapes); all columns are text as written."""
    import pyarrow as pa

    rows = _text_rows(path)
    header = next(rows, _TextRow(1, []))
    if header.problem:
        raise UserError(f"{path}: its first line: {header.problem}; {_REPAIR[path.suffix.lower()]}")
    names = header.cells
    if not names:
        raise UserError(f"{path} is empty: its first line must name the columns")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{path} has several columns {twice[0]!r}; rename or remove all but one")
    if len(names) == 1 and (mark := next((mark for mark in SEPARATORS if mark in names[0]), None)):
        raise UserError(
            f"{path} seems to be separated by {mark!r}, as its only column is {names[0][:50]!r}; {_REPAIR[path.suffix.lower()]}"
        )
    schema = pa.schema([(name, pa.string()) for name in names])
    lines, broken, parts = array("q"), dict[int, str](), [schema.empty_table()]
    while block := list(islice(rows, BLOCK_ROWS)):
        broken |= {len(lines) + index: row.problem for index, row in enumerate(block) if row.problem}
        lines.extend(row.line for row in block)
        cells = [[None] * len(names) if row.problem else row.cells for row in block]
        parts.append(pa.table([pa.array(column, pa.string()) for column in zip(*cells, strict=True)], schema))
    return Table(path, pa.concat_tables(parts), lines, broken)


def refuse_text_as_header(names: Sequence[str], path: Path) -> None:
    """Raise UserError if the first line of a text table seems to be a text, and no column has a known name."""
    if {*names} & {*KNOWN_COLUMNS["text"]}:
        return
    if text := next((name for name in names if len(name.split()) > LONGEST_NAME or name.rstrip().endswith((".", "!"))), None):
        raise UserError(
            f"{path} seems to have no header, as its first line has {text[:50]!r}: add one that names the columns, such as "
            "text,label; or name the column with the text by data.column, if this line is the header"
        )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lets the csv module read fields of any length."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


class _TextRow(NamedTuple):
    line: int
    cells: list[str]
    problem: str | None = None
    """Why it cannot be read; then it has no cells."""


def _text_rows(path: Path) -> Iterator[_TextRow]:
    """The rows of a csv (with quoting) or tsv file (without), the header first, without blank ones.

    A broken row ends with its line, even if a quote in it is not closed, so that it takes no other rows with it. Raises
    UserError if too many lines were read in search of the end of quotes."""
    tabs = path.suffix.lower() == ".tsv"
    unread, read = deque[str](), list[str]()
    width, line, searched = 0, 1, 0
    with _long_fields(), open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:

        def new_reader() -> Iterator[list[str]]:
            lines = iter(lambda: unread.popleft() if unread else file.readline(), "")
            recorded = (read.append(each) or each for each in lines)  # type: ignore[func-returns-value]
            if tabs:
                return csv.reader(recorded, delimiter="\t", quoting=csv.QUOTE_NONE)
            return csv.reader(recorded, strict=True)

        reader = new_reader()
        while True:
            read.clear()
            try:
                cells = next(reader)
                problem = f"it has {_cells(len(cells))}, not {width}" if width and cells and len(cells) != width else None
            except StopIteration:
                return
            except csv.Error:
                cells, problem = [], "its quotes do not match"
            if problem and len(read) > 1:
                unread.extendleft(reversed(read[1:]))
                searched += len(read) - 1
                del read[1:]
                reader = new_reader()
                if searched > MAX_SEARCHED_LINES:
                    raise UserError(f"{path}:{line} and lines before it have quotes that are not closed; close them")
            if tabs and width == 1 and not cells and not problem:
                cells = [""]
            if problem is None and not is_utf8("".join(cells)):
                problem = NOT_UTF8
            cells = cells if width else list(map(column_name, cells))
            if cells or problem:
                yield _TextRow(line, [] if problem else cells, problem)
            width = width or len(cells)
            line += len(read)


def column_name(name: str) -> str:
    """The name of a column as a table can hold it, which ends at a NUL."""
    return name.replace("\0", r"\x00")


def _cells(number: int) -> str:
    return f"{number} cell{'s' * (number != 1)}"


def _read_parquet(path: Path) -> Table:
    """Dictionary-encoded columns are decoded, views become strings. Raises UserError if no row can be read."""
    import pyarrow as pa

    blocks = list(read_blocks(str(path)))
    broken = {block.start + i: block.problem for block in blocks if block.problem for i in range(block.rows)}
    batches = [block.batch for block in blocks if block.batch is not None]
    if broken and not batches:
        raise UserError(f"{path}: no row can be read: {min(broken.items())[1]}; copy or create it again")
    with open_parquet(str(path)) as file:
        schema = file.schema_arrow
    parts = [
        pa.Table.from_arrays([pa.nulls(block.rows, field.type) for field in schema], schema=schema)
        if block.batch is None
        else pa.Table.from_batches([block.batch])
        for block in blocks
    ]
    return Table(path, _plain(pa.concat_tables(parts) if parts else schema.empty_table()), None, broken)


def _plain(table: ArrowTable) -> ArrowTable:
    """The table without dictionaries and views, and with paths in place of signals without content."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
        if pa.types.is_string_view(table.schema.field(index).type):
            table = table.set_column(index, field.name, table.column(index).cast(pa.large_string()))
        table = table.set_column(index, field.name, _paths(table.column(index)))
    return table


def _read_records(path: Path) -> Table:
    lines, broken = array("q"), dict[int, str]()

    def records() -> Iterator[Row]:
        for line, fields in _json_lines(str(path)):
            if fields is None:
                broken[len(lines)] = "not a JSON object in UTF-8"
            lines.append(line)
            yield fields or {}

    return Table(path, record_columns(records()), lines, broken)


def _json_lines(path: str) -> Iterator[tuple[int, Row | None]]:
    """(number, object) of the lines of a jsonl file or URL that are not blank; None for one that is no JSON object."""
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    fields = json.loads(text)
                    if "\\u" in text:
                        json.dumps(fields, ensure_ascii=False).encode()  # half of a surrogate pair is no text
                    is_object = isinstance(fields, dict)
                    yield number, {column_name(name): value for name, value in fields.items()} if is_object else None
            except (ValueError, RecursionError):  # RecursionError: nested too deeply
                yield number, None


def find_text_column(files: Sequence[str], column: str | None, where: str) -> str:
    """The field of jsonl files that holds the text: `column`, a known name, or the only one with text, in the first lines."""
    seen: dict[str, bool] = {}
    lines = (fields for path in files for _, fields in _json_lines(path) if fields is not None)
    for fields in islice(lines, PEEKED_ROWS):
        seen |= {name: seen.get(name, False) or isinstance(value, str) for name, value in fields.items()}
    if not seen:
        raise NoSignal(f"{where}: no line of {Path(files[0]).name} is a JSON object in UTF-8")
    candidates = {name: "text" for name, is_text in seen.items() if is_text}
    return find_column(candidates, "text", column, where, seen)


def read_json_lines(files: Sequence[tuple[str, str]], column: str) -> Iterator[Row]:
    """Rows of jsonl files, given as (path or URL, version): `text`, the field `column`; `path`, the file and line; and the
    others as `fields`, in JSON. A line that cannot be parsed, or without a text, gives a row without text."""
    for path, _ in files:
        for number, fields in _json_lines(path):
            text = (fields or {}).pop(column, None)
            text = text if isinstance(text, str) else None
            yield {"text": text, "path": f"{utf8(path)}:{number}", "fields": json.dumps(fields or {})}


def stream_json_lines(label: str, **arguments: Any) -> Iterator[Row]:
    """`read_json_lines(**arguments)` for streams, whose rows have the same columns: `text`, `path`, `label` and `split`.

    `label`: the field that is the label."""
    for row in read_json_lines(**arguments):
        yield row | stream_fields(row.pop("fields"), label)


def stream_fields(fields: str, label: str) -> Row:
    """The columns of a stream that come from fields, given as JSON: `label` and `split`, as text; None if it is no class."""
    values = json.loads(fields)
    found = {"label": values.get(label), "split": values.get("split")}
    return {name: str(value) if isinstance(value, str | int) else None for name, value in found.items()}


def record_columns(records: Iterable[Mapping[str, Any]]) -> ArrowTable:
    """A table of all keys of the records, null where a record has none.

    Numbers, text, booleans, and lists of these keep their type; beside lists, single values are lists of one; a column of
    several other types is text as written in JSON, and objects are, too."""
    import pyarrow as pa

    columns: dict[str, list[Any]] = {}
    count = 0
    for count, record in enumerate(records, 1):
        for name, value in record.items():
            values = columns.setdefault(name, [])
            values += [None] * (count - 1 - len(values)) + [value]
    table = pa.table({"": pa.nulls(count)}).select([])  # has rows, even without columns
    for name, values in columns.items():
        table = table.append_column(name, _array(values + [None] * (count - len(values))))
    return table


def _array(values: list[Any]) -> Any:
    import pyarrow as pa

    present = [value for value in values if value is not None]
    types = {type(value) for value in present}
    if list in types and types <= {list, str, int, float, bool}:  # a single label may be written without a list
        values = [value if value is None or isinstance(value, list) else [value] for value in values]
        present = [value for value in values if value is not None]
        ends = np.cumsum([0, *(len(value or ()) for value in values)])
        offsets = pa.array(ends, pa.int64(), mask=np.array([*(value is None for value in values), False]))
        return pa.LargeListArray.from_arrays(offsets, _array([item for value in present for item in value]))
    if types in ({str}, {bool}, {int}, {float}, {int, float}, set()):
        try:
            return pa.array(values, pa.float64() if float in types else None)
        except (OverflowError, UnicodeEncodeError):  # an integer of more than 64 bits, half of a surrogate pair
            pass
    return pa.array([v if v is None else utf8(v if isinstance(v, str) else json.dumps(v)) for v in values], pa.string())
