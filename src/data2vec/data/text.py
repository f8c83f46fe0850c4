"""Documents: the text of a row, from a string, bytes or a file, read in pieces."""

import io
from collections.abc import Iterator

from data2vec.data.corrupt import decoding
from data2vec.data.dataset import UNREADABLE, Row, Signal
from data2vec.data.sources.formats import is_utf8
from data2vec.errors import CorruptExample
from data2vec.untrusted import open_regular

PIECE_CHARACTERS = 2**20
"""Characters read and encoded at a time; longer documents are split at line ends."""


def read_text(row: Row) -> Iterator[str]:
    """The text of a row, in pieces that end at line ends. Raises CorruptExample before the first one when it is not UTF-8."""
    text, name = row["text"], row.get("path") or "a row"
    text = {"bytes": text, "path": None} if isinstance(text, bytes) else text
    with decoding(text if isinstance(text, dict) else {"bytes": b"", UNREADABLE: row.get(UNREADABLE)}, name):
        if isinstance(text, str):
            if not is_utf8(text):
                raise CorruptExample("not a text that can be encoded: it contains half of a surrogate pair")
            if text:
                yield text
        elif text is None:
            raise CorruptExample("not UTF-8, or without a text")
        elif not isinstance(text, dict):
            raise CorruptExample(f"{str(text)[:40]!r} is of type {type(text).__name__}, not a text")
        else:
            try:
                for _ in _read_pieces(text):
                    pass
            except UnicodeDecodeError as error:
                raise CorruptExample(f"not UTF-8 ({error.reason}); save it as UTF-8") from None
            yield from _read_pieces(text)


def _read_pieces(text: Signal) -> Iterator[str]:
    source = io.BytesIO(text["bytes"]) if text.get("bytes") is not None else open_regular(text["path"])
    with io.TextIOWrapper(source, encoding="utf-8-sig") as file:
        while lines := file.readlines(PIECE_CHARACTERS):
            yield "".join(lines)
