"""Labelled training batches: uncropped, augmented inputs, with a mask drawn for each by its own length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.batch import LabelledBatch
from data2vec.data.bucketing import MASK, MIX, MicroBatch
from data2vec.data.dataset import ExampleDataset
from data2vec.data.masked_batches import BatchDataset, LoadedBatch
from data2vec.data.mixing import ImageMixing, WaveformMixing, mix_images, mix_waveforms
from data2vec.errors import UserError
from data2vec.modalities.base import Modality
from data2vec.objective.masking import SpanMask
from data2vec.recipe.task_settings import TaskSettings
from data2vec.tasks.finetuning.labels import Targets


class Subset(ExampleDataset):
    """The examples at some indices of a set of examples."""

    def __init__(self, examples: ExampleDataset, indices: np.ndarray):
        self.examples, self.indices = examples, indices
        self.costs = examples.costs[indices]
        self.corrupt = examples.corrupt

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
        """As of the full set."""
        return self.examples.load(int(self.indices[index]), limit, rng)

    def label(self, index: int, column: str) -> Any:
        """As of the full set."""
        return self.examples.label(int(self.indices[index]), column)


class LabelledBatches(BatchDataset):
    """Loads the batch of a group, uncropped, with labels and, if the task has them, position and channel masks."""

    def __init__(
        self,
        modality: Modality,
        examples: ExampleDataset,
        labels: Sequence[Any],
        targets: Targets,
        settings: TaskSettings,
        width: int,
        weights: np.ndarray | None = None,
    ):
        """`weights` (n,): for the weighted sampling of the settings. Raises UserError for the mixing of another modality."""
        super().__init__(modality, examples)
        _require_mixing(getattr(settings, "mixing", None), modality)
        self.weights = weights
        self.labels, self.targets, self.settings, self.width = labels, targets, settings, width

    def epoch_indices(self, rng: np.random.Generator) -> np.ndarray | None:
        """The examples of an epoch with weighted sampling."""
        if self.weights is None:
            return None
        count = getattr(self.settings, "draws_per_epoch", None)
        return np.asarray(rng.choice(len(self.weights), count, p=self.weights / self.weights.sum()))

    def build(self, micro_batch: MicroBatch) -> LoadedBatch:
        rows = range(len(micro_batch.indices))[micro_batch.rank_rows]
        corrupt: list[str] = []
        loaded = [self.load_example(micro_batch, row, corrupt, crop=False) for row in rows]
        batch = self.modality.collate([item for _, item in loaded])
        labelled = LabelledBatch(
            batch.input, batch.padding, labels=self.targets.collate([self.labels[key] for key, _ in loaded])
        )
        if (mixing := getattr(self.settings, "mixing", None)) is not None:
            probabilities = self.targets.class_probabilities(labelled.labels)
            mix = mix_images if isinstance(mixing, ImageMixing) else mix_waveforms
            rng = np.random.default_rng((*micro_batch.seed, MIX, rows.start))
            labelled.input, labelled.labels = mix(labelled.input, probabilities, mixing, rng)
            if labelled.input is not batch.input and labelled.padding is not None and isinstance(mixing, ImageMixing):
                labelled.padding = labelled.padding & labelled.padding.flip(0)  # what either of the two has is there
        if (spans := self.settings.mask) is not None:
            lengths = [self._num_positions(item) for _, item in loaded]
            labelled.mask = _draw_masks(spans, lengths, [(*micro_batch.seed, MASK, row, True) for row in rows])
        if (spans := self.settings.channel_mask) is not None:
            labelled.channel_mask = _draw_masks(
                spans, [self.width] * len(loaded), [(*micro_batch.seed, MASK, row, False) for row in rows]
            )
        return LoadedBatch(labelled, corrupt, None)

    def _num_positions(self, item: Tensor) -> int:
        return int(np.prod(self.modality.grid(self.modality.collate([item]))))


def _require_mixing(mixing: ImageMixing | WaveformMixing | None, modality: Modality) -> None:
    """Raises UserError for settings that mix other inputs, such as images where there are waveforms."""
    name, wanted = modality.settings.name, modality.Mixing
    if mixing is None or (wanted is not None and isinstance(mixing, wanted)):
        return
    if wanted is None:
        raise UserError(f"objective.mixing: inputs of {name} cannot be mixed; set it to null")
    keys, others = (list(each.model_fields) for each in (wanted, type(mixing)))
    raise UserError(
        f"objective.mixing: inputs of {name} are mixed by {', '.join(keys)}, not by {', '.join(others)}; set {keys[0]}"
    )


def _draw_masks(spans: SpanMask, lengths: Sequence[int], seeds: Sequence[tuple[int, ...]]) -> Tensor:
    """(B, longest): the mask of each row, drawn with its own length and seed; empty if the row is too short for any span."""
    mask = np.zeros((len(lengths), max(lengths)), bool)
    for row, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
        if length >= spans.min_spans + 2:
            mask[row, :length] = spans.draw(1, (length,), np.random.default_rng(seed)).masked[0]
    return torch.from_numpy(mask)
