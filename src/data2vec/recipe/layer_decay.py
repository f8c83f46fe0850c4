"""Smaller learning rates for lower blocks, as fine-tuning has them."""

import re
from typing import Annotated, Literal

from pydantic import Field

from data2vec.settings import Settings

BLOCK = re.compile(r"(?:^|\.)transformer\.blocks\.(\d+)\.")
BELOW = re.compile(r"(?:^|\.)(?:local_encoder\.|transformer\.(?:extra_tokens$|input_norm\.)|position_encoder\.(?!table$))")
"""What comes before the first block, but for a table of relative positions: that is a bias on attention in every block."""


class LayerDecay(Settings):
    """Layer-wise decay of the learning rate. Defaults: data2vec 1 on ImageNet."""

    rate: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Each block's learning rate is this times that of the block above it, and the last block's this times the head's."""
    below: Literal["decayed", "full"] = "decayed"
    """What comes before the blocks: one step below the first block (BEiT, data2vec 1), or at the full rate (data2vec 2.0)."""


def layer_scale(name: str, layers: int, decay: LayerDecay) -> float:
    """What the learning rate of the parameter `name` of an encoder with `layers` blocks, or of what holds one, is multiplied
    with."""
    if block := BLOCK.search(name):
        return decay.rate ** (layers - int(block[1]))
    if decay.below == "decayed" and BELOW.search(name):
        return decay.rate ** (layers + 1)
    return 1.0
