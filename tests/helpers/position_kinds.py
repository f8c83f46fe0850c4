"""Every kind of positions, small, and masked views of toy features: B samples, M views of each, 12 places, width 16."""

from typing import Any

import torch
from torch import Tensor

from data2vec.nn.position_encoders import (
    Alibi,
    AlibiPositionEncoder,
    ConvPositionEncoder,
    LearnedPositionEncoder,
    PositionEncoder,
    RelativePositionEncoder,
    SinCosPositionEncoder,
)

KINDS = ("conv", "conv-alibi", "conv-norm", "alibi", "learned", "sincos", "relative")


def positions(kind: str, extra_tokens: int = 0, **changes: Any) -> PositionEncoder:
    """With random values where fresh ones would say nothing."""
    torch.manual_seed(0)
    made: PositionEncoder
    if kind == "alibi":
        made = AlibiPositionEncoder(16, Alibi(2, extra_tokens), **changes)
    elif kind in ("conv", "conv-alibi", "conv-norm"):
        alibi = Alibi(2, extra_tokens) if kind == "conv-alibi" else None
        made = ConvPositionEncoder(16, depth=2, kernel=5, groups=2, alibi=alibi, norm=kind == "conv-norm", **changes)
    elif kind == "learned":
        made = LearnedPositionEncoder(16, length=12, **changes)
    elif kind == "sincos":
        made = SinCosPositionEncoder((3, 4), 16)
    else:
        made = RelativePositionEncoder((3, 4), heads=2, extra_tokens=extra_tokens)
        torch.nn.init.normal_(made.table)
    return made


def views(samples: int = 2, masks: int = 1, kept: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, 12, 16), what is masked (B·M, 12), and the other positions (B·M, P) in order."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 12, 16, generator=generator)
    places = torch.rand(samples * masks, 12, generator=generator).argsort(1)[:, :kept].sort(1).values
    masked = torch.ones(samples * masks, 12, dtype=torch.bool).scatter(1, places, False)
    return x, masked, places
