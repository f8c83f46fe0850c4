"""Text: documents to one long row of tokens, cut into blocks; or labelled texts one by one."""

import io
import json
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, BinaryIO

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import default_collate

from data2vec.batch import Batch
from data2vec.data.cache import cached, fingerprint
from data2vec.data.sources.rows import label
from data2vec.data.tokenizer import (
    END,
    PAD,
    START,
    TRAIN_ON,
    digest,
    encode,
    load_tokenizer,
    random_ids,
    save_tokenizer,
    train_tokenizer,
)
from data2vec.errors import BadExample, UserError
from data2vec.modalities.base import DataSettings

__all__ = [
    "TextData",
    "TextExamples",
    "TextRows",
    "collate",
    "load_tokenizer",
    "random_tokens",
    "save_tokenizer",
    "tokenizer_for",
    "train_tokenizer",
]

PIECE = 2**20
"""Characters read and encoded at a time; longer documents are cut at line ends."""


class TextData(DataSettings):
    """The `data:` section for text. Defaults: data2vec 1 Base."""

    block_size: Annotated[int, Field(ge=8)] = 512
    """Tokens of an example, <s> at its start included (fairseq: tokens_per_sample)."""
    tokenizer: str | None = None
    """A folder with tokenizer.json, or vocab.json and merges.txt, or dict.txt, encoder.json and vocab.bpe (fairseq's); none:
    one is trained on the training data."""
    second: str | None = None
    """Of labelled pairs of texts: the column of the second one."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """The global batch in blocks."""
    micro_batch_size: Annotated[int, Field(gt=0)] = 16
    """At most so many blocks on a device at a time."""

    @property
    def batch(self) -> float:
        return self.batch_size

    @property
    def micro_batch(self) -> float:
        return self.micro_batch_size


class TextExamples:
    """Blocks for pre-training: documents joined, each ended by </s>, cut anywhere, <s> before each block.

    The tokens of a `datasets.Dataset` are kept in a memory-mapped file of the cache, those of a list of rows in memory.
    `bad` names documents that are not UTF-8. Raises UserError when a data set has less than one block."""

    def __init__(self, rows: Any, settings: TextData, vocab_size: int, tokenizer: Any = None):
        self.block = settings.block_size
        self.file: tuple[str, str, int] | None = None
        if isinstance(rows, list):
            if tokenizer is None and settings.tokenizer is None:
                raise UserError("data.tokenizer: streamed text needs one given: a folder with tokenizer.json")
            tokenizer = tokenizer or tokenizer_for(rows, settings, vocab_size)
            self.bad: list[str] = []
            self.tokens = np.array([token for part in _encoded(rows, tokenizer, self.bad) for token in part], dtype=np.int64)
        else:
            tokenizer = tokenizer or tokenizer_for(rows, settings, vocab_size)
            kind = "uint16" if vocab_size <= 2**16 else "uint32"
            name = f"tokens-{fingerprint(rows, 'text', digest(tokenizer), kind)}.bin"
            path = str(cached(name, lambda file: _write_tokens(file, rows, tokenizer, kind)))
            self.bad, length = _read_end(path, np.dtype(kind).itemsize)
            if length < self.block - 1:
                bad = f"; {len(self.bad)} documents cannot be read, such as {self.bad[0]}" if self.bad else ""
                raise UserError(
                    f"the text has {length} tokens, less than one block (data.block_size: {self.block}): "
                    f"take more text, or smaller blocks{bad}"
                )
            self.file = path, kind, length
            self.tokens = np.memmap(path, kind, "r", shape=(length,))
        self.tokenizer = tokenizer
        self.costs = np.ones(len(self.tokens) // (self.block - 1))

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(block_size,) int64, <s> first."""
        start = int(index) * (self.block - 1)
        block = np.empty(self.block, dtype=np.int64)
        block[0], block[1:] = START, self.tokens[start : start + self.block - 1]
        return torch.from_numpy(block)

    def label(self, index: int, column: str) -> Any:
        raise UserError(f"blocks of running text have no column {column!r}")

    def __len__(self) -> int:
        return len(self.costs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | ({"tokens": None} if self.file else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self.file:
            path, kind, length = self.file
            self.tokens = np.memmap(path, kind, "r", shape=(length,))


class TextRows:
    """Labelled texts: each row is <s> text </s>, or <s> text </s> </s> second text </s>, cut to block_size; of a pair the
    longer one is cut first. A tokenizer must be given."""

    def __init__(self, rows: Any, settings: TextData, vocab_size: int, tokenizer: Any = None):
        if tokenizer is None and settings.tokenizer is None:
            raise UserError("data.tokenizer: name the folder of the tokenizer that the model was trained with")
        self.rows, self.block, self.second = rows, settings.block_size, settings.second
        known = rows[0] if isinstance(rows, list) else rows.features
        if self.second is not None and self.second not in known:
            raise UserError(f"data.second: there is no column {self.second!r} in the data, only {', '.join(known)}")
        self.tokenizer = tokenizer or tokenizer_for(rows, settings, vocab_size)
        self.costs = np.ones(len(rows))

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(T,) int64, T ≤ block_size."""
        row = self.rows[int(index)]
        first = encode(self.tokenizer, ["".join(pieces(row))])[0]
        if self.second is None:
            return torch.tensor([START, *first[: self.block - 2], END])
        other = encode(self.tokenizer, [str(row[self.second])])[0]
        room = self.block - 4
        keep = max(room - len(other), min(len(first), (room + 1) // 2))
        first = first[:keep]
        return torch.tensor([START, *first, END, END, *other[: room - len(first)], END])

    def label(self, index: int, column: str) -> Any:
        return label(self.rows, int(index), column)

    def __len__(self) -> int:
        return len(self.rows)


def tokenizer_for(rows: Any, settings: TextData, vocab_size: int) -> Any:
    """The tokenizer that the settings name, else one trained on `rows` and kept in the cache.

    Raises UserError when a given one has not `vocab_size` ids."""
    # A word on forking, which the library would print at every worker that the loader starts; those turn it off themselves.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer)
        if tokenizer.get_vocab_size() != vocab_size:
            raise UserError(
                f"modality.vocab_size: {vocab_size}, but the tokenizer {settings.tokenizer} has "
                f"{tokenizer.get_vocab_size()} ids: set it to that"
            )
        return tokenizer

    def train(file: BinaryIO) -> None:
        file.write(train_tokenizer(_sample(rows), vocab_size).to_str().encode())

    if not hasattr(rows, "__len__"):
        return train_tokenizer(_sample(rows), vocab_size)
    return load_tokenizer(cached(f"tokenizer-{fingerprint(rows, 'text', str(vocab_size))}.json", train))


def pieces(row: dict[str, Any]) -> Iterator[str]:
    """The text of a row, in parts that end at line ends. Raises BadExample before the first when it is not UTF-8."""
    text = row["text"]
    if isinstance(text, str):
        if text:
            yield text
        return
    if text is None:
        raise BadExample(f"{row.get('path') or 'a row'}: not UTF-8, or without a text")
    try:
        for _ in _lines(text):
            pass
    except UnicodeDecodeError as error:
        raise BadExample(f"{text['path']}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise BadExample(f"{text['path']}: {error.strerror}") from None
    yield from _lines(text)


def collate(items: Sequence[Tensor]) -> Batch:
    """`input` (B, T) int64; shorter rows end in <pad> and `padding` (B, T) is True there."""
    if len({len(item) for item in items}) == 1:
        return Batch(default_collate(list(items)))
    lengths = torch.tensor([len(item) for item in items])
    padded = torch.nn.utils.rnn.pad_sequence(list(items), batch_first=True, padding_value=PAD)
    return Batch(padded, padding=torch.arange(int(lengths.max())) >= lengths[:, None])


def random_tokens(batch: Batch, replaced: np.ndarray, rng: np.random.Generator, vocab_size: int) -> Tensor:
    """`input` with ids drawn uniformly from those that are not special at `replaced` (B, T) bool."""
    view = batch.input.clone()
    view[torch.from_numpy(replaced)] = torch.from_numpy(random_ids(vocab_size, int(replaced.sum()), rng))
    return view


def _lines(text: dict[str, Any]) -> Iterator[str]:
    source = io.BytesIO(text["bytes"]) if text["bytes"] is not None else open(text["path"], "rb")  # noqa: SIM115
    with io.TextIOWrapper(source, encoding="utf-8-sig") as file:
        while lines := file.readlines(PIECE):
            yield "".join(lines)


def _encoded(rows: Any, tokenizer: Any, bad: list[str]) -> Iterator[list[int]]:
    """The tokens of all rows in order, </s> after each that has any; names of those that cannot be read go to `bad`."""
    from tqdm import tqdm

    waiting: list[str] = []  # "" stands for the end of a document

    def flush() -> Iterator[list[int]]:
        for text, ids in zip(waiting, encode(tokenizer, waiting), strict=True):
            yield ids if text else [END]
        waiting.clear()

    size = 0
    for row in tqdm(rows, "encoding text", unit="document", delay=3, leave=False, disable=isinstance(rows, list)):
        try:
            some = False
            for part in pieces(row):
                waiting.append(part)
                some, size = True, size + len(part)
                if size > 4 * PIECE:
                    yield from flush()
                    size = 0
            if some:
                waiting.append("")
        except BadExample as error:
            bad.append(str(error))
    if waiting:
        yield from flush()


def _write_tokens(file: BinaryIO, rows: Any, tokenizer: Any, kind: str) -> None:
    """Tokens, then the names of bad documents as JSON, then its length."""
    bad: list[str] = []
    for ids in _encoded(rows, tokenizer, bad):
        file.write(np.array(ids, dtype=kind).tobytes())
    end = json.dumps(bad).encode()
    file.write(end + struct.pack("<Q", len(end)))


def _read_end(path: str, item_size: int) -> tuple[list[str], int]:
    """What `_write_tokens` put after the tokens, and their number."""
    with open(path, "rb") as file:
        size = file.seek(-8, os.SEEK_END)
        (length,) = struct.unpack("<Q", file.read())
        file.seek(size - length)
        return json.loads(file.read(length)), (size - length) // item_size


def _sample(rows: Any) -> Iterator[str]:
    """Texts to train a tokenizer on: all, or, where that is too much, rows in random order until there is enough."""
    order = np.random.default_rng(0).permutation(len(rows)) if hasattr(rows, "__len__") else None
    size = 0
    for row in rows if order is None else (rows[int(i)] for i in order):
        try:
            for part in pieces(row):
                yield part
                size += len(part)
        except BadExample:
            continue
        if size > TRAIN_ON:
            return
