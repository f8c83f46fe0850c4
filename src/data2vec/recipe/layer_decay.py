"""Layer-wise learning rate decay, for fine-tuning."""

import re
from typing import Annotated, Literal

from pydantic import Field

from data2vec.settings import Settings

BLOCK = re.compile(r"(?:^|\.)transformer\.blocks\.(\d+)\.")
BELOW = re.compile(r"(?:^|\.)(?:local_encoder\.|transformer\.(?:extra_tokens$|input_norm\.)|position_encoder\.(?!table$))")
"""Parameters before the first block. A table of relative positions is not one: it is an attention bias in every block."""


class LayerDecay(Settings):
    """Layer-wise learning rate decay. Defaults: data2vec 1 on ImageNet."""

    rate: Annotated[float, Field(gt=0, le=1)] = 0.65
    """Learning rate of a block relative to the block above it; of the last block, relative to the head."""
    below: Literal["decayed", "full"] = "decayed"
    """Parameters before the first block: one step below it (BEiT, data2vec 1), or at the full rate (data2vec 2.0)."""


def layer_scale(name: str, layers: int, decay: LayerDecay) -> float:
    """The learning rate factor of the parameter `name`, in a model that holds an encoder of `layers` blocks."""
    if block := BLOCK.search(name):
        return decay.rate ** (layers - int(block[1]))
    if decay.below == "decayed" and BELOW.search(name):
        return decay.rate ** (layers + 1)
    return 1.0
