"""A few training examples, and what a model computes for them: losses by position, features, attention.

Shapes: n examples, T positions, D width, H heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.batch import Batch, MaskedBatch
from data2vec.data.corrupt import load_example
from data2vec.data.masked_batches import unmask_padding
from data2vec.errors import CorruptExample, UserError
from data2vec.modalities.base import Modality
from data2vec.nn.encoder import Encoder
from data2vec.objective import Objective
from data2vec.objective.diagnostics import variance_shares
from data2vec.report.renderers import Renderer, build_renderer

SECONDS = 5.0
"""Duration of audio examples: short enough to see single positions."""
STREAMED_ROWS = 64
"""Rows read of streamed data."""


@dataclass(frozen=True)
class Sample:
    """A few examples, loaded as in training but not augmented."""

    modality: Modality
    batch: Batch
    renderer: Renderer
    """Draws over the examples."""

    @property
    def grid(self) -> tuple[int, ...]:
        """The grid of positions of an example."""
        return self.modality.grid(self.batch)

    def masked_batches(self, mask: Any, views: int, count: int) -> Iterator[MaskedBatch]:
        """`count` batches of the examples, each with `views` masks per example, drawn as in training."""
        rng = np.random.default_rng(0)
        n = len(self.batch)
        for _ in range(count):
            drawn = mask.draw(n * views, self.grid, rng)
            hidden, predicted = drawn.masked, drawn.predicted
            if (padded := self.modality.padded_positions(self.batch)) is not None:
                hidden = predicted = unmask_padding(hidden.reshape(n, views, -1), padded, rng).reshape(hidden.shape)
            masked = torch.from_numpy(np.ascontiguousarray(hidden))
            indices = torch.from_numpy(np.flatnonzero(predicted))
            view = None if drawn.replaced is None else self.modality.replace(self.batch, drawn.replaced, rng)
            yield MaskedBatch(self.batch.input, self.batch.padding, mask=masked, predicted_indices=indices, replaced_input=view)


def load_sample(modality: Modality, where: str, count: int = 4) -> Sample:
    """Some of the longer examples of the data set `where`. Raises UserError if it does not exist or none can be read."""
    kind = getattr(modality, "kind", None)
    rows = modality.selected_rows(where, modality.data.train_rows, "data.train_rows")
    examples = modality.examples(rows if hasattr(rows, "__len__") else list(islice(rows, STREAMED_ROWS)))
    selected = np.random.default_rng(0).choice(len(examples), min(16 * count, len(examples)), replace=False)
    selected = selected[np.argsort(-examples.costs[selected], kind="stable")][:count]  # all are cut to the shortest
    limit = float(examples.costs[selected].min(initial=SECONDS if kind == "audio" else np.inf))
    items, bad = [], ""
    for index in selected.tolist():
        try:
            items.append(load_example(examples, index, limit, None))
        except CorruptExample as error:
            bad = f", such as {error}"
    if not items:
        raise UserError(f"{where}: no example can be read{bad}")
    batch = modality.collate(items)
    inputs = batch.input.numpy()
    if batch.padding is not None and batch.padding.shape == batch.input.shape:  # missing samples
        inputs = np.where(batch.padding.numpy(), np.nan, inputs)
    tokens: list[str] = []
    if kind == "text" and (tokenizer := getattr(examples, "tokenizer", None)):
        tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in inputs[0].tolist()]
    return Sample(modality, batch, build_renderer(kind, inputs, modality.grid(batch), modality.seconds_per_position, tokens))


@torch.inference_mode()
def masked_errors(objective: Objective, batches: Sequence[MaskedBatch]) -> np.ndarray:
    """(n, masks, T): the loss at each masked position, NaN elsewhere. Batches are those of `Sample.masked_batches`."""
    errors = []
    for batch in batches:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a decoder puts noise at masked positions
            output = objective(batch)
        flat = torch.full((batch.mask.numel(),), torch.nan)
        flat[batch.predicted_indices] = output.errors.float()
        errors.append(flat.view(len(batch), -1, batch.mask.shape[1]))
    return torch.cat(errors, dim=1).numpy()


@torch.inference_mode()
def encoder_features(encoder: Encoder, batch: Batch) -> np.ndarray:
    """(n, T, D): the output of the encoder for the unmasked examples."""
    return encoder(batch)[0].float().numpy()


@torch.inference_mode()
def layer_variance_shares(encoder: Encoder, batch: Batch) -> np.ndarray:
    """(layers, 3): the shares of position, of input and of the rest in the variance of each block's output, for the unmasked
    examples."""
    x, padding = encoder.local_encoder(batch)
    outputs = encoder.block_outputs(x, padding)
    return np.array([[float(share) for share in variance_shares(output.block, padding)] for output in outputs])


@torch.inference_mode()
def attention_weights(encoder: Encoder, batch: Batch, blocks: Sequence[int]) -> np.ndarray:
    """(blocks, H, T, T): attention weights of the first example from each position to each, without the extra tokens."""
    extra, maps = encoder.transformer.settings.extra_tokens, []

    def record(module: Any, inputs: tuple[Tensor, Tensor | None]) -> None:
        maps.append(module.weights(*inputs)[0, :, extra:, extra:].float().numpy())

    attentions: list[Any] = [encoder.transformer.blocks[index].attention for index in blocks]
    hooks = [attention.register_forward_pre_hook(record) for attention in attentions]
    try:
        encoder(batch.rows(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return np.stack(maps)
