"""Text: byte-level BPE tokens with RoBERTa's special ids (`data2vec.data.tokenizer`)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data.dataset import CountedDataSettings, ExampleDataset, Rows, column_value
from data2vec.data.text import read_text
from data2vec.data.token_file import TokenFile, encode_documents
from data2vec.data.tokenizer import (
    END,
    PAD,
    START,
    Tokenizer,
    encode_texts,
    load_or_train_tokenizer,
    random_ids,
    save_tokenizer,
)
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.base import InputFeatures, LocalEncoder, Modality, ModalitySettings
from data2vec.nn.position_encoders import (
    Alibi,
    AlibiPositionEncoder,
    ConvPositionEncoder,
    LearnedPositionEncoder,
    PaddingMode,
    PositionEncoder,
)
from data2vec.settings import JsonDict


class TextSettings(ModalitySettings):
    """The `modality:` section for text."""

    name: Literal["text"] = "text"
    vocab_size: Annotated[int, Field(gt=5, le=2**24)] = 50265
    """Number of token ids, special ones included; the last is <mask>."""
    max_length: Annotated[int, Field(gt=0, le=2**20)] = 512
    """The longest sequence, in tokens; with learned positions, also of their table (fairseq: max_positions)."""
    positions: Literal["learned", "conv", "alibi"] = "learned"
    """A learned vector for each position; convolutions over the sequence, as for speech; or an ALiBi bias on attention alone,
    with one learned scale per head."""
    position_depth: Annotated[int, Field(gt=0, le=2**10)] = 2
    """Layers of convolutional positions."""
    position_kernel: Annotated[int, Field(gt=0, le=2**10)] = 9
    """Kernel size of each of them, in tokens."""
    position_groups: Annotated[int, Field(gt=0, le=2**10)] = 16
    """Groups of each of them; must divide the width."""
    embedding_norm: bool = True
    """A layer norm on the sum of token and position embeddings (fairseq: layernorm_embedding)."""
    scale_embedding: bool = False
    """Multiply the token embeddings by sqrt(width) (fairseq: not no_scale_embedding)."""
    position_padding: PaddingMode = "zero_input"
    """Whether padding enters the Transformer and the norms of targets as zeros (zero_input, zero_every_layer) or embedded, as
    in the released version 2 (none)."""


class TextData(CountedDataSettings):
    """The `data:` section for text. Defaults: data2vec 1 Base."""

    block_size: Annotated[int, Field(ge=8, le=10**7)] = 512
    """Tokens of an example, including the <s> at its start (fairseq: tokens_per_sample); at most `modality.max_length`, if
    positions are learned."""
    tokenizer: str | None = None
    """A folder with tokenizer.json, or vocab.json and merges.txt, or dict.txt, encoder.json and vocab.bpe (fairseq's). None: a
    tokenizer is trained on the training data."""
    second: str | None = None
    """The column of the second text, for labelled pairs of texts."""
    batch_size: Annotated[int, Field(gt=0)] = 256
    """The global batch in blocks."""
    micro_batch_size: Annotated[int, Field(gt=0)] = 16
    """The per-device micro-batch in blocks; auto: the largest that fits, measured before the run."""


class TokenEmbedding(LocalEncoder):
    """Token embeddings; masked positions get the embedding of <mask>."""

    def __init__(self, vocab_size: int, width: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.tokens = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.tokens.weight[PAD])

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.scale * self.tokens(batch.input), batch.padding

    def apply_mask(self, x: Tensor, mask: Tensor, student_input: Tensor) -> Tensor:
        # Embedding again instead of writing into x gives the table one gradient, not two of its size.
        embedded: Tensor = self.tokens(student_input.masked_fill(mask, self.tokens.num_embeddings - 1))
        return self.scale * embedded


class TextBlocks(ExampleDataset):
    """Blocks for pre-training: documents joined, each ended by </s>, cut into blocks of `block_size` with <s> at their start.

    The tokens of a `datasets.Dataset` are memory-mapped from the cache, those of a list of rows are kept in memory. Raises
    UserError when a dataset has less than one block."""

    def __init__(self, rows: Rows, settings: TextData, vocab_size: int, tokenizer: Tokenizer | None = None):
        self.block_size = settings.block_size
        streamed = isinstance(rows, list)
        if streamed and tokenizer is None and settings.tokenizer is None:
            raise UserError("data.tokenizer: none, but streamed text needs one: set it to a folder with tokenizer.json")
        self.tokenizer = tokenizer or load_or_train_tokenizer(rows, settings.tokenizer, vocab_size)
        self.source: TokenFile | np.ndarray
        if streamed:
            corrupt: list[str] = []
            encoded = [token for ids in encode_documents(rows, self.tokenizer, corrupt) for token in ids]
            self.source, self.corrupt = np.array(encoded, dtype=np.int64), corrupt
        else:
            self.source = TokenFile(rows, self.tokenizer, vocab_size)
            self.corrupt = self.source.corrupt
            if self.source.length < self.block_size - 1:
                example = f"; {len(self.corrupt)} documents cannot be read, such as {self.corrupt[0]}" if self.corrupt else ""
                raise UserError(
                    f"the text has {self.source.length} tokens, less than one block (data.block_size: {self.block_size}): "
                    f"use more text or smaller blocks{example}"
                )
        self.costs = np.ones(len(self.tokens) // (self.block_size - 1))
        self.documents = len(rows)

    @property
    def total(self) -> int:
        return self.documents

    @property
    def tokens(self) -> np.ndarray:
        """The token ids of all documents."""
        return self.source.tokens if isinstance(self.source, TokenFile) else self.source

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(block_size,) int64 token ids, <s> first."""
        start = int(index) * (self.block_size - 1)
        block = np.empty(self.block_size, dtype=np.int64)
        block[0], block[1:] = START, self.tokens[start : start + self.block_size - 1]
        return torch.from_numpy(block)

    def label(self, index: int, column: str) -> Any:
        raise UserError(f"blocks of running text have no column {column!r}")


class LabelledTexts(ExampleDataset):
    """Texts one by one: <s> text </s>, or <s> text </s> </s> second text </s>, truncated to `block_size`, the longer text of a
    pair first. A tokenizer must be given."""

    def __init__(self, rows: Rows, settings: TextData, vocab_size: int, tokenizer: Tokenizer | None = None):
        if tokenizer is None and settings.tokenizer is None:
            raise UserError("data.tokenizer: none, but labelled text needs one: set it to the model's tokenizer folder")
        self.rows, self.block_size, self.second = rows, settings.block_size, settings.second
        columns = rows[0] if isinstance(rows, list) else rows.features
        if self.second is not None and self.second not in columns:
            raise UserError(f"data.second: there is no column {self.second!r} in the data, only {', '.join(columns)}")
        self.tokenizer = tokenizer or load_or_train_tokenizer(rows, settings.tokenizer, vocab_size)
        self.costs = np.ones(len(rows))

    def load(self, index: int, limit: float | None = None, rng: np.random.Generator | None = None) -> Tensor:
        """(T,) int64 token ids, T ≤ block_size."""
        row = self.rows[int(index)]
        first = encode_texts(self.tokenizer, ["".join(read_text(row))])[0]
        if self.second is None:
            return torch.tensor([START, *first[: self.block_size - 2], END])
        if row[self.second] is None:
            raise CorruptExample(f"example {index}: without a {self.second!r}")
        second = encode_texts(self.tokenizer, [str(row[self.second])])[0]
        room = self.block_size - 4
        first = first[: max(room - len(second), min(len(first), (room + 1) // 2))]
        return torch.tensor([START, *first, END, END, *second[: room - len(first)], END])

    def cut(self, indices: np.ndarray) -> list[str]:
        room = self.block_size - (2 if self.second is None else 4)
        found = []
        for index in map(int, indices):
            row = self.rows[index]
            try:
                texts = ["".join(read_text(row)), *([] if self.second is None else [str(row[self.second] or "")])]
                if sum(len(text.encode()) for text in texts) <= room:  # a token has at least one byte
                    continue
                tokens = sum(map(len, encode_texts(self.tokenizer, texts)))
            except (CorruptExample, ValueError):  # skipped and counted when it is loaded
                continue
            if tokens > room:
                found.append(f"example {index}: {tokens} tokens")
        return found

    def label(self, index: int, column: str) -> Any:
        return column_value(self.rows, int(index), column)


class Text(Modality):
    """Subword tokens, in the paper with learned positions (sections 3.1 and 4)."""

    Settings = TextSettings
    Data = TextData
    kind = "text"
    supports_padding = True

    settings: TextSettings
    data: TextData

    def build_local_encoder(self, width: int) -> TokenEmbedding:
        return TokenEmbedding(self.settings.vocab_size, width, width**0.5 if self.settings.scale_embedding else 1.0)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder:
        """Raises UserError when the groups of convolutional positions do not divide the width."""
        s = self.settings
        if s.positions == "alibi":
            return AlibiPositionEncoder(width, Alibi(heads, extra_tokens), s.embedding_norm, s.position_padding)
        if s.positions == "conv":
            if width % s.position_groups:
                raise UserError(f"modality.position_groups: {s.position_groups} does not divide encoder.width, {width}")
            shape = (s.position_depth, s.position_kernel, s.position_groups)
            return ConvPositionEncoder(width, *shape, padding=s.position_padding, norm=s.embedding_norm)
        return LearnedPositionEncoder(width, s.max_length, norm=s.embedding_norm, padding=s.position_padding)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return (batch.input.shape[1],)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer in `data.tokenizer`, loaded once for all windows of a stream; None without that setting."""
        return load_or_train_tokenizer([], self.data.tokenizer, self.settings.vocab_size) if self.data.tokenizer else None

    def data_defaults(self) -> JsonDict:
        """The tokenizer of the model, and no more tokens than it has positions."""
        learned = self.settings.positions == "learned"
        found: JsonDict = {"block_size": min(TextData().block_size, self.settings.max_length)} if learned else {}
        return found | ({} if self.data.tokenizer is None else {"tokenizer": str(Path(self.data.tokenizer).resolve())})

    def input_features(self) -> Mapping[str, InputFeatures]:
        raise UserError("objective.features: tokens of text have no features to predict; predict them by objective.name=mlm")

    def examples(self, rows: Rows) -> TextBlocks:
        self._require_positions()
        return TextBlocks(rows, self.data, self.settings.vocab_size, self.tokenizer)

    def labelled(self, rows: Rows) -> LabelledTexts:
        self._require_positions()
        return LabelledTexts(rows, self.data, self.settings.vocab_size, self.tokenizer)

    def _require_positions(self) -> None:
        """Raises UserError if examples may be longer than the table of learned positions; others have no longest text."""
        most, asked = self.settings.max_length, self.data.block_size
        if self.settings.positions == "learned" and asked > most:
            raise UserError(
                f"data.block_size: {asked} tokens are more than the positions of the model (modality.max_length: {most}); set "
                f"data.block_size={most} or less"
            )

    def save(self, folder: Path, examples: ExampleDataset | None) -> dict[str, str]:
        tokenizer = getattr(examples, "tokenizer", None) or self.tokenizer
        if tokenizer is None:  # the model comes from an official checkpoint, which contains none
            return {}
        save_tokenizer(tokenizer, folder)
        return {"tokenizer": "."}

    def collate(self, items: Sequence[Tensor]) -> Batch:
        return Batch.stack(items, PAD)

    def replace(self, batch: Batch, replaced: np.ndarray, rng: np.random.Generator) -> Tensor:
        view = batch.input.clone()
        view[torch.from_numpy(replaced)] = torch.from_numpy(random_ids(self.settings.vocab_size, int(replaced.sum()), rng))
        return view
