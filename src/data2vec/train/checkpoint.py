"""Checkpoints: everything to go on bit for bit, and never half of it.

`RUN/checkpoints/step-N/` holds the objective (student, head, teacher) and the optimizer as safetensors, by the names of
the weights: one file of each, or where they are sharded a file from each process. Beside them are counters as JSON, and
`complete.json`, the list of all files with their sizes and checksums. Any number of processes can read what any other
number wrote. A checkpoint is written into a folder beside, synced to the disk and renamed, so that a `step-N` that is
not whole can only be a damaged one.
"""

import errno
import json
import re
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from data2vec.atomic_io import atomic_dir
from data2vec.distributed import Process
from data2vec.errors import RunStopped, UserError
from data2vec.train.parallel import is_sharded

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def save(
    run: Path,
    step: int,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int | None,
    process: Process,
) -> Path:
    """Write `RUN/checkpoints/step-N`, then remove all but the newest `keep` (None: remove nothing). Every process calls it.

    Raises RunStopped when the disk is full; what was saved before is untouched."""
    folder = run / "checkpoints" / f"step-{step}"

    def finish() -> None:
        (tmp / "state.json").write_text(json.dumps({"step": step} | state), encoding="utf-8")
        files = {path.name: {"bytes": path.stat().st_size, "crc32": _crc32(path)} for path in sorted(tmp.iterdir())}
        (tmp / "complete.json").write_text(json.dumps(files, indent=1), encoding="utf-8")
        stack.close()  # leaves atomic_dir: the folder gets its name
        for old in found(run)[keep:] if keep else ():
            shutil.rmtree(old)

    def write() -> None:
        save_file(objective_tensors(objective), tmp / "objective.safetensors")
        save_file(_moments(objective, optimizer), tmp / "optimizer.safetensors")
        finish()

    if process.on_main_process(lambda: folder.exists() and damaged(folder) is None):
        return folder
    with told_when_full(run), ExitStack() as stack:
        tmp = process.on_main_process(lambda: stack.enter_context(atomic_dir(folder)))
        if is_sharded(objective):
            _write_shards(objective_tensors(objective) | _moments(objective, optimizer), tmp)
            process.on_main_process(finish)
        else:
            process.on_main_process(write)
    return folder


def latest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None. Each damaged one that is passed over is named on stderr."""
    for folder in found(run):
        damage = damaged(folder)
        if damage is None:
            return folder
        print(f"data2vec: checkpoint {folder} is passed over: {damage}", file=sys.stderr)
    return None


def damaged(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file is as it was written."""
    try:
        files = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            if _crc32(folder / name) != expected["crc32"]:
                return f"{name} is not what was written (checksum)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"complete.json cannot be read ({error})"
    return None


def load(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into `objective` and `optimizer`, in place, sharded or not; returns its counters.

    Raises UserError when it belongs to another model."""
    moments = _moments(objective, optimizer)
    _read(folder, objective_tensors(objective) | moments)
    for parameter, step in zip(_parameters(optimizer), moments[STEPS], strict=True):
        optimizer.state[parameter]["step"].copy_(step)
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def weights(folder: Path, objective: nn.Module) -> None:
    """Put the student, head and teacher of a checkpoint into `objective`. Raises UserError when it is another model's."""
    _read(folder, objective_tensors(objective))


@contextmanager
def told_when_full(run: Path) -> Iterator[None]:
    """Turns the system's word for a full disk into a RunStopped that says what is safe."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        if not is_full(error):
            raise
        raise RunStopped(f"the disk of {run} is full; make room, then go on by --resume: {safe(run)}") from None


def safe(run: Path) -> str:
    """What a run that stops now can go on from."""
    whole = next((folder.name for folder in found(run) if damaged(folder) is None), None)
    return f"nothing saved is lost, the last whole checkpoint is {whole}" if whole else "no checkpoint had been saved yet"


def is_full(error: BaseException) -> bool:
    """Is this the disk, the quota or the file-size limit speaking?"""
    if isinstance(error, SafetensorError):  # it tells the number of the system's error only in its text
        code = re.search(r"os error (\d+)", str(error))
        return code is not None and int(code[1]) in FULL
    if failures := getattr(error, "failures", None):  # of several processes
        return any(is_full(failure) for failure, _ in failures.values())
    return isinstance(error, OSError) and error.errno in FULL


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, newest first."""
    folders = (path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit())
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


STEPS = "optimizer.step"


def objective_tensors(objective: nn.Module) -> dict[str, Tensor]:
    """All weights by name, themselves and not copies."""
    return {name: tensor.detach() for name, tensor in objective.state_dict().items()}


def _moments(objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments by the names of the weights, themselves; and how many steps each weight has made, (n,), as a copy."""
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


def _write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Each process writes its parts, through PyTorch's distributed checkpoints but as safetensors: nothing is pickled."""
    import torch.distributed.checkpoint as dcp

    dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _read(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill `tensors`, or this process's parts of them, from whatever files hold them."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        missing = tensors.keys() - reader.read_metadata().state_dict_metadata.keys()
        if missing:
            raise ValueError(f"it has no {min(missing)}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # each process reads for itself
            dcp.load(tensors, storage_reader=reader, no_dist=True)
    except (RuntimeError, ValueError, SafetensorError, dcp.CheckpointException) as error:
        failures = getattr(error, "failures", None)
        cause = next(iter(failures.values()))[0] if failures else error
        raise UserError(f"checkpoint {folder} does not fit this recipe: {str(cause).splitlines()[0]}") from None


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
