"""One process or many: who am I, and how we agree.

Processes are started by `torchrun`; without it there is one.
"""

import ctypes
import gc
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data2vec.errors import UserError

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

    def greatest(self, value: int) -> int:
        """The greatest `value` of all processes. No process waits for its device."""
        if self.world == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

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
    flushed = (torch.tensor([1e-39]) * torch.tensor([0.5])).item() == 0
    if place.type == "cuda":
        torch.cuda.set_device(place)
    else:
        keep_memory()
        # A penalty on distance makes attention weights so small that the processor multiplies them many times slower.
        torch.set_flush_denormal(True)
    joined = world > 1 and not dist.is_initialized()
    if joined:
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Process(rank, world, place)
        if joined:
            # gloo's threads abort the interpreter when it ends while one of them still holds a reducer
            gc.collect()
            dist.barrier()
    finally:
        torch.set_flush_denormal(flushed)
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
