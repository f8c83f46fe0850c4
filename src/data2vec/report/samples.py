"""What a model makes of a few examples: what it is shown, how far off its predictions are, where its attention goes.

n examples, T positions, D width, H heads, E extra tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.batch import Batch, MaskedBatch
from data2vec.errors import BadExample, UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective import Objective
from data2vec.report.renderers import Canvas, canvas

SECONDS = 5.0
"""Of audio, so that single positions can be seen."""
AHEAD = 64
"""Rows read of streamed data."""


@dataclass(frozen=True)
class Sample:
    """A few examples, loaded as in training but not augmented."""

    modality: Modality
    batch: Batch
    canvas: Canvas
    """To paint on them."""

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape of an example's positions."""
        return self.modality.grid(self.batch)

    def masked(self, mask: Any, views: int, times: int) -> Iterator[MaskedBatch]:
        """The batch, so often, with masks as a step of training has them: `views` of each example."""
        rng = np.random.default_rng(0)
        n = len(self.batch)
        for _ in range(times):
            drawn = mask.draw(n * views, self.grid, rng)
            hidden = torch.from_numpy(np.ascontiguousarray(drawn.hidden))
            indices = hidden.flatten().nonzero().squeeze(1)
            view = None if drawn.replaced is None else self.modality.replace(self.batch, drawn.replaced, rng)
            yield MaskedBatch(self.batch.input, self.batch.padding, mask=hidden, masked_indices=indices, replaced_input=view)


def sample(modality: Modality, where: str, count: int = 4) -> Sample:
    """Some of the longer examples of the data set `where`. Raises UserError when it is not there, or none can be read."""
    kind = getattr(modality, "kind", None)
    rows = modality.rows(where)
    examples = modality.examples(rows if hasattr(rows, "__len__") else list(islice(rows, AHEAD)))
    chosen = np.random.default_rng(0).choice(len(examples), min(16 * count, len(examples)), replace=False)
    chosen = chosen[np.argsort(-examples.costs[chosen], kind="stable")][:count]  # they are cut to the shortest of them
    limit = float(examples.costs[chosen].min(initial=SECONDS if kind == "audio" else np.inf))
    items, bad = [], ""
    for index in chosen.tolist():
        try:
            items.append(examples.load(index, limit, None))
        except BadExample as error:
            bad = f", such as {error}"
    if not items:
        raise UserError(f"{where}: no example can be read{bad}")
    batch = modality.collate(items)
    given = batch.input.numpy()
    tokens: list[str] = []
    if kind == "text" and (tokenizer := getattr(examples, "tokenizer", None)):
        tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in given[0].tolist()]
    return Sample(modality, batch, canvas(kind, given, modality.grid(batch), modality.seconds_per_position, tokens))


@torch.inference_mode()
def errors(objective: Objective, batches: Sequence[MaskedBatch]) -> np.ndarray:
    """(n, masks, T): the loss at each position that each mask hides, NaN at the others. Batches as `Sample.masked` has them."""
    found = []
    for batch in batches:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a decoder has noise at hidden positions
            output = objective(batch)
        flat = torch.full((batch.mask.numel(),), torch.nan)
        flat[batch.masked_indices] = output.errors.float()
        found.append(flat.view(len(batch), -1, batch.mask.shape[1]))
    return torch.cat(found, dim=1).numpy()


@torch.inference_mode()
def features(encoder: Encoder, batch: Batch) -> np.ndarray:
    """(n, T, D): what the encoder puts out for the full input."""
    return encoder(batch)[0].float().numpy()


@torch.inference_mode()
def attention(encoder: Encoder, batch: Batch, blocks: Sequence[int]) -> np.ndarray:
    """(blocks, H, T, T): how much each position of the first example attends to each, without the extra tokens."""
    extra, maps = encoder.transformer.settings.extra_tokens, []

    def look(module: Any, given: tuple[Tensor, Tensor | None]) -> None:
        maps.append(module.weights(*given)[0, :, extra:, extra:].float().numpy())

    attentions: list[Any] = [encoder.transformer.blocks[index].attention for index in blocks]
    hooks = [each.register_forward_pre_hook(look) for each in attentions]
    try:
        encoder(batch.rows(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack(maps)
