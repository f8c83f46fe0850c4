"""Puts an objective on its device, with data parallelism or sharding, mixed precision, recomputation and compilation.

The model contains none of this, and computes the same without it.
"""

import functools
import inspect
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.checkpoint import checkpoint

from data2vec.batch import Batch
from data2vec.distributed import Process
from data2vec.errors import UserError
from data2vec.nn.compilation import can_compile, require_compiler
from data2vec.nn.transformer import Block
from data2vec.objective.latent import LatentObjective
from data2vec.objective.training_objective import AnyTrainingObjective
from data2vec.recipe.train_settings import TrainSettings
from data2vec.settings import JsonDict

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ParallelModel:
    """An objective as it is called in training; `model(batch, measure=…)` returns what the objective does."""

    forward: nn.Module
    dtype: torch.dtype | None
    """Of the matrix products under autocast; None: that of the weights."""
    device: torch.device
    skippable: "SkippableParameters | None" = None
    """Of replicas, some of whose parameters a step may leave out."""

    def __call__(self, batch: Batch, measure: bool = False) -> Any:
        with self.autocast():
            output = self.forward(batch, measure=measure)
            return output if self.skippable is None else replace(output, loss=self.skippable.require(output.loss))

    def autocast(self, enabled: bool = True) -> AbstractContextManager[Any]:
        """Autocast, which forward is in, or none, for backward. Weights are cast once for all micro-batches of a step that are
        in one such context; shards are gathered, and cast, every time."""
        return torch.autocast(self.device.type, self.dtype, enabled=enabled and self.dtype is not None)

    @contextmanager
    def accumulate(self, last: bool) -> Iterator[None]:
        """A context for forward and backward of a micro-batch: replicas exchange gradients only in the last one of a step.

        Shards exchange them every time, as no process has memory for all gradients."""
        together = not last and isinstance(self.forward, nn.parallel.DistributedDataParallel)
        with self.forward.no_sync() if together else nullcontext():  # type: ignore[operator]
            yield
        if last and self.skippable is not None:
            self.skippable.clear_skipped()


class SkippableParameters:
    """Parameters that a step may leave out, in all processes the same ones, as layerdrop does.

    DDP waits for the gradients of all parameters; its own search for those that will have none walks through the graph of every
    micro-batch. Here the loss depends on all of them, but without a gradient, for which DDP exchanges zeros where no other one
    comes. The zeros are removed again: the optimizer leaves these parameters as they are, as it does in one process."""

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.used = set[Tensor]()
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._note)

    def _note(self, parameter: Tensor) -> None:
        """Called when a backward pass is through with a parameter, before DDP sets what is still None to zero."""
        if parameter.grad is not None:
            self.used.add(parameter)

    def require(self, loss: Tensor) -> Tensor:
        """The same loss, which depends on all parameters."""
        required: Tensor = _Require.apply(loss, *self.parameters)
        return required

    def clear_skipped(self) -> None:
        """At the end of a step's last backward pass: remove the gradients of what no micro-batch has used."""
        for parameter in self.parameters:
            if parameter not in self.used:
                parameter.grad = None
        self.used.clear()


class _Require(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (gradient, *[None] * ctx.count)


def parallelize(
    objective: AnyTrainingObjective, settings: TrainSettings, process: Process, backend: str = "inductor"
) -> ParallelModel:
    """Put the objective on the device of the process, and parallelize it as the settings say. `backend`: the compiler's.

    Raises UserError for settings that do not work on this machine: see `check_parallel_settings`."""
    check_parallel_settings(settings, process, backend)
    objective.to(process.device)
    blocks = [part for part in objective.modules() if isinstance(part, Block)]
    for block in blocks:
        if settings.recompute and any(p.requires_grad for p in block.parameters()):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if compiles(settings, process.device):
        sharded = settings.shard and process.world_size > 1  # a block is gathered when it is called
        _compile(objective, blocks, isinstance(objective, LatentObjective) and not sharded, backend)
    forward: nn.Module = objective
    skippable = None
    if process.world_size > 1:
        forward = _shard(objective, blocks, settings, process) if settings.shard else _replicate(objective, settings)
        skippable = None if settings.shard or not objective.may_skip_parameters else SkippableParameters(objective.parameters())
    return ParallelModel(forward, AUTOCAST.get(settings.precision), process.device, skippable)


def compiles(settings: TrainSettings, device: torch.device) -> bool:
    """Whether `train.compile` compiles on this device."""
    return device.type == "cuda" and can_compile(device) if settings.compile == "auto" else settings.compile


def _compile(objective: AnyTrainingObjective, blocks: list[Block], whole: bool, backend: str) -> None:
    """Compile `LatentObjective.predict` as one graph, if `whole`; otherwise these blocks.

    A graph is always the same, so layerdrop selects between a block's input and output instead of skipping the block."""
    if not whole:
        for block in blocks:
            block.compile(backend=backend)
        return
    student = objective.student.transformer
    if student.settings.layerdrop:
        device = next(student.parameters()).device
        student.kept_blocks = torch.ones(len(student.blocks), dtype=torch.bool, device=device)
    objective.predict = torch.compile(objective.predict, backend=backend)  # type: ignore[assignment, arg-type]


def is_sharded(part: nn.Module) -> bool:
    """Whether this process has only shards of the weights."""
    return any(isinstance(parameter, _dtensor()) for parameter in part.parameters())


def gathered(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded. Every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, _dtensor()) else tensor


def full_state_dict(part: nn.Module) -> dict[str, Tensor]:
    """The full weights of `part` by name, sharded or not. Every process has to call this."""
    return {name: gathered(tensor) for name, tensor in part.state_dict().items()}


def check_parallel_settings(settings: TrainSettings, process: Process, backend: str = "inductor") -> None:
    """Raises UserError for float16 on a CPU or sharded, and for compilation on a CPU without a compiler."""
    kind = process.device.type
    if settings.precision == "fp16" and kind == "cpu":
        raise UserError("train.precision: fp16 is hundreds of times slower than fp32 on a CPU; use bf16 or fp32")
    if settings.precision == "fp16" and settings.shard and process.world_size > 1:
        raise UserError("train.precision: fp16 is not supported with train.shard=true; use bf16")
    if settings.compile is True and backend == "inductor":
        require_compiler(process.device, "train.compile=true")


def _replicate(objective: AnyTrainingObjective, settings: TrainSettings) -> nn.Module:
    """Every process has all weights (DDP)."""
    parameters = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"  # before torch 2.13
    buffers: JsonDict = {name: False}  # ours are constants
    replica = nn.parallel.DistributedDataParallel(objective, gradient_as_bucket_view=True, **buffers)
    if settings.communication == "bf16":
        replica.register_comm_hook(None, _reduce_in_bf16)
    return replica


def _reduce_in_bf16(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP refuses the library's own function by its name unless the backend is NCCL."""
    return default_hooks.bf16_compress_hook(state, bucket)  # type: ignore[arg-type]


def _shard(objective: AnyTrainingObjective, blocks: list[Block], settings: TrainSettings, process: Process) -> nn.Module:
    """Every process has a shard of all weights, including the teacher's, and gathers one block at a time (FSDP2). With
    `train.shard=node` the processes of a machine have all shards, and those of other machines the same ones."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    local = int(os.environ.get("LOCAL_WORLD_SIZE", process.world_size))
    machines, rest = divmod(process.world_size, local)
    if settings.shard == "node" and rest:
        raise UserError(f"train.shard: node, but {process.world_size} processes are not equally many on each machine")
    shape: tuple[int, ...] = (process.world_size,)
    names: tuple[str, ...] = ("shard",)
    if settings.shard == "node" and machines > 1:
        shape, names = (machines, local), ("replicate", "shard")
    mesh = init_device_mesh(process.device.type, shape, mesh_dim_names=names)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if settings.communication == "bf16" else None)
    for part in (*blocks, objective):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    return objective


def _dtensor() -> type[Any]:
    from torch.distributed.tensor import DTensor

    return DTensor
