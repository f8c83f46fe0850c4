"""What Dynamo makes of a training step: no code is generated, and none runs faster."""

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the compiler itself
@pytest.mark.parametrize(
    "name", ["speech/v1-base", "speech/v2-base", "vision/v1-base", "vision/v2-base", "text/v1-base", "text/v2-base"]
)
def test_step_of_six_lengths_is_one_graph_in_at_most_four_programs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward of student and teacher, decoder, targets and loss; layer drop, other rows and measured steps included."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    graphs: Any = __import__("graphs")
    found = graphs.count_graphs(graphs.small_recipe(name), graphs.LENGTHS.get(name.split("/")[0], [None] * 6))
    sys.modules.pop("graphs")
    assert found.breaks == {}
    assert 0 < found.programs <= 4
