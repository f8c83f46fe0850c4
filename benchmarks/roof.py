"""A bound on the speed of a training step on a GPU, from counts on the meta device: no GPU is used, and none was measured.

    python benchmarks/roof.py [RECIPE…] [--kernels]

A step (forward of student and teacher, backward, clipping, AdamW, teacher) with one micro-batch of the recipe runs on the meta
device, and its kernels are counted (`kernel_count.py`). Its shortest time is that of its matrix products at 65 % of the peak of
an H100 plus that of all bytes of the other kernels at its memory bandwidth, and the bound on the model FLOPs utilisation (MFU)
is the share of the peak that this time allows: for eager PyTorch, and "fused", for a compiler that fuses as much as can be.
`--kernels`: also the operations with the most bytes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_count import Kernels, count_kernels
from step import BASES, operations
from step import batch as cpu_batch

from data2vec.batch import MaskedBatch
from data2vec.distributed import Process
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.train.train_step import TrainStep

PEAK = {torch.bfloat16: 989e12, torch.float16: 989e12, torch.float32: 67e12}
"""Floating-point operations per second of an H100 (SXM) in dense matrix products, by precision; without TF32."""
BANDWIDTH = 3.35e12
"""Bytes per second of its memory."""
SHARE = 0.65
"""The share of the peak that matrix products of this size are assumed to reach."""
ROWS = {"speech/v1": 15, "speech/v2": 4, "vision/v1": 128, "vision/v2": 16, "text/v1": 16, "text/v2": 4}
"""The micro-batch of the base recipes, of clips of 15 s, images or blocks."""
SECONDS = 15


def micro_batch_rows(name: str) -> int:
    """Clips of 15 s, images or blocks in a micro-batch of this shipped recipe; 4 for another."""
    return next((rows for key, rows in ROWS.items() if name.startswith(key)), 4)


def meta_batch(recipe: Recipe, rows: int) -> MaskedBatch:
    """A micro-batch with masks from the recipe, on the meta device."""
    batch = cpu_batch(recipe, rows, SECONDS * 16_000)
    return batch.to(torch.device("meta"))


def count_step(recipe: Recipe, batch: MaskedBatch, micro_batches: int = 1) -> Kernels:
    """The kernels of one optimizer step on so many micro-batches."""
    meta = torch.device("meta")
    with count_kernels() as kernels:
        with meta:
            objective = recipe.build_objective()
        step = TrainStep(objective, recipe.train, Process(meta))
        kernels.clear()
        step(1, [batch] * micro_batches, measure=False, norm=False)
    return kernels


def bound(recipe: Recipe, batch: MaskedBatch, kernels: Kernels, micro_batches: int = 1) -> dict[str, Any]:
    """The figures of the table, times in milliseconds."""
    needed = micro_batches * operations(recipe, batch)
    products, others = kernels.seconds(lambda dtype: SHARE * PEAK[dtype], BANDWIDTH)
    fused_launches, fused = kernels.fused()
    return {
        "launches": kernels.launches.total(),
        "gigabytes": sum(kernels.bytes.values()) / 1e9,
        "teraflop": needed / 1e12,
        "products_ms": products * 1e3,
        "others_ms": others * 1e3,
        "fused_launches": fused_launches,
        "fused": fused,
        "fused_gigabytes": fused.total() / 1e9,
        "fused_mfu": needed / (products + fused.total() / BANDWIDTH) / PEAK[torch.bfloat16],
        "mfu": needed / (products + others) / PEAK[torch.bfloat16],
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=BASES, help="shipped names")
    parser.add_argument("--kernels", action="store_true", help="also the operations with the most bytes")
    parser.add_argument("--micro-batches", type=int, default=1, help="of a step, whose update of the weights they share")
    given = parser.parse_args()
    print(
        "| recipe | TFLOP | ms in products | launches | GB | ms besides | bound | fused: launches | GB | ms besides | bound |"
    )
    print("|---" * 11 + "|")
    for name in given.recipes:
        recipe = load_recipe(name, {"train.precision": "bf16", "encoder.layerdrop": 0.0})
        batch = meta_batch(recipe, micro_batch_rows(name))
        kernels = count_step(recipe, batch, given.micro_batches)
        r = bound(recipe, batch, kernels, given.micro_batches)
        print(
            f"| `{name}` | {r['teraflop']:.2f} | {r['products_ms']:.1f} | {r['launches']} | {r['gigabytes']:.1f} "
            f"| {r['others_ms']:.1f} | {r['mfu']:.2f} | {r['fused_launches']} | {r['fused_gigabytes']:.1f} "
            f"| {r['fused_gigabytes'] * 1e12 / BANDWIDTH:.1f} | {r['fused_mfu']:.2f} |",
            flush=True,
        )
        if given.kernels:
            for operation, size in kernels.bytes.most_common(14):
                print(f"    {operation:34} {kernels.launches[operation]:5} launches {size / 1e9:7.2f} GB")
            for operations, size in r["fused"].most_common(14):
                print(f"    fused {size / 1e9:7.2f} GB {operations[:110]}")
            print(
                "   ", {str(k): f"{v / 1e12:.2f}" for k, v in kernels.products.items()}, f"grouped {kernels.grouped / 1e12:.2f}"
            )


if __name__ == "__main__":
    main()
