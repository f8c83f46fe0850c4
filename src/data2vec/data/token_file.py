"""Token files: all documents of a dataset as one long sequence of token ids, memory-mapped from the cache."""

import json
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from data2vec.console.progress import progress
from data2vec.data.cache import cached, fingerprint
from data2vec.data.dataset import Rows
from data2vec.data.text import PIECE_CHARACTERS, read_text
from data2vec.data.tokenizer import END, Tokenizer, encode_texts, tokenizer_digest
from data2vec.errors import CorruptExample


class TokenFile:
    """The token ids of every row, in order, with </s> after each document. `corrupt` names the rows that cannot be read."""

    def __init__(self, rows: Rows, tokenizer: Tokenizer, vocab_size: int):
        self.dtype = "uint16" if vocab_size <= 2**16 else "uint32"
        name = f"tokens-{fingerprint(rows, 'text', tokenizer_digest(tokenizer), self.dtype)}.bin"
        self.path = str(cached(name, lambda file: _write_token_file(file, rows, tokenizer, self.dtype)))
        self.corrupt, self.length = _read_footer(self.path, np.dtype(self.dtype).itemsize)
        self.tokens = self._open()

    def _open(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", shape=(self.length,)) if self.length else np.empty(0, self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"tokens": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.tokens = self._open()


def encode_documents(rows: Rows, tokenizer: Tokenizer, corrupt: list[str]) -> Iterator[list[int]]:
    """The token ids of all rows, in order, with </s> after each document that is not empty.

    "name: reason" of rows that cannot be read is appended to `corrupt`."""
    pending: list[str] = []  # "" marks the end of a document

    def flush() -> Iterator[list[int]]:
        for text, ids in zip(pending, encode_texts(tokenizer, pending), strict=True):
            yield ids if text else [END]
        pending.clear()

    size = 0
    for row in progress(rows, "encoding text", unit="document", delay=3, hidden=isinstance(rows, list)):
        try:
            empty = True
            for piece in read_text(row):
                pending.append(piece)
                empty, size = False, size + len(piece)
                if size > 4 * PIECE_CHARACTERS:
                    yield from flush()
                    size = 0
            if not empty:
                pending.append("")
        except CorruptExample as error:
            corrupt.append(str(error))
    if pending:
        yield from flush()


def _write_token_file(file: BinaryIO, rows: Rows, tokenizer: Tokenizer, dtype: str) -> None:
    """Write token ids, then the corrupt documents as JSON, then the length of that."""
    corrupt: list[str] = []
    for ids in encode_documents(rows, tokenizer, corrupt):
        file.write(np.array(ids, dtype=dtype).tobytes())
    footer = json.dumps(corrupt).encode()
    file.write(footer + struct.pack("<Q", len(footer)))


def _read_footer(path: str, item_size: int) -> tuple[list[str], int]:
    """The corrupt documents, and the number of tokens in the file."""
    with open(path, "rb") as file:
        size = file.seek(-8, os.SEEK_END)
        (length,) = struct.unpack("<Q", file.read())
        file.seek(size - length)
        return json.loads(file.read(length)), (size - length) // item_size
