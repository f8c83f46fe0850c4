"""Documents: the text of a row, from a string, bytes or a file, read in pieces."""

import io
from collections.abc import Iterator

from data2vec.data.dataset import Row, Signal
from data2vec.errors import CorruptExample

PIECE_CHARACTERS = 2**20
"""Characters read and encoded at a time; longer documents are split at line ends."""


def read_text(row: Row) -> Iterator[str]:
    """The text of a row, in pieces that end at line ends. Raises CorruptExample before the first one when it is not UTF-8."""
    text = row["text"]
    if isinstance(text, str):
        if text:
            yield text
        return
    if text is None:
        raise CorruptExample(f"{row.get('path') or 'a row'}: not UTF-8, or without a text")
    try:
        for _ in _read_pieces(text):
            pass
    except UnicodeDecodeError as error:
        raise CorruptExample(f"{text['path']}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise CorruptExample(f"{text['path']}: {error.strerror}") from None
    yield from _read_pieces(text)


def _read_pieces(text: Signal) -> Iterator[str]:
    source = io.BytesIO(text["bytes"]) if text["bytes"] is not None else open(text["path"], "rb")  # noqa: SIM115
    with io.TextIOWrapper(source, encoding="utf-8-sig") as file:
        while lines := file.readlines(PIECE_CHARACTERS):
            yield "".join(lines)
