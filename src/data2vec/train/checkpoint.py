"""Checkpoints: the complete state of a run, for a bit-exact resume.

`RUN/checkpoints/step-N/` holds the objective (student, head, teacher) and the optimizer as safetensors, by the names of the
weights: one file each, or one from each process if they are sharded; beside them counters as JSON, and `complete.json`.
Checkpoints of any number of processes can be loaded by any other number. A checkpoint is written atomically, so an incomplete
`step-N` can only be a damaged one, and is never loaded. Locating and reading them is in `data2vec.run_dir`.
"""

import copy
import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from data2vec.atomic_io import atomic_dir
from data2vec.distributed import Process
from data2vec.errors import Unwritable, get_logger
from data2vec.run_dir import (
    Run,
    checkpoint_damage,
    crc32,
    objective_tensors,
    read_checkpoint_tensors,
    remove_checkpoint,
)
from data2vec.settings import JsonDict
from data2vec.train.parallel import is_sharded

log = get_logger(__name__)
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DISK_LOST = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}
STEPS = "optimizer.step"


class BackgroundWriter:
    """Writes checkpoints in a thread while training continues, one at a time."""

    def __init__(self, process: Process, sharded: bool):
        timeout = timedelta(seconds=process.timeout_seconds)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if sharded else None
        """The processes that write shards, apart from the group in which they train."""
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin to write a checkpoint, after the one before."""
        self.wait()
        self._pending = self._thread.submit(write)

    def wait(self) -> None:
        """Wait until the checkpoint is on the disk. Raises the error of its writing, once."""
        if (pending := self._pending) is not None:
            try:
                pending.result()
            finally:
                if pending.done():  # a second Ctrl-C ends the wait before
                    self._pending = None

    def wait_or_warn(self) -> None:
        """Wait as `wait`, when the run ends for another reason: an error is logged, since a checkpoint that could not be
        written is not among those to resume from."""
        try:
            self.wait()
        except Exception as error:
            log.warning("%s", error)

    def close(self) -> None:
        """`wait_or_warn`, and end the thread."""
        self.wait_or_warn()
        self._thread.shutdown()

    def check(self) -> None:
        """Raise the error of the writing if it has failed already; waits for nothing."""
        if self._pending is not None and self._pending.done():
            self.wait()


def save_checkpoint(
    run: Path,
    step: int,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: JsonDict,
    keep: int | None,
    process: Process,
    save_files: Callable[[Path], Mapping[str, str]] = lambda folder: {},
    background: BackgroundWriter | None = None,
) -> Path:
    """Write `RUN/checkpoints/step-N`, then remove all but the latest `keep` (None: remove nothing). Every process calls it.

    `save_files`: writes what a model needs besides its weights, such as a tokenizer, and returns the file of each setting.
    `background`: copies the weights to the host, and writes the copy while the caller goes on.

    Raises Unwritable when the disk is full, or was for the checkpoint before with `background`; earlier checkpoints are
    untouched."""
    folder = run / "checkpoints" / f"step-{step}"
    state = copy.deepcopy(state)  # parts of it are updated in place

    def finish(opened: ExitStack) -> None:
        settings = {"step": step, "files": files} | state
        (tmp / "state.json").write_text(json.dumps(settings), encoding="utf-8")
        written = [path for path in sorted(tmp.iterdir()) if path.is_file()]
        sums = {path.name: {"bytes": path.stat().st_size, "crc32": crc32(path)} for path in written}
        (tmp / "complete.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
        opened.close()  # leaves atomic_dir, which gives the folder its name
        for old in [path for path in Run(run).checkpoints if int(path.name[5:]) <= step][keep:] if keep else ():
            remove_checkpoint(old)

    def write_all(write: Callable[[], object], opened: ExitStack) -> None:
        with stop_when_unwritable(run), opened:
            write()
            if process.is_main_process:
                finish(opened)

    def open_folder() -> tuple[Path, dict[str, str]]:
        tmp = stack.enter_context(atomic_dir(folder))
        return tmp, dict(save_files(tmp))

    if background is not None:
        process.on_main_process(background.wait)
    if process.on_main_process(lambda: folder.exists() and checkpoint_damage(folder) is None):
        return folder
    weights, moments, sharded = objective_tensors(objective), _adam_state(objective, optimizer), is_sharded(objective)
    with stop_when_unwritable(run), ExitStack() as stack:
        tmp, files = process.on_main_process(open_folder)
        if sharded and background is None:
            _write_shards(weights | moments, tmp)
            process.on_main_process(lambda: finish(stack))
        elif sharded and background is not None:
            written = _start_writing_shards(weights | moments, tmp, background.group)
            background.start(partial(write_all, written.result, stack.pop_all()))
        elif background is None:
            process.on_main_process(lambda: write_all(partial(_write_files, weights, moments, tmp), stack))
        elif process.is_main_process:
            write = partial(_write_files, _copy_to_host(weights), _copy_to_host(moments), tmp)
            background.start(partial(write_all, write, stack.pop_all()))
    return folder


def load_checkpoint(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> JsonDict:
    """Load a checkpoint into `objective` and `optimizer`, in place, sharded or not; returns the `state` it was saved with.

    Raises UserError when it does not fit."""
    adam = _adam_state(objective, optimizer)
    read_checkpoint_tensors(folder, objective_tensors(objective) | adam)
    for parameter, step in zip(_parameters(optimizer), adam[STEPS], strict=True):
        optimizer.state[parameter]["step"].copy_(step)
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


@contextmanager
def stop_when_unwritable(run: Path) -> Iterator[None]:
    """Turns the system's errors for a full or read-only disk into Unwritable, which says what to resume from."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        number = _system_error(error)
        if number not in DISK_FULL | DISK_LOST:
            raise
        full = number in DISK_FULL
        problem = f"disk full: no space left for {run}" if full else f"{run} cannot be written ({os.strerror(number)})"
        fix = "free some space and use --resume" if full else "use --resume when it can be written again"
        raise Unwritable(f"{problem} ({resume_point(run)}); {fix}") from None


def resume_point(run: Path) -> str:
    """Which checkpoint a run that stops now can be resumed from, in words."""
    complete = next((folder.name for folder in Run(run).checkpoints if checkpoint_damage(folder) is None), None)
    return f"the latest complete checkpoint is {complete}" if complete else "no checkpoint was saved yet"


def _system_error(error: BaseException) -> int:
    """The number of the system's error in an error of Python, safetensors or several processes; 0 if there is none."""
    if isinstance(error, SafetensorError):  # only in its text
        number = re.search(r"os error (\d+)", str(error))
        return int(number[1]) if number else 0
    if failures := getattr(error, "failures", None):  # of several processes
        return next(filter(None, (_system_error(failure) for failure, _ in failures.values())), 0)
    return (error.errno or 0) if isinstance(error, OSError) else 0


def _adam_state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments by the names of the weights, not copied; and the number of steps of each weight, (n,), a copy."""
    names = {parameter: name for name, parameter in objective.named_parameters()}
    parameters = _parameters(optimizer)
    moments = {
        f"optimizer.{kind}.{names[parameter]}": optimizer.state[parameter][kind]
        for parameter in parameters
        for kind in ("exp_avg", "exp_avg_sq")
    }
    return moments | {STEPS: torch.stack([optimizer.state[parameter]["step"] for parameter in parameters])}


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _write_files(weights: dict[str, Tensor], moments: dict[str, Tensor], folder: Path) -> None:
    save_file(weights, folder / "objective.safetensors")
    save_file(moments, folder / "optimizer.safetensors")


def _copy_to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Each process writes its shards by PyTorch's distributed checkpoint, as safetensors: nothing is pickled."""
    import torch.distributed.checkpoint as dcp

    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _start_writing_shards(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None) -> "Future[Any]":
    """Copy the shards of this process to the host and write the copy in the background; done when all processes are."""
    import torch.distributed.checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    written = dcp.async_save(tensors, storage_writer=writer, process_group=group)
    assert isinstance(written, Future)  # as the copy is complete
    return written
