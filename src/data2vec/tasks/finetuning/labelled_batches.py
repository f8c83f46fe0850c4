"""Labelled training batches: uncropped, augmented inputs, with a mask drawn for each by its own length."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.batch import LabelledBatch
from data2vec.data.bucketing import MASK, MIX, Group
from data2vec.data.masked_batches import Batches, LoadedBatch
from data2vec.data.mixing import PictureMixing, mix_pictures, mix_waves
from data2vec.modalities.base import Examples, Modality
from data2vec.recipe.task_settings import ClassificationSettings, RecognitionSettings
from data2vec.tasks.finetuning.labels import Targets


class Subset:
    """The examples at some indices of a set of examples."""

    def __init__(self, examples: Examples, indices: np.ndarray):
        self.examples, self.indices = examples, indices
        self.costs = examples.costs[indices]
        self.bad = getattr(examples, "bad", [])

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
        """As of the full set."""
        return self.examples.load(int(self.indices[index]), limit, rng)

    def label(self, index: int, column: str) -> Any:
        """As of the full set."""
        return self.examples.label(int(self.indices[index]), column)

    def __len__(self) -> int:
        return len(self.indices)


class LabelledBatches(Batches):
    """Loads the batch of a group, uncropped, with labels and, if the task has them, position and channel masks."""

    def __init__(
        self,
        modality: Modality,
        examples: Examples,
        labels: Sequence[Any],
        targets: Targets,
        settings: RecognitionSettings | ClassificationSettings,
        width: int,
    ):
        super().__init__(modality, None, 1, examples)
        self.labels, self.targets, self.settings, self.width = labels, targets, settings, width

    def build(self, group: Group) -> LoadedBatch:
        rows = range(len(group.keys))[group.mine]
        bad: list[str] = []
        loaded = [self._load(group, row, bad, whole=True) for row in rows]
        batch = self.modality.collate([item for _, item in loaded])
        labelled = LabelledBatch(
            batch.input, batch.padding, labels=self.targets.collate([self.labels[key] for key, _ in loaded])
        )
        if (mixing := getattr(self.settings, "mixing", None)) is not None:
            probabilities = self.targets.class_probabilities(labelled.labels)
            mix = mix_pictures if isinstance(mixing, PictureMixing) else mix_waves
            rng = np.random.default_rng((*group.seed, MIX, rows.start))
            labelled.input, labelled.labels = mix(labelled.input, probabilities, mixing, rng)
        if (spans := self.settings.mask) is not None:
            lengths = [self._num_positions(item) for _, item in loaded]
            labelled.mask = _draw_masks(spans, lengths, [(*group.seed, MASK, row, True) for row in rows])
        if (spans := self.settings.channel_mask) is not None:
            labelled.channel_mask = _draw_masks(
                spans, [self.width] * len(loaded), [(*group.seed, MASK, row, False) for row in rows]
            )
        return LoadedBatch(labelled, bad, None)

    def _num_positions(self, item: Tensor) -> int:
        return int(np.prod(self.modality.grid(self.modality.collate([item]))))


def _draw_masks(spans: Any, lengths: Sequence[int], seeds: Sequence[tuple[Any, ...]]) -> Tensor:
    """(B, longest): the mask of each row, drawn with its own length and seed; empty if the row is too short for any span."""
    mask = np.zeros((len(lengths), max(lengths)), bool)
    for row, (length, seed) in enumerate(zip(lengths, seeds, strict=True)):
        if length >= spans.min_spans + 2:
            mask[row, :length] = spans.draw(1, (length,), np.random.default_rng(seed)).hidden[0]
    return torch.from_numpy(mask)
