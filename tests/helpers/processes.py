"""What tests of several processes share: how they are started, and what must hold in all of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from data2vec.train.parallel import gathered
from data2vec.train.train_step import TrainStep


def torchrun(processes: int, *command: str, timeout: float, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The end of a script in so many processes, which can import `helpers`."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([*start, *command], capture_output=True, text=True, timeout=timeout, env=environment, cwd=cwd)


@contextmanager
def equal_weights() -> Iterator[None]:
    """All processes must have the same weights after each step of the runs in this block."""
    make_step = TrainStep.__call__

    def checked(self: TrainStep, step: int, *rest: Any, **more: Any) -> Any:
        result = make_step(self, step, *rest, **more)
        mine = torch.cat([gathered(p.detach()).flatten() for p in self.objective.parameters()])
        first = mine.clone()
        dist.broadcast(first, 0)
        assert torch.equal(mine, first), step
        return result

    with mock.patch.object(TrainStep, "__call__", checked):
        yield
