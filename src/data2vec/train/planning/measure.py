"""Memory and time of a training step on this machine, measured on a single micro-batch."""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from data2vec.batch import Batch
from data2vec.data.loader import Loader
from data2vec.data.masked_batches import rank_stride
from data2vec.distributed import Process
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.recipe import Recipe
from data2vec.train.planning.flops import flop_counter
from data2vec.train.planning.run_plan import StepMeasurement, checkpoint_bytes
from data2vec.train.train_step import TrainStep

CLEAR_REFS = Path("/proc/self/clear_refs")
"""Linux: writing 5 resets the peak of the resident memory of this process."""
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass
class PeakMemory:
    """The peak of the memory used in a block, in bytes."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measures the block: on a GPU the tensors, on a CPU the whole process (outside of Linux, since it started)."""
    found = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            CLEAR_REFS.write_text("5", encoding="ascii")
    yield found
    found.bytes = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_of_process()


def _peak_of_process() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory(device: torch.device) -> int:
    """Bytes that a process may use: on a GPU, what is free and what it has; on a CPU, its part, among the processes of this
    machine, of what is free or used by it, within the limit of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (_free_memory() + local * _resident()) // local


def _free_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = meminfo.read_text(encoding="utf-8").splitlines()
    free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    for path in CGROUPS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            free = min(free, int(path.read_text(encoding="ascii")) - _resident())
    return max(0, free)


def _resident() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def measure_step(recipe: Recipe, loader: Loader, objective: AnyTrainingObjective, process: Process) -> StepMeasurement:
    """What a step takes, by two steps with the first micro-batch of the data; they change the weights of `objective`.

    The first one warms up, and its operations are counted. The rest of the step's micro-batches are taken to cost the same,
    with an update of the weights each, so the time is an upper bound where they are many. Raises what a step raises, such as
    errors for a lack of memory."""
    batch = first_batch(loader)
    make_step = TrainStep(objective, recipe.train, process)
    with peak_memory(process.device) as peak:
        with flop_counter() as counter:
            float(make_step(1, [batch], measure=True, norm=True).loss)
        begin = time.perf_counter()
        float(make_step(1, [batch], measure=False, norm=False).loss)
        seconds = time.perf_counter() - begin
    parts = loader.per_step // rank_stride(loader.per_step, process.world_size)
    flops = counter.get_total_flops() * parts * process.world_size
    load_seconds = None
    if loader.examples is not None:  # the first one has also imported decoders
        begin = time.perf_counter()
        first_batch(loader)
        load_seconds = (time.perf_counter() - begin) * parts
    copied, available = copied_bytes(recipe, objective, process.device), available_memory(process.device)
    return StepMeasurement(flops, seconds * parts, peak.bytes, copied, available, load_seconds)


def copied_bytes(recipe: Recipe, objective: AnyTrainingObjective, device: torch.device) -> int:
    """The memory of the device that the copy of a checkpoint takes which is written while training continues."""
    return checkpoint_bytes(objective) if recipe.train.async_checkpoints and device.type == "cpu" else 0


def first_batch(loader: Loader) -> Batch:
    """The first micro-batch of a run, decoded in this process. Raises as loading does."""
    if loader.examples is None:
        with closing(loader.steps()) as steps:
            return next(steps)[0]
    loaded = loader.batches[next(loader.micro_batches(0))]
    if isinstance(loaded, Exception):
        raise loaded
    return loaded.batch
