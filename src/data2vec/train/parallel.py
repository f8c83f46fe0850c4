"""What is put on an objective from outside: a device, data parallelism or sharding, precision, compilation.

The model knows none of it, and a run without it computes the same.
"""

import functools
import inspect
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data2vec.batch import Batch
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.nn.transformer import Block, Transformer
from data2vec.recipe.train_settings import TrainSettings

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prepared:
    """An objective as it is called in training: `prepared(batch, measure=…)` gives the objective's output."""

    forward: nn.Module
    dtype: torch.dtype | None
    """That of the matrix products, where it is not the weights' own."""
    device: torch.device

    def __call__(self, batch: Batch, measure: bool = False) -> Any:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.forward(batch, measure=measure)

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: whole gradients are exchanged only in the last one of a step.

        Sharded ones are exchanged every time, as no process has room for all of them."""
        if last or not isinstance(self.forward, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()


def prepare(objective: nn.Module, settings: TrainSettings, process: Process) -> Prepared:
    """Put the objective on its device, and on it what this run asks for.

    Raises UserError for what cannot be done here: compilation without a compiler, float16 on a CPU or sharded."""
    _check(settings, process)
    objective.to(process.device)
    blocks = [part for part in objective.modules() if isinstance(part, Block)]
    for block in blocks:
        if settings.recompute and any(p.requires_grad for p in block.parameters()):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if settings.compile:
            block.compile()
    forward = objective
    if process.world_size > 1:
        forward = _shard(objective, blocks, process) if settings.shard else _replicate(objective)
    return Prepared(forward, AUTOCAST.get(settings.precision), process.device)


def is_sharded(part: nn.Module) -> bool:
    """Whether this process has only parts of the weights."""
    return any(isinstance(parameter, _dtensor()) for parameter in part.parameters())


def gathered(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded. Every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, _dtensor()) else tensor


def all_weights(part: nn.Module) -> dict[str, Tensor]:
    """All weights of `part` by name, sharded or not. Every process has to call this."""
    return {name: gathered(tensor) for name, tensor in part.state_dict().items()}


def _check(settings: TrainSettings, process: Process) -> None:
    kind = process.device.type
    if settings.precision == "fp16" and kind == "cpu":
        raise UserError("train.precision: fp16 is hundreds of times slower than fp32 on a CPU; use bf16 or fp32")
    if settings.precision == "fp16" and settings.shard and process.world_size > 1:
        raise UserError("train.precision: fp16 does not go with train.shard: true; use bf16")
    if settings.compile and kind == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("train.compile: true needs a C++ compiler on a CPU and there is none; install g++ or set it to false")


def _replicate(objective: nn.Module) -> nn.Module:
    """Every process has all weights (DDP)."""
    skips = any(part.settings.layerdrop > 0 for part in objective.modules() if isinstance(part, Transformer))
    skips |= getattr(getattr(objective, "settings", None), "freeze_steps", 0) > 0  # then all of the encoder is left out
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # before torch 2.13
    buffers: dict[str, Any] = {name: False}  # ours are constants
    return nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True, find_unused_parameters=skips, **buffers)


def _shard(objective: nn.Module, blocks: list[Block], process: Process) -> nn.Module:
    """Every process has a part of all weights, the teacher's too, and gathers a block when it is its turn (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(process.device.type, (process.world_size,))
    for part in (*blocks, objective):
        fully_shard(part, mesh=mesh)
    return objective


def _dtensor() -> type[Any]:
    from torch.distributed.tensor import DTensor

    return DTensor
