"""RUN/machine.json: on what a run was made, and when; an entry for each time it was started."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from data2vec.atomic_io import atomic_write
from data2vec.distributed import Process
from data2vec.errors import Unhealthy


@contextmanager
def recorded(run: Path, process: Process, step: int) -> Iterator[None]:
    """Notes where and when a run goes on from `step`, and how that ended. A process that is killed leaves no end."""
    if not process.is_main_process:
        yield
        return
    every = starts(run)
    every.append({"started": _now(), "step": step, **describe(process)})
    _write(run, every)
    end: dict[str, Any] = {"because": "finished"}
    try:
        yield
    except BaseException as error:
        because = "by Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        end = {"because": because} | ({"unhealthy": True} if isinstance(error, Unhealthy) else {})
        raise
    finally:
        every[-1] |= {"ended": _now(), **end}
        _write(run, every)


def starts(run: Path) -> list[dict[str, Any]]:
    """What `recorded` has written, oldest first."""
    path = run / "machine.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def describe(process: Process) -> dict[str, Any]:
    """The machine of the first process, and the versions that matter."""
    from data2vec import __version__

    return {
        "device": torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else str(process.device),
        "processes": process.world_size,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "data2vec": __version__,
    }


def _processor() -> str:
    """Its name; Python itself knows it only outside Linux."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _write(run: Path, every: list[dict[str, Any]]) -> None:
    with atomic_write(run / "machine.json") as tmp:
        tmp.write_text(json.dumps(every, indent=1), encoding="utf-8")
