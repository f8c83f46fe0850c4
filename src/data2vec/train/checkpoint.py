"""Checkpoints: everything to go on bit for bit, and never half of it.

`RUN/checkpoints/step-N/` holds the objective (student, head, teacher) and the optimizer as safetensors, counters as
JSON, and `complete.json`, the list of these files with their sizes and checksums. A checkpoint is written into a
folder beside, synced to the disk and renamed, so that a `step-N` that is not whole can only be a damaged one.
"""

import errno
import json
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from data2vec.errors import RunStopped, UserError
from data2vec.model import whole_folder

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def save(
    run: Path, step: int, objective: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int | None
) -> Path:
    """Write `RUN/checkpoints/step-N`, then remove all but the newest `keep` (None: remove nothing).

    Raises RunStopped when the disk is full; what was saved before is untouched."""
    folder = run / "checkpoints" / f"step-{step}"
    with told_when_full(run), whole_folder(folder) as aside:
        save_model(objective, str(aside / "objective.safetensors"))
        save_file(_moments(optimizer), aside / "optimizer.safetensors")
        (aside / "state.json").write_text(json.dumps({"step": step} | state), encoding="utf-8")
        files = {path.name: {"bytes": path.stat().st_size, "crc32": _crc32(path)} for path in sorted(aside.iterdir())}
        (aside / "complete.json").write_text(json.dumps(files, indent=1), encoding="utf-8")
    for old in found(run)[keep:] if keep else ():
        shutil.rmtree(old)
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


def weights(folder: Path, objective: nn.Module) -> None:
    """Put the student, the teacher and the head or decoder of a checkpoint into an `objective` on the CPU, in place.

    Raises UserError when it belongs to another model."""
    try:
        load_model(objective, folder / "objective.safetensors")
    except (RuntimeError, SafetensorError) as error:
        raise UserError(_other(folder, error)) from None


def load(folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into `objective` and `optimizer`, in place; returns its counters.

    Raises UserError when it belongs to another model."""
    weights(folder, objective)
    try:
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / "optimizer.safetensors").items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(_other(folder, error)) from None
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


@contextmanager
def told_when_full(run: Path) -> Iterator[None]:
    """Turns the system's word for a full disk into a RunStopped that says what is safe."""
    try:
        yield
    except (OSError, SafetensorError) as error:
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
    return isinstance(error, OSError) and error.errno in FULL


def found(run: Path) -> list[Path]:
    """The checkpoints of a run, whole or not, newest first."""
    folders = (path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit())
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def _other(folder: Path, error: Exception) -> str:
    return f"checkpoint {folder} does not fit this recipe: {str(error).splitlines()[0]}"


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, moments in state.items() for name, tensor in moments.items()}


def _crc32(path: Path) -> str:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
