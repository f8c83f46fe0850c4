"""`auto` steps and micro-batches: chosen before the run, and numbers in its recipe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data2vec
from data2vec.data.masked_batches import micro_batches_per_step
from data2vec.errors import UserError
from data2vec.recipe.loading import load_recipe
from data2vec.train.planning import auto
from data2vec.train.planning.auto import even_micro_batch
from helpers.runs import crash_before, measured

MICRO = "data.micro_batch_size"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows whose steps were measured; each takes 1 GB of 6.4, and as long as any other."""
    rows: list[int] = []

    def measure(make_step: Any, loader: Any, indices: np.ndarray, device: torch.device) -> tuple[int, float]:
        rows.append(len(indices))
        return 10**9 * len(indices), 0.1 * len(indices)

    monkeypatch.setattr(auto, "_measure", measure)
    monkeypatch.setattr(auto, "available_memory", lambda device: 64 * 10**8)
    return rows


def test_steps_are_the_epochs_of_the_published_base_model(tiny2: dict[str, Any]) -> None:
    found = data2vec.plan("vision/v2-tiny", overrides=tiny2 | {"train.steps": "auto"}, measure=False)
    assert found.steps == 500, "75 epochs of 2 steps are fewer than the shortest shipped run"
    small = {"train.steps": "auto", "data.batch_size": 2, MICRO: 2}
    found = data2vec.plan("vision/v2-tiny", overrides=tiny2 | small, measure=False)
    assert (found.steps, found.epochs) == (75 * 20, 75)


def test_counts_of_steps_are_scaled_unless_they_are_given(tiny2: dict[str, Any]) -> None:
    without = {key: value for key, value in tiny2.items() if key != "train.schedule.warmup_steps"}
    found = data2vec.plan(
        "vision/v2-tiny", overrides=without | {"train.steps": "auto", "data.batch_size": 2, MICRO: 2}, measure=False
    )
    assert found.warmup_steps == round(1500 * 30 / 500), "30 of the recipe's 500"
    found = data2vec.plan("vision/v2-tiny", overrides=tiny2 | {"train.steps": "auto"}, measure=False)
    assert found.warmup_steps == 2


def test_steps_without_a_published_run_are_refused(tiny2: dict[str, Any], pictures: Path) -> None:
    overrides = {"train.steps": "auto", "data.train": str(pictures), "data.batch_size": 16, "data.workers": 0}
    with pytest.raises(UserError, match=r"train\.steps: auto has no rule for input_regression on vision; set a number"):
        data2vec.plan("vision/mae-tiny", overrides=overrides, measure=False)


def test_auto_is_refused_where_nothing_is_trained() -> None:
    with pytest.raises(UserError, match=r"train\.steps: auto is a choice of plan, pretrain and finetune alone; set a number"):
        load_recipe("vision/v2-tiny", {"train.steps": "auto"})


def test_micro_batch_is_the_largest_that_fits_into_memory(tiny2: dict[str, Any], memory: list[int]) -> None:
    found = data2vec.plan("vision/v2-tiny", overrides=tiny2 | {MICRO: "auto"}, measure=False)
    assert memory == [1, 2, 4], "twice as many would not fit, and are not tried"
    assert (found.micro_batch, found.accumulation, found.batch) == (4, 4, 16)


def test_micro_batch_leaves_memory_for_the_copy_of_a_checkpoint(
    tiny2: dict[str, Any], memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "copied_bytes", lambda recipe, objective, device: 3 * 10**9)
    assert data2vec.plan("vision/v2-tiny", overrides=tiny2 | {MICRO: "auto"}, measure=False).micro_batch == 1


def test_micro_batch_of_a_real_step_is_chosen_on_this_machine(tiny2: dict[str, Any]) -> None:
    found = data2vec.plan("vision/v2-tiny", overrides=tiny2 | {MICRO: "auto"}, measure=False)
    assert found.batch == 16
    assert 16 % found.micro_batch == 0


def test_a_run_has_the_chosen_numbers_and_resumes_with_them(
    tiny2: dict[str, Any], memory: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "FEWEST_STEPS", 6)
    overrides = tiny2 | {"train.steps": "auto", MICRO: "auto", "data.batch_size": 20, "train.checkpoint_every": 2}
    monkeypatch.setattr(auto, "PUBLISHED_EPOCHS", {("vision", "data2vec2"): 3})
    run = data2vec.pretrain("vision/v2-tiny", overrides=overrides, out=tmp_path / "run")
    recipe = load_recipe(run.recipe)
    assert (recipe.train.steps, recipe.data.micro_batch, recipe.data.batch) == (6, 4, 20)
    again = data2vec.pretrain(run.recipe, out=tmp_path / "again")
    assert measured(again) == measured(run)
    with crash_before(4):
        data2vec.pretrain("vision/v2-tiny", overrides=overrides, out=tmp_path / "resumed")
    monkeypatch.setattr(auto, "available_memory", lambda device: 10**12)  # a larger machine would choose otherwise
    resumed = data2vec.pretrain("vision/v2-tiny", overrides=overrides, out=tmp_path / "resumed", resume=True)
    assert measured(resumed) == measured(run)


@pytest.mark.parametrize(
    ("batch", "largest", "longest", "world", "whole", "expected"),
    [
        (64, 64, 1, 1, True, 64),
        (64, 20, 1, 1, True, 16),
        (64, 64, 1, 8, True, 8),
        (10, 4, 1, 3, True, 4),
        (500, 62.5, 20, 8, False, 62.5),
        (500, 70, 20, 1, False, 62.5),
        (30, 20, 20, 1, False, 30),
        (3, 3, 1, 8, True, 3),
    ],
)
def test_equal_parts_make_up_the_batch(
    batch: float, largest: float, longest: float, world: int, whole: bool, expected: float
) -> None:
    size = even_micro_batch(batch, largest, longest, world, whole)
    assert size == pytest.approx(expected)
    assert size >= longest
    if batch >= world * longest:
        assert micro_batches_per_step(batch, size) % world == 0


def test_several_processes_get_the_choice_of_the_first_one(tiny2: dict[str, Any], memory: list[int]) -> None:
    from data2vec.distributed import Process
    from data2vec.train.pretrain import PretrainTask

    class Second(Process):
        def on_main_process(self, action: Any) -> Any:
            return {MICRO: 2}

    chosen = auto.Auto(frozenset({MICRO}))
    recipe = load_recipe("vision/v2-tiny", tiny2)
    second = Second(torch.device("cpu"), 1, 2)
    assert auto.resolve_auto(recipe, chosen, PretrainTask, second).data.micro_batch == 2
    assert memory == [], "it measures nothing itself"
