"""The loader of a joint run."""

from types import SimpleNamespace
from typing import Any

from data2vec.objective.part_schedule import PartSchedule
from data2vec.train.joint.loader import JointLoader


def test_corrupt_examples_keep_the_order_in_which_they_were_found() -> None:
    """So that the first ones are those of complete steps, which a checkpoint after an error holds."""
    found: dict[str, list[str]] = {"speech": [], "vision": []}
    loaders: Any = {name: SimpleNamespace(corrupt_names=names) for name, names in found.items()}
    loader = JointLoader(loaders, PartSchedule({"speech": 0.5, "vision": 0.5}, 10, 0))
    found["vision"].append("1.png: cut off")
    assert loader.corrupt_names == ["vision/1.png: cut off"]
    found["speech"].append("2.wav: empty")
    assert loader.corrupt_names == ["vision/1.png: cut off", "speech/2.wav: empty"]
