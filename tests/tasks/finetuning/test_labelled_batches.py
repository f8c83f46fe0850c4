"""Mixing in labelled batches belongs to the kind of input."""

from typing import Any

import numpy as np
import pytest

from data2vec.data.dataset import ExampleDataset
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.tasks.finetuning.labelled_batches import LabelledBatches
from data2vec.tasks.finetuning.labels import Classes


class NoExamples(ExampleDataset):
    costs = np.empty(0)

    def load(self, index: int, limit: float | None, rng: np.random.Generator | None) -> Any:
        raise IndexError(index)

    def label(self, index: int, column: str) -> Any:
        raise IndexError(index)


@pytest.mark.parametrize(
    ("recipe", "mixing", "message"),
    [
        ("speech/classify-tiny", "{prob: 0.7}", "speech are mixed by min_weight, prob, not by mixup"),  # is one of images
        ("sound/classify-tiny", "{min_weight: 0.5}", "sound are mixed by mixup, .* not by min_weight"),
        ("vision/classify-tiny", "{min_weight: 0.5}", "vision are mixed by mixup"),
        ("text/classify-tiny", "{mixup: 0.8}", "text cannot be mixed; set it to null"),
        ("signal/classify-tiny", "{mixup: 0.8}", "signal cannot be mixed"),
    ],
)
def test_mixing_of_other_inputs_is_refused(recipe: str, mixing: str, message: str) -> None:
    found = load_recipe(load_recipe(recipe, ["objective.mixing=null"]), [f"objective.mixing={mixing}"])
    targets = Classes(["a", "b"], found.objective)
    with pytest.raises(UserError, match=message):
        LabelledBatches(found.build_modality(), NoExamples(), [], targets, found.objective, 16)


@pytest.mark.parametrize("recipe", ["speech/classify-audioset", "sound/classify-audioset-20k", "vision/classify-v1-base"])
def test_mixing_of_the_shipped_recipes_is_accepted(recipe: str) -> None:
    found = load_recipe(recipe)
    LabelledBatches(found.build_modality(), NoExamples(), [], Classes(["a", "b"], found.objective), found.objective, 16)
