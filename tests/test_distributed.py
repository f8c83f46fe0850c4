from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from data2vec import distributed
from data2vec.distributed import Process, is_collective_failure, lost_processes, report_end, resolve_device
from data2vec.errors import UserError


def process(rank: int) -> Process:
    return Process(torch.device("cpu"), rank, 4)


def test_lost_processes_are_those_that_ended_with_a_reason_or_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_with_store", lambda _, use: use(store))
    report_end(process(0), "")  # lost the others
    report_end(process(2), "data2vec was told to fail")
    report_end(process(3), "")
    assert lost_processes(process(0), 0.1) == {1: "", 2: "data2vec was told to fail"}
    assert lost_processes(process(3), 0.1) == {1: "", 2: "data2vec was told to fail"}


def test_all_processes_are_lost_when_the_host_of_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def host_has_ended(_: Process, use: Callable[[dist.Store], None]) -> None:
        return None

    monkeypatch.setattr(distributed, "_with_store", host_has_ended)
    assert lost_processes(process(1), 0.1) == {0: "", 2: "", 3: ""}


def test_collective_failures_are_told_from_errors_of_the_program() -> None:
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242")
    assert is_collective_failure(lost)
    assert is_collective_failure(dist.DistBackendError("NCCL error"))
    assert not is_collective_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("where", "fix"), [({}, "use --device cpu"), ({"setting": "train.device"}, "use train.device=cpu")])
def test_a_device_that_is_not_there_is_refused_with_what_to_set(where: dict[str, str], fix: str) -> None:
    with pytest.raises(UserError, match=fix):
        resolve_device("cuda:99", **where)  # type: ignore[arg-type]
