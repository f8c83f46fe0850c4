"""An encoder: local features, positions, Transformer. It knows of no teacher and no loss."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from data2vec.batch import Batch
from data2vec.errors import UserError
from data2vec.nn.position_encoders import take
from data2vec.nn.transformer import Transformer, TransformerSettings, Visit


class Encoder(nn.Module):
    """The three parts of the model, each replaceable (paper, section 3.1)."""

    PARTS = ("local_encoder", "position_encoder", "transformer")

    local_encoder: Any
    position_encoder: Any
    transformer: Transformer

    def __init__(
        self,
        local_encoder: nn.Module,
        position_encoder: nn.Module,
        transformer: Transformer,
        grid: Callable[[Batch], tuple[int, ...]],
    ):
        super().__init__()
        if (tables := getattr(position_encoder, "tables", 1)) not in (1, transformer.settings.layers):
            raise UserError(f"modality.position_tables: {tables} is not 1, nor encoder.layers, {transformer.settings.layers}")
        self.local_encoder = local_encoder
        self.position_encoder = position_encoder
        self.transformer = transformer
        self.grid = grid
        """The shape of a batch's positions: (T,) for a sequence, (rows, columns) for an image."""

    def forward(self, batch: Batch, visit: Visit | None = None) -> tuple[Tensor, Tensor | None]:
        """Contextual vectors (B, T, D) of the full, unmasked input, and the padding (B, T) or None."""
        x, padding = self.local_encoder(batch)
        return contextualise(self.position_encoder, self.transformer, x, padding, visit), padding

    def apply_mask(self, x: Tensor, mask: Tensor, shown: Tensor) -> Tensor:
        """The masked view of local features `x` (B, T, D): what `mask` (B, T) hides is replaced. `shown`: the raw input."""
        return self.local_encoder.apply_mask(x, mask, shown)

    def encode_kept(self, x: Tensor, padding: Tensor | None, hidden: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Encode only the positions `kept` (B·M, P), counted within a row, of local features `x` (B, T, D).

        `hidden` (B·M, T) is True everywhere else; `padding` (B, T). Returns the extra tokens (B·M, E, D) and the contextual
        vectors (B·M, P, D). What is hidden takes no part, and `x` is never repeated where positions do not ask for it."""
        seen = self.position_encoder.visible(x, padding, hidden, kept)
        absent = None if padding is None else take(padding[..., None], kept)[..., 0]
        y = self.transformer.encode(seen, absent, self.position_encoder.bias(x.shape[1], kept))
        extra = self.transformer.settings.extra_tokens
        return y[:, :extra], y[:, extra:]


def contextualise(
    positions: Any, transformer: Transformer, x: Tensor, padding: Tensor | None, visit: Visit | None = None
) -> Tensor:
    """Local features (B, T, D) to contextual vectors (B, T, D)."""
    return transformer(positions(x, padding), padding, positions.bias(x.shape[1]), visit)


def undisturbed(encoder: Encoder) -> Encoder:
    """The same encoder, all weights shared, in which padding reaches nothing but itself (`Padding` each)."""
    local_encoder, position_encoder = copy.copy(encoder.local_encoder), copy.copy(encoder.position_encoder)
    if hasattr(position_encoder, "padding"):
        local_encoder.each, position_encoder.padding = True, "each"
    return Encoder(local_encoder, position_encoder, encoder.transformer, encoder.grid)


def build(modality: Any, settings: TransformerSettings) -> Encoder:
    """The encoder of a modality (`data2vec.modalities.base.Modality`), with fresh weights."""
    return Encoder(
        modality.build_local_encoder(settings.width),
        modality.build_position_encoder(settings.width, settings.heads, settings.extra_tokens),
        Transformer(settings),
        modality.grid,
    )
