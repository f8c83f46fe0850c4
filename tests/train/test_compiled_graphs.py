"""What Dynamo makes of a training step: no code is generated, and none runs faster."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data2vec.distributed import Process
from data2vec.train.train_step import TrainStep

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["speech/v1-base", "speech/v2-base"])
def test_compiled_steps_with_layerdrop_have_the_losses_of_eager_ones_and_all_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same blocks are dropped; those of the graph are computed and get gradients of zero."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    graphs: Any = __import__("graphs")
    changes = {"train.precision": "fp32", "encoder.layerdrop": 0.5, "encoder.dropout": 0, "encoder.attention_dropout": 0}
    decoder = {"objective.decoder.noise_std": 0, "objective.decoder.dropout": 0} if "v2" in name else {}
    recipe = graphs.small_recipe(name, **changes, **decoder)
    batch = graphs.random_batch(recipe, 16_000)
    losses, skipping = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        settings = recipe.train.model_copy(update={"compile": compiled})
        step = TrainStep(recipe.build_objective(), settings, Process(torch.device("cpu")), "eager")
        skipping.append(step.objective.may_skip_parameters)
        losses.append([step(1, [batch] * count, measure=False, norm=False).loss.item() for count in (1, 3)])
    sys.modules.pop("graphs")
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert skipping == [True, False]
