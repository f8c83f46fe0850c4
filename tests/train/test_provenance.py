from pathlib import Path

import pytest
import torch

from data2vec.distributed import Process
from data2vec.errors import Unhealthy
from data2vec.run_dir import Run
from data2vec.train.provenance import describe_machine, log_start

FIRST = Process(torch.device("cpu"))


def test_log_start_records_start_and_exit_reason(tmp_path: Path) -> None:
    with log_start(tmp_path, FIRST, 0):
        (entry,) = Run(tmp_path).starts
        assert entry["started"] and "ended" not in entry  # what a process that is killed leaves
    with pytest.raises(Unhealthy), log_start(tmp_path, FIRST, 7):
        raise Unhealthy("collapsed")
    with pytest.raises(KeyboardInterrupt), log_start(tmp_path, FIRST, 9):
        raise KeyboardInterrupt
    every = Run(tmp_path).starts
    assert [(each["step"], each["exit_reason"]) for each in every] == [(0, "finished"), (7, "collapsed"), (9, "interrupted")]
    assert [each.get("unhealthy") for each in every] == [None, True, None]
    assert all(each["ended"] >= each["started"] for each in every)


def test_describe_machine_names_devices_and_versions() -> None:
    told = describe_machine(Process(torch.device("cpu"), rank=0, world_size=4))
    assert told["processes"] == 4 and told["device"] == "cpu" and told["torch"] == torch.__version__
    assert told["processor"] and told["cores"] >= 1 and told["system"]


def test_log_start_on_other_processes_writes_nothing(tmp_path: Path) -> None:
    with log_start(tmp_path, Process(torch.device("cpu"), rank=1, world_size=2), 0):
        pass
    assert Run(tmp_path).starts == []
