"""The encoder: local encoder, position encoder and Transformer (paper, section 3.1). It knows no teacher and no loss.

Shapes: B batch, M masked views of a sample, T positions, P visible positions of a view, D width, E extra tokens.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.nn.position_encoders import PositionEncoder, gather_positions
from data2vec.nn.transformer import BlockOutput, Transformer, TransformerSettings


class LocalEncoderInterface(Protocol):
    """What an encoder needs of a local encoder, which is an `nn.Module`: see `data2vec.modalities.base.LocalEncoder`."""

    def __call__(self, batch: Batch, /) -> tuple[Tensor, Tensor | None]: ...

    def apply_mask(self, x: Tensor, mask: Tensor, student_input: Tensor) -> Tensor: ...


class ModalityInterface(Protocol):
    """What `build_encoder` needs of a modality: see `data2vec.modalities.base.Modality`."""

    def build_local_encoder(self, width: int) -> LocalEncoderInterface: ...

    def build_position_encoder(self, width: int, heads: int, extra_tokens: int) -> PositionEncoder: ...

    def grid(self, batch: Batch) -> tuple[int, ...]: ...


class Encoder(nn.Module):
    """A local encoder, a position encoder and a Transformer."""

    PARTS = ("local_encoder", "position_encoder", "transformer")

    local_encoder: LocalEncoderInterface
    position_encoder: PositionEncoder
    transformer: Transformer

    def __init__(
        self,
        local_encoder: LocalEncoderInterface,
        position_encoder: PositionEncoder,
        transformer: Transformer,
        grid: Callable[[Batch], tuple[int, ...]],
    ):
        super().__init__()
        if (tables := getattr(position_encoder, "tables", 1)) not in (1, transformer.settings.layers):
            raise UserError(
                f"modality.position_tables: {tables} is neither 1 nor the number of blocks; set it to 1 or to "
                f"encoder.layers, {transformer.settings.layers}"
            )
        self.local_encoder = local_encoder
        self.position_encoder = position_encoder
        self.transformer = transformer
        self.grid = grid
        """The shape of a batch's positions: (T,) for a sequence, (rows, columns) for an image."""

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Contextual vectors (B, T, D) of the unmasked input, and the padding (B, T) or None."""
        x, padding = self.local_encoder(batch)
        return self.encode(x, padding), padding

    def apply_mask(self, x: Tensor, mask: Tensor, student_input: Tensor) -> Tensor:
        """Local features `x` (B, T, D) with a mask vector wherever `mask` (B, T) is True. `student_input`: the raw input."""
        return self.local_encoder.apply_mask(x, mask, student_input)

    def encode(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """Contextual vectors (B, T, D) of local features `x` (B, T, D); `padding` (B, T) is True at padded positions."""
        return self.encode_with_extra(x, padding)[1]

    def encode_with_extra(self, x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """The extra tokens (B, E, D) and the contextual vectors (B, T, D) of local features `x` (B, T, D)."""
        y: Tensor = self.transformer(self.position_encoder(x, padding), padding, self.position_encoder.bias(x.shape[1]))
        extra = self.transformer.settings.extra_tokens
        return y[:, :extra], y[:, extra:]

    def block_outputs(self, x: Tensor, padding: Tensor | None) -> Iterator[BlockOutput]:
        """The output of each block for local features `x` (B, T, D), one at a time; see `Transformer.block_outputs`."""
        bias = self.position_encoder.bias(x.shape[1])
        return self.transformer.block_outputs(self.position_encoder(x, padding), padding, bias)

    def states(self, x: Tensor, padding: Tensor | None) -> Iterator[Tensor]:
        """The input of the first block and the output of every block for local features `x` (B, T, D), one at a time; see
        `Transformer.states`."""
        return self.transformer.states(self.position_encoder(x, padding), padding, self.position_encoder.bias(x.shape[1]))

    def encode_visible(self, x: Tensor, padding: Tensor | None, mask: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Encode only the positions `visible` (B·M, P), indices within a row, of local features `x` (B, T, D).

        `mask` (B·M, T) is True at all others; `padding` (B, T). Returns the extra tokens (B·M, E, D) and the contextual
        vectors (B·M, P, D). Masked positions are left out, and `x` is repeated for the M views only if the position
        encoder needs it."""
        inputs = self.position_encoder.encode_visible_positions(x, padding, mask, visible)
        padded = None if padding is None else gather_positions(padding[..., None], visible)[..., 0]
        y = self.transformer(inputs, padded, self.position_encoder.bias(x.shape[1], visible))
        extra = self.transformer.settings.extra_tokens
        return y[:, :extra], y[:, extra:]


def padding_invariant(encoder: Encoder) -> Encoder:
    """The same encoder, all weights shared, in which padding changes no other position (`PaddingMode` zero_every_layer)."""
    local_encoder: Any = copy.copy(encoder.local_encoder)
    position_encoder: Any = copy.copy(encoder.position_encoder)
    if hasattr(position_encoder, "padding"):
        local_encoder.padding_invariant, position_encoder.padding = True, "zero_every_layer"
    return Encoder(local_encoder, position_encoder, encoder.transformer, encoder.grid)


def build_encoder(modality: ModalityInterface, settings: TransformerSettings) -> Encoder:
    """The encoder of a modality, with newly initialised weights."""
    return Encoder(
        modality.build_local_encoder(settings.width),
        modality.build_position_encoder(settings.width, settings.heads, settings.extra_tokens),
        Transformer(settings),
        modality.grid,
    )
