"""Text: byte-level BPE tokens."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.data import text as loading
from data2vec.modalities.base import Examples, LocalEncoder, Modality
from data2vec.nn.position_encoders import LearnedPositionEncoder, PaddingMode
from data2vec.settings import Settings

PAD = 1
"""Token ids as in RoBERTa: <s> 0, <pad> 1, </s> 2, <unk> 3, then the vocabulary, then <mask> as the last one."""


class TextSettings(Settings):
    """The `modality:` section for text."""

    name: Literal["text"] = "text"
    vocab_size: Annotated[int, Field(gt=5)] = 50265
    """Number of token ids, special ones included; the last is <mask>."""
    max_length: Annotated[int, Field(gt=0)] = 512
    """The longest sequence that has positions."""
    embedding_norm: bool = True
    """A layer norm on tokens plus positions (fairseq: layernorm_embedding)."""
    scale_embedding: bool = False
    """Multiply the token vectors by sqrt(width) (fairseq: not no_scale_embedding)."""
    position_padding: PaddingMode = "zero_input"
    """Whether padding enters the Transformer and the norms of targets as zeros (zero_input, zero_every_layer) or embedded, as
    in the released version 2 (none)."""


class TokenEmbedding(LocalEncoder):
    """A vector per token; at hidden positions the vector of <mask>."""

    def __init__(self, vocab_size: int, width: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.tokens = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.tokens.weight[PAD])

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return self.scale * self.tokens(batch.input), batch.padding

    def apply_mask(self, x: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
        # Looked up anew rather than put into x: then the table gets one gradient, not two of its size.
        return self.scale * self.tokens(shown.masked_fill(mask, self.tokens.num_embeddings - 1))


class Text(Modality):
    """Sub-word tokens with learned positions (paper, section 3.1 and 4)."""

    Settings = TextSettings
    Data = loading.TextData
    kind = "text"
    supports_padding = True

    def build_local_encoder(self, width: int) -> TokenEmbedding:
        return TokenEmbedding(self.settings.vocab_size, width, width**0.5 if self.settings.scale_embedding else 1.0)

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> LearnedPositionEncoder:
        s = self.settings
        return LearnedPositionEncoder(width, s.max_length, norm=s.embedding_norm, padding=s.position_padding)

    def grid(self, batch: Batch) -> tuple[int, ...]:
        return (batch.input.shape[1],)

    @cached_property
    def tokenizer(self) -> Any:
        """The one that the settings name, read once for all windows of a stream; else None."""
        return loading.tokenizer_for([], self.data, self.settings.vocab_size) if self.data.tokenizer else None

    def examples(self, rows: Any) -> Examples:
        return loading.TextExamples(rows, self.data, self.settings.vocab_size, self.tokenizer)

    def labelled(self, rows: Any) -> Examples:
        return loading.TextRows(rows, self.data, self.settings.vocab_size, self.tokenizer)

    def save(self, folder: Path, examples: Examples | None) -> dict[str, str]:
        tokenizer = getattr(examples, "tokenizer", None) or self.tokenizer
        if tokenizer is None:  # of an official file, which holds none
            return {}
        loading.save_tokenizer(tokenizer, folder)
        return {"tokenizer": "."}

    def collate(self, items: Sequence[Any]) -> Batch:
        return loading.collate(items)

    def replace(self, batch: Batch, replaced: np.ndarray, rng: np.random.Generator) -> Tensor:
        return loading.random_tokens(batch, replaced, rng, self.settings.vocab_size)
