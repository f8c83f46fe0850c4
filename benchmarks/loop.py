"""Where the time of the training loop goes: `data2vec pretrain` with each base recipe on JPEGs, FLACs and text.

    python benchmarks/loop.py [RECIPE…] [--precision P] [--micro-batch N] [--steps 3] [--workers W]

For each recipe, in a process of its own: seconds per step and the share spent waiting for data, over some steady steps; then,
from PyTorch's profile of as many more, the share of matmuls (convolutions and attention kernels included) and of everything
else, by operator. Operations per second of a step are compared with the rate of the model's own feed-forward matmuls, measured
right before: on a GPU that is the utilisation.

A batch has N examples (an image, 10 s of speech, a block of text). On a CPU the default is small, as in step.py; on a GPU it is
doubled until memory runs out, eager and compiled. Layer drop is off. On a GPU, the steps before the first timed one
use up the prefetched batches.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import files
import torch
from step import BASES, ROWS, clock, matmul_rates, operations
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

import data2vec
from data2vec.batch import Batch
from data2vec.errors import RunStopped
from data2vec.nn import cpu_kernels
from data2vec.recipe.loading import load_recipe
from data2vec.train import trainer
from data2vec.train.train_step import TrainStep

UNITS = {"speech": "10 s", "vision": "images", "text": "blocks"}
PARTS = {
    "matrix products": r"(mm|addmm_?|bmm|baddbmm_?|dot|linear|\w*convolution\w*|\w*attention\w*|\w*gemm\w*)",
    "copies": r"(copy_|_to_copy|cat|stack|index|index_put_|gather|index_select|fill_|zero_|constant_pad_nd|\w*pad\w*)",
    "GELU": r"gelu\w*",
    "norms": r"native_\w+_norm\w*",
    "softmax": r"_softmax\w*",
    "random numbers": r"(random numbers|random_|bernoulli_|uniform_|normal_|native_dropout\w*|randint|\w*philox\w*)",
    "optimizer": r"_fused_adamw?_",
    "norm of the gradients": r"(_foreach_norm|linalg_vector_norm)",
    "moving average": r"(_foreach_\w+|lerp_)",
    "sums": r"(sum|mean|var|std|var_mean)",
    "additions and products": r"(add|add_|sub|sub_|mul|mul_|div|div_|addcmul\w*|where|masked_fill_?|neg|rsub)",
    "comparisons": r"(ge|gt|le|lt|eq|ne|bitwise_\w+)",
    "embedding": r"embedding\w*",
    "loss": r"(mse_loss|smooth_l1_loss|l1_loss)\w*",
    "compiled, not products": r"(triton_\w+|Torch-Compiled.*|CompiledFunction\w*|## Call.*)",
    "Python, between operators": r"(step|Optimizer\..*|autograd::.*|_[A-Z]\w+|\w+Backward\d*)",
}


class Enough(Exception):
    """All steps are measured."""


class Watched(TrainStep):
    """Records when steps begin and end; the last ones under the profiler."""

    warm_up = 3
    steps = 3
    begins: list[float] = []  # noqa: RUF012
    ends: list[float] = []  # noqa: RUF012
    batch: Batch
    profiled: profile
    elapsed: float

    def __call__(self, step: int, micro_batches: Any, measure: bool, norm: bool) -> Any:
        if step == self.warm_up + self.steps + 1:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.process.device.type == "cuda")
            type(self).profiled = profile(activities=activities).__enter__()
        # a GPU is still busy when a step returns, so only the ends of the interval synchronise
        ends = step in (self.warm_up + 1, self.warm_up + self.steps)
        self.begins.append(clock(self.process.device) if ends else time.perf_counter())
        with record_function("step"):
            measured = super().__call__(step, micro_batches, measure, norm)
        self.ends.append(clock(self.process.device) if ends else time.perf_counter())
        type(self).batch = micro_batches[0]
        if step == self.warm_up + 2 * self.steps:
            type(self).elapsed = clock(self.process.device) - self.begins[self.warm_up + self.steps]
            self.profiled.__exit__(None, None, None)
            raise Enough
        return measured


def draw_keep_mask(shape: tuple[int, ...], p: float, original: Any = cpu_kernels.draw_keep_mask) -> torch.Tensor:
    """As in the package, but labelled for the profiler."""
    with record_function("random numbers"):
        return original(shape, p)


def overrides(name: str, rows: int | None, precision: str | None, workers: int) -> tuple[dict[str, Any], int]:
    """Overrides that make a step of the recipe one batch of `rows` examples, and their number."""
    recipe = load_recipe(name)
    modality = recipe.modality.name
    rows = rows or ROWS[recipe.objective.name][modality]
    given = {"encoder.layerdrop": 0.0, "data.workers": workers, "log.every": 10**9, "train.checkpoint_every": 10**9}
    if precision:
        given["train.precision"] = precision
    if modality == "speech":
        return given | {"data.max_seconds": 10, "data.batch_seconds": 10 * rows, "data.micro_batch_seconds": 10 * rows}, rows
    return given | {"data.batch_size": rows, "data.micro_batch_size": rows}, rows


def measure(name: str, data: str, given: dict[str, Any], steps: int) -> dict[str, Any]:
    """All figures of one recipe; in its own process, so that memory starts empty."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Watched.steps = steps
    Watched.warm_up = 3 if device.type == "cpu" else 3 + 4 * given["data.workers"]
    trainer.TrainStep = Watched  # type: ignore[misc]
    cpu_kernels.draw_keep_mask = draw_keep_mask
    recipe = load_recipe(name, given)
    dtype = torch.float32 if recipe.train.precision == "fp32" else torch.bfloat16
    rate = statistics.median(matmul_rates(device, dtype))
    with tempfile.TemporaryDirectory() as out, suppress(Enough):
        data2vec.pretrain(recipe, data, out=f"{out}/run")
    begins, ends, first = Watched.begins, Watched.ends, Watched.warm_up
    last = first + steps
    seconds = (ends[last - 1] - begins[first]) / steps
    waited = sum(begin - end for begin, end in zip(begins[first + 1 : last], ends[first:last], strict=False)) / (steps - 1)
    parts, idle = shares(Watched.profiled, device)
    return {
        "seconds": seconds,
        "waited": waited / seconds,
        "GFLOP/s": operations(recipe, Watched.batch) / seconds / 1e9,
        "rate": rate / 1e9,
        "idle": idle,
        "parts": parts,
        "precision": recipe.train.precision,
        "card": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
    }


def shares(profiled: profile, device: torch.device) -> tuple[dict[str, float], float]:
    """The share of each part in the time of all operators, and the idle share of a GPU."""
    on_cpu = [event for event in profiled.key_averages() if event.device_type == DeviceType.CPU]
    spent: Counter[str] = Counter()
    for event in on_cpu:
        operator = event.key.removeprefix("aten::")
        part = next((part for part, pattern in PARTS.items() if re.fullmatch(pattern, operator)), operator)
        spent[part] += event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total
    total = sum(spent.values())
    idle = 0.0 if device.type == "cpu" else max(0.0, 1 - total / 1e6 / Watched.elapsed)
    return {part: value / total for part, value in spent.most_common()}, idle


def run(name: str, data: Path, rows: int | None, options: argparse.Namespace, compiled: bool) -> dict[str, Any] | None:
    """The result of `measure` in a process of its own; None when out of memory."""
    given, rows = overrides(name, rows, options.precision, options.workers)
    asked = json.dumps([name, str(data), given | {"train.compile": compiled}, options.steps])
    child = subprocess.run([sys.executable, __file__, "--measure", asked], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(child.stdout.splitlines()[-1])
    return found | {"rows": rows, "compiled": compiled} if found else None


def largest(name: str, data: Path, options: argparse.Namespace, compiled: bool) -> dict[str, Any] | None:
    """The result with the most examples that fit, doubling from the CPU's number."""
    best = run(name, data, None, options, compiled)
    while best and (more := run(name, data, 2 * best["rows"], options, compiled)):
        best = more
    return best


def show(name: str, found: dict[str, Any]) -> None:
    """Print the figures of a recipe."""
    parts, how = dict(found["parts"]), f"{found['precision']}{', compiled' if found['compiled'] else ''}"
    products = parts.pop("matrix products", 0.0)
    print(f"{name} ({how}, {found['rows']} x {UNITS[name.partition('/')[0]]}, {found['card']})")
    print(f"  {found['seconds']:.3f} s per step, {found['waited']:.1%} of it waiting for data")
    share = found["GFLOP/s"] / found["rate"]
    print(f"  {found['GFLOP/s']:.0f} GFLOP/s, {share:.2f} of the matmul rate ({found['rate']:.0f})")
    if found["card"] != "CPU":
        print(f"  the GPU is idle for {found['idle']:.1%} of the time; of the rest:")
    print(f"  {products:6.1%} matmuls")
    for part, value in list(parts.items())[:9]:
        print(f"  {value:6.1%} {part}")
    print(f"  {sum(list(parts.values())[9:]):6.1%} everything else", flush=True)


def main() -> None:
    """Print where the time of each recipe goes."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=BASES, help="shipped names")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: the recipe's")
    parser.add_argument("--micro-batch", type=int, metavar="N", help="examples in a batch")
    parser.add_argument(
        "--steps", type=int, default=20 if gpu else 3, help="timed steps, at least 2, and as many more profiled"
    )
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes that load data")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        try:
            print(json.dumps(measure(*json.loads(options.measure))))
        except (RunStopped, torch.OutOfMemoryError) as error:
            if "out of memory" not in str(error):
                raise
            print("null")
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DATA2VEC_CACHE"] = f"{folder}/cache"
        for name in options.recipes:
            kind = name.partition("/")[0]
            if not (data := Path(folder, kind)).exists():
                files.write(kind, data)
            for compiled in (False, True) if gpu else (False,):
                search = gpu and options.micro_batch is None
                found = (
                    largest(name, data, options, compiled)
                    if search
                    else run(name, data, options.micro_batch, options, compiled)
                )
                if found is None:
                    print(f"{name}: not even the smallest batch fits")
                else:
                    show(name, found)


if __name__ == "__main__":
    main()
