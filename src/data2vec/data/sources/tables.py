"""Tables as rows: csv, tsv and jsonl."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data2vec.data.dataset import Row, Rows
from data2vec.data.sources.remote import open_binary
from data2vec.errors import UserError

TEXT_COLUMNS = ("text", "sentence", "sentence1", "content", "document")
"""Columns that are taken for the text, in order of preference."""


def table_rows(files: Sequence[Path]) -> Rows:
    """Rows of csv and tsv files that have the same columns."""
    from datasets import Dataset

    first, *others = [read_table(path, text_columns=(*TEXT_COLUMNS, "sentence2")) for path in files]
    for path, table in zip(files[1:], others, strict=True):
        if list(table) != list(first):
            raise UserError(f"{path} has columns {', '.join(table)}, but {files[0].name} has {', '.join(first)}")
        first = {name: values + table[name] for name, values in first.items()}
    return Dataset.from_dict(first)


def read_table(path: Path, text_columns: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The columns of a csv (with quoting) or tsv file (without quoting or escapes).

    Columns of numbers become numbers, except `text_columns`. Raises UserError for malformed tables."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    tabs = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else ","
    invalid: list[Any] = []

    def skip(row: Any) -> str:
        invalid.append(row)
        return "skip"

    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            names = next(
                (
                    row
                    for row in csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
                    if row
                ),
                [],
            )
        if not names:
            return {}
        table = arrow_csv.read_csv(
            path,
            # In one block, as a row must not be longer than a block; without threads, which do not count rows.
            read_options=arrow_csv.ReadOptions(block_size=min(path.stat().st_size + 1, 2**31 - 1), use_threads=False),
            parse_options=arrow_csv.ParseOptions(
                delimiter=delimiter,
                quote_char=False if tabs else '"',
                newlines_in_values=not tabs,
                ignore_empty_lines=not tabs,
                invalid_row_handler=skip,
            ),
            # As text, so that no type is guessed and nothing becomes null; `_parse_numbers` converts whole columns.
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except (csv.Error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
            raise UserError(f"{path} is not UTF-8: save it as UTF-8") from None
        raise UserError(f"{path} is not a valid {path.suffix.lower().strip('.')} table: {error}") from None
    if invalid:
        row = invalid[0]
        raise UserError(f"{path}, row {row.number}: {row.actual_columns} fields, but the header has {row.expected_columns}")
    columns = {name: column.to_pylist() for name, column in zip(table.column_names, table.columns, strict=True)}
    return {name: values if name in text_columns else _parse_numbers(values) for name, values in columns.items()}


def _parse_numbers(values: list[str]) -> list[Any]:
    for kind in (int, float):
        try:
            return [kind(value) for value in values]
        except ValueError:
            continue
    return values


def read_json_lines(files: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """Rows of jsonl files, given as (path or URL, version). A line that cannot be parsed gives a row without text."""
    columns: dict[str, None] | None = None
    for path, _ in files:
        with open_binary(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                columns = columns if columns is not None else _json_columns(path)
                try:
                    fields = json.loads(line.decode())
                    text = fields["text"]
                except (ValueError, KeyError, TypeError):
                    fields, text = {}, None
                text = text if isinstance(text, str) else None
                yield {"text": text, "path": f"{path}, line {number}"} | {name: fields.get(name) for name in columns}


def _json_columns(path: str) -> dict[str, None]:
    """The columns besides the text: the plain fields of the first line that can be parsed."""
    with open_binary(path) as file:
        for line in file:
            try:
                first = json.loads(line.decode())
            except ValueError:
                continue
            if isinstance(first, dict):
                return {key: None for key, value in first.items() if isinstance(value, str | int | float) and key != "text"}
    return {}
