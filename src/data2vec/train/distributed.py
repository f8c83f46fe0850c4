"""One process or many: who am I, and how the objective is made to run on what there is.

Processes are started by `torchrun`; without it there is one.
"""

import ctypes
import gc
import inspect
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data2vec.errors import UserError
from data2vec.nn.transformer import Block, Transformer
from data2vec.train.settings import TrainSettings

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among those of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """The process that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sums over all processes of `values` (n,), as float64 on the device; the host does not wait for them."""
        total = values.double()
        if self.device.type == "cuda" and not total.is_cuda:
            total = total.pin_memory().to(self.device, non_blocking=True)
        if self.world > 1:
            total = total.clone()
            dist.all_reduce(total)
        return total

    def gather(self, values: list[T]) -> list[T]:
        """The lists of all processes, one after the other, on every process."""
        if self.world == 1:
            return values
        lists: list[Any] = [None] * self.world
        dist.all_gather_object(lists, values)
        return [value for values in lists for value in values]

    def on_first(self, action: Callable[[], T]) -> T:
        """Do `action` on the first process while the others wait; its result, or its error, is everybody's."""
        if self.world == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


@contextmanager
def process(device: str = "auto") -> Iterator[Process]:
    """The process this is, by torchrun's environment; leaves the group at the end.

    Raises UserError when `device` is not there."""
    rank, world, local = (
        int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    place = _device(device, local if world > 1 else 0)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    else:
        keep_memory()
        # A penalty on distance makes attention weights so small that the processor multiplies them many times slower.
        torch.set_flush_denormal(True)
    joined = world > 1 and not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Process(rank, world, place)
        if joined:
            # gloo's threads abort the interpreter when it ends while one of them still holds a reducer
            gc.collect()
            dist.barrier()
    finally:
        if joined:
            dist.destroy_process_group()


def keep_memory() -> None:
    """Let this process keep the memory it frees, where the C library is GNU's.

    By default the library gives large blocks back to the system after every step, which then has to clear every page of
    them anew: up to a sixth of a step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks of their own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"train.device: {name!r} is no device: auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device: {name!r} is not supported: auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        device = torch.device("cuda", local if device.index is None else device.index)
        count = torch.cuda.device_count()
        if device.index >= count:
            raise UserError(
                f"train.device: {device} is not there, this machine shows {count} GPU(s) to PyTorch; use train.device=cpu"
            )
    return device


@dataclass(frozen=True)
class Prepared:
    """An objective as it is called in training: `prepared(batch, measure=…)` gives the objective's Output."""

    forward: nn.Module
    autocast: bool
    device: torch.device

    def __call__(self, batch: dict[str, Tensor], measure: bool = False) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.forward(batch, measure=measure)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: gradients are exchanged only in the last one of a step."""
        if last or not isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()


def prepare(objective: nn.Module, settings: TrainSettings, process: Process) -> Prepared:
    """Put the objective on its device, and on it what this run asks for: compilation, data parallelism, precision.

    Raises UserError when compilation is asked for and there is no compiler."""
    objective.to(process.device)
    if settings.compile:
        if process.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
            raise UserError(
                "train.compile: true needs a C++ compiler on a CPU and there is none; install g++ or set it to false"
            )
        for block in objective.modules():
            if isinstance(block, Block):
                block.compile()
    forward: nn.Module = objective
    if process.world > 1:
        skips = any(part.settings.layerdrop > 0 for part in objective.modules() if isinstance(part, Transformer))
        parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # before torch 2.13
        buffers: dict[str, Any] = {name: False}  # ours are constants
        forward = nn.parallel.DistributedDataParallel(
            objective,
            gradient_as_bucket_view=True,
            find_unused_parameters=skips,
            **buffers,
        )
    return Prepared(forward, settings.precision == "bf16", process.device)
