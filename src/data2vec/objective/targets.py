"""What the student has to predict: the mean of the teacher's top K layers, normalised (paper, section 3.3, "Targets").

B batch, T positions, D width. All of it in float32, whatever the precision of the model.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from data2vec.settings import Settings

NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "instance": lambda y: F.instance_norm(y.transpose(1, 2)).transpose(1, 2),  # each channel, over the sequence
    "layer": lambda y: F.layer_norm(y, y.shape[-1:]),  # each position, over the channels
    "batch": lambda y: F.batch_norm(y.transpose(1, 2), None, None, training=True).transpose(1, 2),
    "group": lambda y: F.layer_norm(y, y.shape[-2:]),  # each sequence, over positions and channels
    # What the released speech code does to a tensor whose axes it has not put in order (docs/differences.md):
    "instance-over-batch": lambda y: NORMS["instance"](y.transpose(0, 1)).transpose(0, 1),
    "group-over-batch": lambda y: NORMS["group"](y.transpose(0, 1)).transpose(0, 1),
}
"""Parameter-free normalisations of (B, T, D), epsilon 1e-5."""

Norms = Annotated[
    tuple[Literal["instance", "layer", "batch", "group", "instance-over-batch", "group-over-batch"], ...],
    Field(strict=False),
]


class TargetSettings(Settings):
    """How the teacher's states become targets."""

    state: Literal["ffn", "block"] = "ffn"
    """Of each block: what its feed-forward part adds; or the block's output (vision)."""
    top_k: Annotated[int, Field(gt=0)] = 8
    """K: the last so many blocks are averaged (fairseq: average_top_k_layers)."""
    layer_norms: Norms = ("instance",)
    """Applied in this order to each layer before averaging. Instance norm keeps speech from collapsing."""
    norms: Norms = ()
    """Applied in this order to the average."""


class TopLayers:
    """Adds up the teacher's top K layers as it computes them, so that never more than one is held.

    Give `visit` to the teacher's forward, then take `mean()`."""

    def __init__(self, settings: TargetSettings, layers: int):
        self.settings = settings
        self.first = layers - settings.top_k
        self.total: Tensor | None = None

    def visit(self, index: int, ffn: Tensor, block: Tensor) -> None:
        """Take in block `index`: its feed-forward output and its output, both (B, T, D)."""
        if index < self.first:
            return
        y = (ffn if self.settings.state == "ffn" else block).float()
        for norm in self.settings.layer_norms:
            y = NORMS[norm](y)
        self.total = y if self.total is None else self.total + y

    def mean(self) -> Tensor:
        """The targets at every position, (B, T, D)."""
        assert self.total is not None, "the teacher has visited no block"
        y = self.total / self.settings.top_k
        for norm in self.settings.norms:
            y = NORMS[norm](y)
        return y
