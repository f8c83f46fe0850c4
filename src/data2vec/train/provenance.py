"""RUN/machine.json: when and on which machine a run was started or resumed. Read it by `Run.starts`."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import torch

from data2vec.atomic_io import write_json
from data2vec.distributed import Process
from data2vec.errors import Unhealthy
from data2vec.run_dir import Run
from data2vec.settings import JsonDict


@contextmanager
def log_start(run: Path, process: Process, step: int) -> Iterator[None]:
    """Log that a run is started or resumed at `step`, and how that ends. A process that is killed leaves no end."""
    if not process.is_main_process:
        yield
        return
    starts = Run(run).starts
    starts.append({"started": _now(), "step": step, **describe_machine(process)})
    _write_starts(run, starts)
    try:
        yield
    except BaseException as error:
        reason = str(error) or ("interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__)
        end = {"exit_reason": reason} | ({"unhealthy": True} if isinstance(error, Unhealthy) else {})
        with suppress(OSError):  # such as a read-only disk, which is what the error says
            _write_end(run, starts, end)
        raise
    _write_end(run, starts, {"exit_reason": "finished"})


def _write_end(run: Path, starts: list[JsonDict], end: JsonDict) -> None:
    starts[-1] |= {"ended": _now(), **end}
    _write_starts(run, starts)


def describe_machine(process: Process) -> JsonDict:
    """The machine of the main process, and the versions that matter."""
    from data2vec import __version__

    return {
        "device": torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else str(process.device),
        "processes": process.world_size,
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "data2vec": __version__,
    }


def _processor_name() -> str:
    """From /proc/cpuinfo: on Linux, `platform.processor` does not know it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _write_starts(run: Path, starts: list[JsonDict]) -> None:
    write_json(run / "machine.json", starts)
