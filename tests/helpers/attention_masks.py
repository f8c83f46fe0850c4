"""Attention masks of every kind that `attention_mask` makes and `Attention` takes."""

import torch

from data2vec.nn.transformer import attention_mask

MASK_KINDS = ["none", "bias", "padding", "both", "bias of each row", "both of each row"]


def build_attention_mask(kind: str, dtype: torch.dtype = torch.float64) -> torch.Tensor | None:
    """A mask of one of `MASK_KINDS` for 3 rows of 6 positions and 2 heads."""
    bias = torch.randn(2, 6, 6, dtype=dtype) if kind in ("bias", "both") else None
    bias = torch.randn(3, 2, 6, 6, dtype=dtype) if kind in ("bias of each row", "both of each row") else bias
    padding = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None] if kind.startswith(("padding", "both")) else None
    return attention_mask(bias, padding, extra=0)
