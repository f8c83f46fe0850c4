"""What the checks of a modality work on: its recipe and data, opened once, and what is computed of them when first needed."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data2vec.batch import Batch, MaskedBatch
from data2vec.data.dataset import ExampleDataset, Rows
from data2vec.data.loader import Loader
from data2vec.errors import CorruptExample
from data2vec.nn.encoder import Encoder, build_encoder
from data2vec.objective import Objective
from data2vec.recipe.loading import validate_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.recipe.yaml_format import dump_yaml
from data2vec.settings import JsonDict, JsonMapping

MAX_EXAMPLES = 64
"""Examples that are looked at."""
OBJECTIVES: dict[str, JsonDict] = {
    "data2vec": {"target": {"source": "block", "top_k": 1, "per_layer_norms": ["layer"]}},
    "data2vec2": {
        "masks_per_sample": 2,
        "target": {"source": "block", "top_k": 1, "per_layer_norms": ["layer"]},
        "decoder": {"kind": "transformer", "layers": 1},
    },
}
"""Versions 1 and 2 of the method, for any grid of positions."""


SMALL: JsonMapping = {
    "encoder": {"width": 64, "layers": 2, "heads": 4, "ffn_width": 128, "norm": "pre", "input_norm": False, "final_norm": True}
    | {"dropout": 0, "attention_dropout": 0},
    "data": {"workers": 0},
    "objective": {
        "name": "data2vec2",
        "masks_per_sample": 2,
        "mask": {"kind": "random", "prob": 0.5},
        "teacher": {"half_life": 0.1, "end_half_life": 0.1, "anneal": 1},
        "target": {"source": "block", "top_k": 1, "per_layer_norms": ["layer"]},
        "decoder": {"kind": "transformer", "layers": 1},
    },
}
"""A recipe without a modality, for whatever data."""


def small_recipe(folder: Path) -> Path:
    """The file of a recipe of a small model, in `folder`, with the default settings of whatever modality it gets."""
    path = folder / "small.yaml"
    path.write_text(dump_yaml(dict(SMALL)), encoding="utf-8")
    return path


class CheckFailed(Exception):
    """The modality breaks the contract; the message says how, and what to fix."""


class CheckSkipped(Exception):
    """The check does not apply; the message says why."""


class Case:
    """A modality with a resolved recipe, and a folder for what the checks write."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.modality = recipe.build_modality()

    @cached_property
    def rows(self) -> Rows:
        """The training data."""
        data = self.recipe.data
        return self.modality.selected_rows(str(data.train), data.train_rows, "data.train_rows")

    @cached_property
    def examples(self) -> ExampleDataset:
        """The examples of the training data."""
        return self.modality.examples(self.rows)

    @cached_property
    def usable(self) -> list[int]:
        """The first examples that can be decoded."""
        return list(self._usable(self.examples))

    @cached_property
    def saved_files(self) -> JsonDict:
        """The settings of `data` that name the files that travel with the weights, such as a tokenizer."""
        folder = self.folder / "saved"
        folder.mkdir()
        return {key: str(folder / name) for key, name in self.modality.save(folder, self.examples).items()}

    @cached_property
    def complete(self) -> list[Any]:
        """The first inputs as features are computed of them: decoded, not cropped and not augmented."""
        examples = self.modality.reading(**self.saved_files).labelled(self.rows)
        return [examples.load(index, None, None) for index in self._usable(examples)]

    def _usable(self, examples: ExampleDataset) -> Iterator[int]:
        for index in range(min(len(examples), MAX_EXAMPLES)):
            try:
                examples.load(index, None, None)
            except CorruptExample:
                continue
            yield index

    @cached_property
    def batch(self) -> MaskedBatch:
        """The first micro-batch of pre-training, in evaluation order: the same in every call."""
        return self.first_batch(self.recipe)

    def first_batch(self, recipe: Recipe) -> MaskedBatch:
        """The first micro-batch of a run by this recipe."""
        loader = Loader(
            recipe.build_modality(),
            recipe.objective.mask,
            self.rows,
            recipe.train.seed,
            masks=recipe.objective.masks_per_sample,
        )
        steps = loader.steps()
        try:
            return next(steps)[0]  # type: ignore[return-value]  # the loader of pre-training masks its batches
        finally:
            steps.close()

    @cached_property
    def encoder(self) -> Encoder:
        """An untrained encoder in evaluation mode."""
        torch.manual_seed(0)
        return build_encoder(self.modality, self.recipe.encoder).eval()

    @torch.no_grad()
    def local_features(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What the local encoder returns."""
        return self.encoder.local_encoder(batch)

    @cached_property
    def mask(self) -> Tensor:
        """(B, T) a mask of about half of the positions, the same in every row, neither none nor all of them."""
        x, _ = self.local_features(self.batch)
        hidden = torch.zeros(x.shape[1], dtype=torch.bool)
        hidden[np.random.default_rng(0).permutation(x.shape[1])[: max(1, x.shape[1] // 2)]] = True
        return hidden.expand(len(x), -1)

    def with_objective(self, name: str) -> Recipe:
        """The recipe with version 1 ("data2vec") or 2 ("data2vec2") of the method and masks at random."""
        values = self.recipe.model_dump(mode="json")
        values["objective"] = {"name": name, "mask": {"kind": "random", "prob": 0.5}, **OBJECTIVES[name]}
        return validate_recipe(values, "recipe", trusted=True)

    @staticmethod
    def build_objective(recipe: Recipe) -> Objective:
        """The objective of a recipe, with the same weights in every call."""
        torch.manual_seed(0)
        return recipe.build_objective()
