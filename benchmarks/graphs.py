"""Graph breaks and programs of the compiled training step: Dynamo alone, without a GPU or a code generator.

    python benchmarks/graphs.py [RECIPE…]

Forward and backward of a step of each base recipe, at a small width, on inputs of six lengths; images have one. Counted are the
programs that Dynamo makes, and the places where it breaks a graph in two.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from data2vec.batch import Batch, MaskedBatch
from data2vec.distributed import Process
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.train.train_step import TrainStep

BASES = tuple(f"{kind}/{version}-base" for version in ("v1", "v2") for kind in ("speech", "vision", "text"))
SMALL: dict[str, Any] = {
    "encoder.width": 48, "encoder.layers": 3, "encoder.heads": 2, "encoder.ffn_width": 48, "objective.target.top_k": 1,
}  # fmt: skip
BY_MODALITY: dict[str, dict[str, Any]] = {
    "speech": {"modality.conv_layers": [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2]},
    "vision": {"modality.image": 224},
    "text": {"modality.vocab_size": 64},
}
LENGTHS = {"speech": (16_000, 19_200, 24_000, 25_600, 30_000, 32_000), "text": (48, 64, 72, 80, 96, 112)}


@dataclass
class Graphs:
    """What Dynamo made of a few steps."""

    programs: int
    breaks: dict[str, int] = field(default_factory=dict)
    """How often, by reason."""


def small_recipe(name: str, **overrides: Any) -> Recipe:
    """The recipe at a small width, with all of its kinds of operations."""
    decoder = {"objective.decoder.width": 48} if "/v2" in name else {}
    return load_recipe(name, SMALL | BY_MODALITY[name.split("/")[0]] | decoder | {"train.precision": "bf16"} | overrides)


def random_batch(recipe: Recipe, length: int | None, rows: int = 2) -> MaskedBatch:
    """A batch of so many samples or tokens, or of images, with masks from the recipe."""
    modality: Any = recipe.build_modality()
    name, generator = modality.settings.name, torch.Generator().manual_seed(length or 0)
    if name == "speech":
        made = Batch(torch.randn(rows, length or 0, generator=generator))
    elif name == "text":
        made = Batch(torch.randint(4, modality.settings.vocab_size - 1, (rows, length or 0), generator=generator))
    else:
        side = modality.settings.image
        made = Batch(torch.randint(0, 256, (rows, 3, side, side), generator=generator).byte())
    views = rows * recipe.objective.masks_per_sample
    masked = torch.from_numpy(recipe.objective.mask.draw(views, modality.grid(made), np.random.default_rng(0)).masked)
    return MaskedBatch(made.input, mask=masked, predicted_indices=masked.flatten().nonzero()[:, 0])


def count_graphs(recipe: Recipe, lengths: Sequence[int | None], backend: str = "eager") -> Graphs:
    """The programs of as many steps on batches of these lengths, in turn."""
    torch._dynamo.reset()
    counters.clear()
    compiled = recipe.train.model_copy(update={"compile": True})
    step = TrainStep(recipe.build_objective(), compiled, Process(torch.device("cpu")), backend)
    for number, length in enumerate(lengths, 1):
        step(number, [random_batch(recipe, length, 2 + number % 2)], measure=number == 2, norm=False)
    return Graphs(counters["stats"]["unique_graphs"], dict(counters["graph_break"]))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=BASES, help="shipped names")
    parser.add_argument("--backend", default="eager")
    given = parser.parse_args()
    print("| recipe | programs | breaks |\n|---|---|---|")
    for name in given.recipes:
        graphs = count_graphs(small_recipe(name), LENGTHS.get(name.split("/")[0], [None] * 6), given.backend)
        print(f"| `{name}` | {graphs.programs} | {sum(graphs.breaks.values())} |", flush=True)
        for reason, count in graphs.breaks.items():
            print(f"    {count} x {' '.join(reason.split())[:400]}")


if __name__ == "__main__":
    main()
