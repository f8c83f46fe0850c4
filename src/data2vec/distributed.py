"""The processes of a distributed run, and the device of each.

Processes are started by `torchrun`; without it there is one.
"""

import ctypes
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from data2vec.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """One process of a distributed run; by default the only one. Every process must make the same calls in the same order."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    timeout_seconds: float = 1800.0
    """How long a process waits for the others."""

    @property
    def alone(self) -> "Process":
        """This process as the only one, for what it does without the others."""
        return Process(self.device)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` (n,) over all processes, as float64 on the device, without a host-device sync."""
        total = values.double()
        if self.device.type == "cuda" and not total.is_cuda:
            total = total.pin_memory().to(self.device, non_blocking=True)
        if self.world_size > 1:
            total = total.clone()
            dist.all_reduce(total)
        return total

    def max(self, value: int) -> int:
        """The maximum of `value` over all processes, without a host-device sync."""
        if self.world_size == 1:
            return value
        number = torch.tensor(value)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def all_gather(self, values: list[T]) -> list[T]:
        """The lists of all processes, concatenated in the order of their ranks."""
        if self.world_size == 1:
            return values
        lists: list[list[T] | None] = [None] * self.world_size
        dist.all_gather_object(lists, values)
        return [value for values in lists if values is not None for value in values]

    def on_main_process(self, action: Callable[[], T]) -> T:
        """Run `action` on the main process while the others wait; all return its result or raise its error."""
        if self.world_size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main_process:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


@contextmanager
def process_group(device: str = "auto", timeout_seconds: float = 1800.0) -> Iterator[Process]:
    """Join the processes that torchrun has started, by its environment variables; leave the group at the end.

    `device`: see `resolve_device`. `timeout_seconds`: how long a process waits for the others. Raises UserError when the device
    is not available."""
    rank, world_size = (int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    resolved = resolve_device(device, local_rank(), "train.device")
    flushed = (torch.tensor([1e-39]) * torch.tensor([0.5])).item() == 0
    if resolved.type == "cuda":
        torch.cuda.set_device(resolved)
    else:
        keep_freed_memory()
        # ALiBi biases make attention weights denormal, and CPUs multiply denormal numbers many times slower.
        torch.set_flush_denormal(True)
    joined = world_size > 1 and not dist.is_initialized()
    if joined:
        backend = "cpu:gloo,cuda:nccl" if resolved.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    try:
        yield Process(resolved, rank, world_size, timeout_seconds)
        if joined:
            # gloo's threads abort the interpreter when it exits while one of them still holds a DDP reducer
            gc.collect()
            dist.barrier()
    finally:
        torch.set_flush_denormal(flushed)
        if joined:
            dist.destroy_process_group()


def current_process(device: torch.device) -> Process:
    """This process in the group that it has joined (`process_group`), or the only one."""
    return Process(device, dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Process(device)


def local_rank() -> int:
    """The number of this process among those that torchrun has started on this machine, for the choice of a GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


def is_rank_zero() -> bool:
    """Whether this process is the first of those that torchrun has started, or the only one; with or without a group."""
    return os.environ.get("RANK", "0") == "0"


def is_collective_failure(error: BaseException) -> bool:
    """Whether an error means that this process waited for the others in vain, or lost them."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def report_end(process: Process, reason: str) -> None:
    """Let the other processes know why this one ends, or that it lost them (""); see `lost_processes`."""
    _with_store(process, lambda store: store.set(_end_key(process.rank), reason))


def lost_processes(process: Process, patience_seconds: float = 10.0) -> dict[int, str]:
    """Why the others do not answer, by rank: the reason with which a process ended, or "" if it does not answer at all.

    Every process that lost the others calls this after `report_end`; those that do not are killed, stopped or hang."""
    reasons: dict[int, str] = dict.fromkeys(set(range(process.world_size)) - {process.rank}, "")
    answering: list[int] = []
    end = time.monotonic() + min(patience_seconds, process.timeout_seconds)

    def ask(store: dist.Store) -> None:
        for rank in reasons:
            while not store.check([_end_key(rank)]) and time.monotonic() < end:
                time.sleep(0.1)
            if store.check([_end_key(rank)]):
                reasons[rank] = store.get(_end_key(rank)).decode()
                answering.append(rank)

    _with_store(process, ask)
    return {rank: reason for rank, reason in reasons.items() if reason or rank not in answering}


def _end_key(rank: int) -> str:
    return f"data2vec/end/{rank}"


def _with_store(process: Process, use: Callable[[dist.Store], None]) -> None:
    """Call `use` with the store that the processes share, for as long as they have patience: its host may hang, too."""

    def call() -> None:
        with suppress(RuntimeError, ValueError):  # the host has ended
            use(dist.distributed_c10d._get_default_store())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(15.0)


def resolve_device(name: str, local_rank: int = 0, setting: str = "--device") -> torch.device:
    """The device that `name` means: auto (a GPU if there is one), cpu, cuda or cuda:N.

    `local_rank`: the index of the GPU that plain "cuda" means. `setting`: the option or key with this value, which an error
    names. Raises UserError when there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{setting}: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{setting}: {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        count = torch.cuda.device_count()
        separator = " " if setting.startswith("-") else "="
        if device.index >= count:
            raise UserError(f"{setting}: '{device}' is not available (PyTorch finds {count} GPUs); use {setting}{separator}cpu")
    return device


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees (glibc only).

    By default glibc returns large blocks to the system after every step, which then has to zero all of their pages again:
    up to a sixth of a step on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: never allocate by mmap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never trim
