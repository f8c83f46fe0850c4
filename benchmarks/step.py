"""How long a training step takes, and how close that is to the machine's matmul rate.

    python benchmarks/step.py [RECIPE…] [--precision fp32|bf16] [--steps 5] [--masks M]

For each recipe, in a process of its own: floating-point operations of a step (counted from shapes: student forward and
backward, teacher forward), the median time of forward, backward, optimizer and teacher, the resulting share of the machine's
matmul rate, and peak memory. The rate is measured right before and after, on the matmuls that dominate the model; medians are
compared with medians, best with best. Inputs: 2 clips of 10 s, 8 images, 2 blocks of 512 tokens in version 1; 1, 2 and 1 in
version 2, and 4 windows of a signal (--rows changes the number, --masks the masks per sample).
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F

from data2vec.batch import Batch, MaskedBatch
from data2vec.distributed import process_group
from data2vec.recipe.loading import load_recipe
from data2vec.recipe.recipe import Recipe
from data2vec.train.train_step import TrainStep

BASES = tuple(f"{kind}/{version}-base" for version in ("v1", "v2") for kind in ("speech", "vision", "text"))
ROWS = {
    "data2vec": {"speech": 2, "vision": 8, "text": 2, "signal": 4},
    "data2vec2": {"speech": 1, "vision": 2, "text": 1, "signal": 4},
}

CPU_TIME = "--cpu-time" in sys.argv


def batch(recipe: Recipe, rows: int | None, samples: int = 160_000) -> MaskedBatch:
    """A batch of full-size examples, or of clips of so many `samples`, with masks from the recipe."""
    generator, modality = torch.Generator().manual_seed(0), recipe.build_modality()
    raw: dict[str, Callable[[int], torch.Tensor]] = {
        "speech": lambda n: torch.randn(n, samples, generator=generator),
        "vision": lambda n: torch.randint(
            0, 256, (n, 3, modality.settings.image, modality.settings.image), generator=generator
        ).byte(),
        "text": lambda n: torch.randint(
            4, modality.settings.vocab_size - 1, (n, modality.settings.max_length), generator=generator
        ),
        "signal": lambda n: torch.randn(n, modality.settings.window, len(modality.settings.names), generator=generator),
    }
    name = modality.settings.name
    made = Batch(raw[name](rows or ROWS[recipe.objective.name][name]))
    views = len(made.input) * recipe.objective.masks_per_sample
    mask = recipe.objective.mask.draw(views, modality.grid(made), np.random.default_rng(0))
    masked = torch.from_numpy(mask.masked)
    return MaskedBatch(made.input, made.padding, mask=masked, predicted_indices=masked.flatten().nonzero()[:, 0])


def operations(recipe: Recipe, given: MaskedBatch) -> float:
    """Floating-point operations of the matmuls in one step; a multiply-add counts as two.

    Forward plus twice that backward for trained parts, forward for the teacher."""
    e, o, m = recipe.encoder, recipe.objective, cast(Any, recipe.modality)
    (views, T), N, B = given.mask.shape, len(given.predicted_indices), len(given)
    seen = T if o.name == "data2vec" else T - N // views

    def blocks(rows: int, length: int) -> float:
        length += e.extra_tokens
        return e.layers * rows * (2 * length * (4 * e.width**2 + 2 * e.width * e.ffn_width) + 4 * length**2 * e.width)

    total = 3 * blocks(views, seen) + blocks(B, T)
    if o.name == "data2vec":
        total += 3 * 2 * N * e.width**2 * (1 if o.head_layers == 1 else 4)
    else:
        d = o.decoder
        for i in range(d.layers):
            total += 3 * 2 * views * T * math.prod(d.kernel) * (e.width if i == 0 else d.width) * d.width / d.groups
        total += 3 * 2 * N * d.width * (e.width if d.head_layers == 1 else 2 * (d.width + e.width))
    if m.name == "speech":
        steps, channels = given.input.shape[1], 1
        for i, (out, kernel, stride) in enumerate(m.conv_layers):
            steps = (steps - kernel) // stride + 1
            total += (2 if i == 0 else 3) * 2 * B * steps * kernel * channels * out
            channels = out
        total += 3 * 2 * B * T * channels * e.width
        total += (3 * views + B) * m.position_depth * 2 * T * m.position_kernel * e.width**2 / m.position_groups
    if m.name == "vision":  # the pixels get no gradient; the teacher embeds them too
        total += 3 * 2 * B * T * 3 * m.patch**2 * e.width
    if m.name == "signal":
        inner = len(m.channels) if m.layout == "joint" else 1
        shapes = [(m.patch * inner, e.width)]
        if m.stem == "conv":  # of a patch: two convolutions with 8 channels for each of the input, then the projection
            stride = max(each for each in range(1, 9) if m.patch % each == 0)
            steps, out = m.patch // stride, 8 * inner
            shapes = [(steps * (2 * stride + 1) * inner, out), (steps * 3 * out, out), (steps * out, e.width)]
        shapes += [(inner * (m.patch // 2 + 1), e.width)] if m.spectrum else []
        total += 3 * 2 * B * T * sum(math.prod(shape) for shape in shapes)
    return total


def matmul_rates(device: torch.device, dtype: torch.dtype, rows: int | None = None) -> list[float]:
    """Operations per second of the two feed-forward matmuls with so many rows, for several tries."""
    rows = rows or (1024 if device.type == "cpu" else 16384)
    x = torch.randn(rows, 768, device=device, dtype=dtype)
    inner, outer = (torch.randn(*shape, device=device, dtype=dtype) for shape in ((3072, 768), (768, 3072)))
    rates, repeats = [], 5 if device.type == "cpu" else 200
    for _ in range(8):
        begin = clock(device)
        for _ in range(repeats):
            F.linear(F.linear(x, inner), outer)
        rates.append(repeats * 2 * 2 * rows * 768 * 3072 / (clock(device) - begin))
    return rates[1:]


def clock(device: torch.device) -> float:
    """Seconds, after synchronising the device; with --cpu-time those of the processor."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if CPU_TIME else time.perf_counter()


def measure(name: str, precision: str, steps: int, rows: int | None, masks: int | None) -> dict[str, Any]:
    """All figures of one recipe; in its own process, so that peak memory is its own."""
    every_block = {"encoder.layerdrop": 0.0}  # otherwise steps differ in what they compute
    views = {} if masks is None else {"objective.masks_per_sample": masks}
    recipe = load_recipe(name, {"train.precision": precision, "train.device": "auto"} | every_block | views)
    with process_group(recipe.train.device) as process:
        torch.manual_seed(0)
        objective = recipe.build_objective()
        step, given = TrainStep(objective, recipe.train, process), batch(recipe, rows)
        count = operations(recipe, given)
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        rates = matmul_rates(process.device, dtype)
        times = []
        for number in range(1, steps + 3):
            begin = clock(process.device)
            step(number, [given], measure=False, norm=False)
            times.append(clock(process.device) - begin)
        rates += matmul_rates(process.device, dtype)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if process.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(process.device)
    seconds, best = statistics.median(times[2:]), min(times[2:])
    rate, best_rate = statistics.median(rates), max(rates)
    return {
        "recipe": name, "precision": precision, "GFLOP": count / 1e9, "seconds": seconds, "best": best, "rate": rate / 1e9,
        "best_rate": best_rate / 1e9, "share": count / seconds / rate, "best_share": count / best / best_rate,
        "peak_GB": memory / 1e9,
    }  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=BASES, help="shipped names or files")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two for warm-up")
    parser.add_argument("--rows", type=int, help="examples in the batch")
    parser.add_argument("--masks", type=int, help="masked views of an example (version 2)")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, for a machine under load")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measure(given.recipes[0], given.precision, given.steps, given.rows, given.masks)))
        return
    print(
        "| recipe | precision | GFLOP | seconds (median, best) | matmul GFLOP/s (same) | share (same) | peak GB |\n"
        + "|---" * 7
        + "|"
    )
    for name in given.recipes:
        options = ["--precision", given.precision, "--steps", str(given.steps), *["--cpu-time"] * given.cpu_time]
        for key in ("rows", "masks"):
            options += [f"--{key}", str(getattr(given, key))] if getattr(given, key) else []
        run = subprocess.run(
            [sys.executable, __file__, name, "--json", *options], stdout=subprocess.PIPE, text=True, check=True
        )
        r = json.loads(run.stdout.splitlines()[-1])
        print(
            f"| {r['recipe']} | {r['precision']} | {r['GFLOP']:.0f} | {r['seconds']:.2f}, {r['best']:.2f} "
            f"| {r['rate']:.0f}, {r['best_rate']:.0f} | {r['share']:.2f}, {r['best_share']:.2f} | {r['peak_GB']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
