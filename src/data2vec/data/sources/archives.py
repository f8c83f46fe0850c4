"""Lines and archives as rows, read from start to end, on disk or at an address."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from data2vec.errors import UserError


def open_binary(where: str) -> AbstractContextManager[BinaryIO]:
    """A file, or what is at an address such as s3://bucket/name."""
    if "://" not in where:
        return open(where, "rb")
    from fsspec.core import url_to_fs

    files, path = url_to_fs(where)
    if files.protocol == "memory":  # it has one file object, and one position in it, for all who read
        return io.BytesIO(files.cat_file(path))
    return files.open(path, "rb")


def read_lines(files: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows of jsonl files, given as (path, stamp). A line that cannot be read gives a row without text."""
    columns: dict[str, None] | None = None
    for path, _ in files:
        with open_binary(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                columns = columns if columns is not None else _columns(path)
                try:
                    fields = json.loads(line.decode())
                    text = fields["text"]
                except (ValueError, KeyError, TypeError):
                    fields, text = {}, None
                text = text if isinstance(text, str) else None
                yield {"text": text, "path": f"{path}, line {number}"} | {name: fields.get(name) for name in columns}


def _columns(path: str) -> dict[str, None]:
    """The other columns: those of the first line that can be read."""
    with open_binary(path) as file:
        for line in file:
            try:
                first = json.loads(line.decode())
            except ValueError:
                continue
            if isinstance(first, dict):
                return {key: None for key, value in first.items() if isinstance(value, str | int | float) and key != "text"}
    return {}


def read_shards(shards: Sequence[tuple[str, str]], kind: str, suffixes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of tar shards in webdataset layout: files that share a name up to its first dot are one example.

    `.cls` becomes `label`; the fields of `.json` and the words of `.txt` become columns. Nothing is unpacked to disk."""
    columns: list[str] | None = None
    for shard, _ in shards:
        try:
            for row in _samples(shard, kind, suffixes):
                columns = columns if columns is not None else list(row)
                yield {name: row.get(name) for name in columns}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"{shard} is not a whole tar archive: {error}") from None


def _samples(shard: str, kind: str, suffixes: Sequence[str]) -> Iterator[dict[str, Any]]:
    name, sample = None, dict[str, Any]()
    with open_binary(shard) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            folder, _, last = member.name.rpartition("/")
            stem, _, ending = last.partition(".")
            if not member.isfile() or not stem:
                continue
            if (folder, stem) != name:
                if kind in sample:
                    yield sample
                name, sample = (folder, stem), {"key": f"{folder}/{stem}".strip("/")}
            source = tar.extractfile(member)
            content = source.read() if source else b""
            ending = ending.lower()
            if f".{ending.rpartition('.')[2]}" in suffixes:
                sample[kind] = {"bytes": content, "path": f"{shard}/{member.name}"}
            elif ending == "json":
                fields = json.loads(content)
                if kind == "text" and isinstance(fields.get("text"), str):
                    fields["text"] = {"bytes": fields["text"].encode(), "path": f"{shard}/{member.name}"}
                sample |= {k: v for k, v in fields.items() if k == kind or isinstance(v, str | int | float)}
            elif ending in ("cls", "txt"):
                words = content.decode(errors="replace").strip()
                sample["label" if ending == "cls" else "txt"] = int(words) if ending == "cls" and words.isdigit() else words
    if kind in sample:
        yield sample
