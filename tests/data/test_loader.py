from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data2vec.data.bucketing import bucket_by_length
from data2vec.data.dataset import DataSettings
from data2vec.data.loader import Loader
from data2vec.errors import RunStopped, UserError
from data2vec.objective.masking import FixedBlockMask
from helpers.toy_modality import Toy, ToyData, content, line, loader, rows, take


class Numbered:
    """The binary digits of 64·k + r are the mask of row r of a group, with k drawn for the group."""

    def draw(self, rows, grid, rng):
        numbers = 64 * rng.integers(4) + np.arange(rows)
        masked = numbers[:, None] >> np.arange(grid[0]) & 1 == 1
        return SimpleNamespace(masked=masked, replaced=None, predicted=masked)


def several(data, rank=0, world=1, mask=None, masks=3, **settings):
    """A loader that draws three masks for each example."""
    return Loader(Toy(None, ToyData(**{"workers": 0, **settings})), mask or Numbered(), data, 3, rank, world, masks=masks)


def test_steps_of_an_epoch_contain_every_example_once():
    data = loader(rows())
    assert data.steps_per_epoch == 2
    first, second, third = take(data, 0, 3)
    assert [len(batch) for batch in first] == [6, 6, 6, 6]
    epoch = [int(row[0]) for step in content([first, second]) for row in step]
    assert len(set(epoch)) == 48
    assert [int(row[0]) for row in content([third])[0]] != [int(row[0]) for row in content([first])[0]]
    for batch in first:
        assert torch.equal(batch.predicted_indices, batch.mask.flatten().nonzero().squeeze(1))
        assert batch.mask.dtype == torch.bool
        changed = batch.student_input != batch.input
        assert changed.any()
        assert not (changed & batch.mask).any()


@pytest.mark.parametrize("costs", [None, np.linspace(1, 3, 60)])
@pytest.mark.parametrize(("batch_size", "micro"), [(24, 6), (18, 6)], ids=["whole groups", "parts of groups"])
def test_batches_are_the_same_for_any_number_of_processes_and_workers(costs, batch_size, micro):
    settings = {"batch_size": batch_size, "micro_batch_size": micro}
    data = rows(costs=costs)
    one = content(take(loader(data, **settings), 1, 3))
    parts = [take(loader(data, rank, 2, **settings), 1, 3) for rank in range(2)]
    assert content([a + b for a, b in zip(*parts, strict=True)]) == one
    assert all(part for step in zip(*parts, strict=True) for part in step)
    assert content(take(loader(data, workers=2, **settings), 1, 3)) == one
    assert content(take(loader(data, seed=4, **settings), 1, 3)) != one


def views(steps):
    """For each step each example with its masks, in their order, whoever loaded them."""
    return [
        sorted((batch.input[i].tolist(), batch.mask[3 * i : 3 * i + 3].tolist()) for batch in step for i in range(len(batch)))
        for step in steps
    ]


def test_masks_of_a_sample_are_consecutive():
    for batch in take(several(rows()), 0, 1)[0]:
        assert batch.mask.shape == (18, 8) and batch.mask.dtype == torch.bool
        assert torch.equal(batch.predicted_indices, batch.mask.flatten().nonzero().squeeze(1))
        numbers = (batch.mask * 2 ** torch.arange(8)).sum(1)
        assert (numbers % 64).tolist() == list(range(18)), "in the order they were drawn in"
    drawn = [batch.mask for batch in take(several(rows(), mask=FixedBlockMask(length=2)), 0, 1)[0]]
    assert len({tuple(row) for mask in drawn for row in mask.tolist()}) > 24, "views of an example differ"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("batch_size", "micro"), [(24, 6), (18, 6)], ids=["whole groups", "parts of groups"])
def test_masks_are_the_same_for_any_number_of_processes_and_workers(batch_size, micro, streaming):
    settings = {"batch_size": batch_size, "micro_batch_size": micro, "streaming": streaming, "shuffle_buffer": 30}
    data = stream() if streaming else rows()
    one = views(take(several(data, **settings), 1, 2))
    parts = [take(several(data, rank, 2, **settings), 1, 2) for rank in range(2)]
    assert all(3 * len(batch) == len(batch.mask) for part in parts for step in part for batch in step)
    assert views([a + b for a, b in zip(*parts, strict=True)]) == one
    assert views(take(several(data, workers=2, **settings), 1, 2)) == one
    assert views(take(several(data, **settings), 0, 3))[1:] == one


def test_steps_from_a_later_step_equal_the_uninterrupted_ones():
    data = rows()
    whole = take(loader(data), 0, 7)
    for first in (1, 2, 5):
        assert content(take(loader(data), first, 2)) == content(whole[first : first + 2])
        again = take(loader(data, workers=1), first, 2)
        assert [line(b, 0) for s in again for b in s] == [line(b, 0) for s in whole[first : first + 2] for b in s]


def test_loading_does_not_change_the_global_random_state():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    take(loader(rows()), 0, 2)
    take(loader(rows(), workers=1), 0, 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_bucket_by_length_fits_micro_batches_and_wastes_little():
    costs = np.random.default_rng(0).uniform(1, 4, 500)
    groups = bucket_by_length(costs, 20.0, np.random.default_rng(1))
    assert all(len(g) * costs[g].max() <= 20 + 1e-9 for g in groups)
    kept = sum(costs[g].min() * len(g) for g in groups)
    assert kept > 0.93 * costs.sum()
    assert len(np.unique(np.concatenate(groups))) == sum(map(len, groups))
    lengths = [costs[g].mean() for g in groups]
    assert lengths != sorted(lengths, reverse=True)
    for batch in take(loader(rows(60, np.linspace(1, 3, 60))), 0, 1)[0]:
        assert len(batch.input[:, 2].unique()) == 1


def test_bucket_by_length_drops_an_incomplete_last_micro_batch():
    equal = bucket_by_length(np.ones(20), 6, np.random.default_rng(0))
    assert sorted(map(len, equal)) == [6, 6, 6]
    assert [len(g) for g in bucket_by_length(np.ones(3), 6, np.random.default_rng(0))] == [3]
    assert bucket_by_length(np.array([]), 6, np.random.default_rng(0)) == []


def test_global_batch_is_exact_when_no_multiple_of_the_micro_batch():
    steps = take(loader(rows(100), batch_size=20, micro_batch_size=6), 0, 1)
    assert [len(batch) for batch in steps[0]] == [5, 5, 5, 5]


def test_less_data_than_a_step_is_a_user_error():
    with pytest.raises(UserError, match=r"data.batch_size: a step has 24 examples, but the training data only has 20"):
        loader(rows(20))


def test_micro_batch_smaller_than_the_processes_is_a_user_error():
    data = loader(rows(), 0, 5, batch_size=24, micro_batch_size=3)
    with pytest.raises(UserError, match="3 examples cannot be divided among 5 processes"):
        take(data, 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_example_is_replaced_counted_and_logged(workers, caplog):
    data = rows(broken={7: "bad"}.items())
    one = loader(data, workers=workers)
    steps = take(one, 0, 5)
    assert list(one.corrupt.names) == ["row 7: broken"]
    assert all(len(batch) == 6 for step in steps for batch in step)
    assert not any(row[0] == 7 for step in content(steps) for row in step)
    assert caplog.text.count("skipped: row 7: broken") == 1
    parts = [take(loader(data, rank, 2), 0, 5) for rank in range(2)]
    assert content([a + b for a, b in zip(*parts, strict=True)]) == content(steps)


def test_too_many_corrupt_examples_stop_the_run():
    data = loader(rows(broken=dict.fromkeys(range(9), "bad").items()), max_corrupt=0.05)
    with pytest.raises(
        RunStopped, match=r"of 60 examples cannot be read, more than data.max_corrupt: 0.05 allows: row \d: broken; row"
    ):
        take(data, 0, 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_example_in_a_micro_batch_of_one_is_replaced(workers):
    steps = take(loader(rows(6, broken={2: "bad"}.items()), batch_size=6, micro_batch_size=1, workers=workers), 0, 2)
    assert all(len(batch) == 1 for step in steps for batch in step)


@pytest.mark.parametrize("workers", [0, 2])
def test_user_error_in_a_worker_is_raised_without_traceback(workers):
    data = loader(rows(broken=dict.fromkeys(range(60), "wrong").items()), workers=workers)
    with pytest.raises(UserError) as error:
        take(data, 0, 1)
    assert str(error.value) == "data.size: wrong, make it right"


def stream(n=60, costs=None, broken=()):
    return rows(n, costs, broken).to_iterable_dataset(num_shards=5)


@pytest.mark.parametrize(
    ("cores", "processes", "given", "expected"), [(16, 4, None, 3), (1, 1, None, 2), (192, 1, None, 16), (16, 1, 0, 0)]
)
def test_workers_are_derived_from_the_cores_of_a_training_process(
    cores: int, processes: int, given: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert DataSettings(workers=given).num_workers == expected
