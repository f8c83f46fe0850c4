"""Hostile, damaged and foreign files end in one line of UserError, and nothing in them runs."""

import contextlib
import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from data2vec.errors import UserError
from data2vec.interop.safe_load import Stub, safe_load
from helpers.hostile_pickles import CANARY, CASES, FILES, LIVE, TOUCH, call, legacy, pickled, written, zipped


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves a canary, in the folder or on an object that all share."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(CANARY).exists()
    assert not any(hasattr(shared, CANARY) for shared in (OrderedDict, Namespace, torch.Tensor, Stub, os))


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        safe_load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} is ") and message.isprintable() and len(message) < 600
    return message


@pytest.mark.parametrize("case", LIVE)
def test_live_payload_would_run_with_pickle(case: str) -> None:
    with contextlib.suppress(Exception):
        pickle.loads(pickled(LIVE[case][0]))
    canary = Path(CANARY)
    assert canary.exists()
    canary.rmdir() if canary.is_dir() else canary.unlink()


@pytest.mark.parametrize("write", [zipped, legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", CASES)
def test_hostile_pickle_is_refused_in_one_line(case: str, write: Callable[[Path, bytes], Path]) -> None:
    payload, named = CASES[case]
    assert named in refusal(write(Path("model.pt"), payload))


@pytest.mark.parametrize("case", FILES)
def test_hostile_or_foreign_file_is_refused_in_one_line(case: str) -> None:
    write, named = FILES[case]
    assert named in refusal(write(Path("model.pt")))


def test_missing_file_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.pt is not readable: No such file"):
        safe_load(Path("model.pt"))


def test_truncated_file_is_refused() -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": OrderedDict(a=torch.ones(3))}, "model.pt", **options)
        whole = Path("model.pt").read_bytes()
        for kept in range(0, len(whole), 17):
            refusal(written(Path("cut.pt"), whole[:kept]))


def test_changed_byte_is_read_or_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"model": OrderedDict(a=torch.ones(3)), "args": Namespace(lr=[0.1])}, "model.pt", **options)
        whole = Path("model.pt").read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            data[int(torch.randint(len(data), (), generator=generator))] = int(torch.randint(256, (), generator=generator))
            with contextlib.suppress(UserError):
                safe_load(written(Path("changed.pt"), bytes(data)))


def test_hundred_thousand_nested_lists_are_read_and_freed() -> None:
    path = zipped(Path("model.pt"), b"]" * 100_000 + b"a" * 99_999)
    value = safe_load(path)
    for _ in range(99_999):
        (value,) = value
    assert value == []


def test_name_that_contains_a_dangerous_name_is_only_a_stub() -> None:
    value = safe_load(zipped(Path("model.pt"), call("fairseq.os.system", TOUCH)))
    assert isinstance(value, Stub) and (value.name, value.arguments) == ("fairseq.os.system", (f"touch {CANARY}",))
