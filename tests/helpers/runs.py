"""What tests of runs share: the metrics that a run has to repeat, and crashes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest

from data2vec.run_dir import Run
from data2vec.train.train_step import TrainStep

TIMINGS = {"seconds", "samples_per_second", "data_wait", "probe_seconds"}


def measured(run: Run, without: set[str] = TIMINGS) -> list[dict[str, Any]]:
    """The logged metrics without some, by default those that differ when a run is repeated."""
    return [{key: value for key, value in line.items() if key not in without} for line in run.metrics]


@contextmanager
def crash_before(step: int) -> Iterator[None]:
    """The run in this block has to reach the optimizer step of this number, and crashes there."""
    make_step = TrainStep.__call__

    def crash(self: Any, number: int, *rest: Any, **more: Any) -> Any:
        return 1 / 0 if number == step else make_step(self, number, *rest, **more)

    with mock.patch.object(TrainStep, "__call__", crash), pytest.raises(ZeroDivisionError):
        yield
