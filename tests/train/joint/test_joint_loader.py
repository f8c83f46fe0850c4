"""The loader of a joint run."""

from types import SimpleNamespace
from typing import Any

import pytest

from data2vec.errors import RunStopped
from data2vec.objective.part_schedule import PartSchedule
from data2vec.train.joint.loader import JointLoader
from helpers.toy_modality import loader, rows


def test_corrupt_examples_keep_the_order_in_which_they_were_found() -> None:
    """So that the first ones are those of complete steps, which a checkpoint after an error holds."""
    found: dict[str, list[str]] = {"speech": [], "vision": []}
    loaders: Any = {
        name: SimpleNamespace(corrupt_names=names, share_workers=lambda loaders: None) for name, names in found.items()
    }
    joint = JointLoader(loaders, PartSchedule({"speech": 0.5, "vision": 0.5}, 10, 0))
    found["vision"].append("1.png: cut off")
    assert joint.corrupt_names == ["vision/1.png: cut off"]
    found["speech"].append("2.wav: empty")
    assert joint.corrupt_names == ["vision/1.png: cut off", "speech/2.wav: empty"]


def test_parts_share_the_workers_that_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(10)))
    data = rows()
    parts = {
        "a": loader(data, workers=None),
        "b": loader(data.to_iterable_dataset(8), workers=None),
        "c": loader(data, workers=5),
    }
    assert [part.workers for part in parts.values()] == [9, 8, 5]
    JointLoader(parts, PartSchedule(dict.fromkeys(parts, 1 / 3), 10, 0))
    assert [part.workers for part in parts.values()] == [3, 2, 5]


def test_too_many_corrupt_examples_stop_the_run_by_the_setting_of_their_part() -> None:
    parts = {"a": loader(rows(), max_corrupt=0), "b": loader(rows())}
    joint = JointLoader(parts, PartSchedule(dict.fromkeys(parts, 0.5), 10, 0))
    with pytest.raises(RunStopped, match=r"^a: .*more than modality\.parts\.a\.data\.max_corrupt: 0 allows"):
        joint.synchronize(["a/1.png: cut off", "a/2.png: cut off"], {})
