import json

import numpy as np
import pytest
from datasets import IterableDataset

from data2vec.data.streaming import count_rows_read, merge_stream_states
from data2vec.errors import RunStopped, UserError
from helpers.toy_modality import content, loader, take

ARRANGEMENTS = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 2), (4, 0), (4, 1)]
"""Processes, and workers of each."""


def deal(shards, log, costs, broken):
    """Rows of shards, given as (number, first row, rows); notes which it opens and which rows it reads."""

    def note(line):
        with open(log, "a") as file:
            file.write(f"{line}\n")

    for number, first, size in shards:
        note(f"shard {number}")
        for i in range(first, first + size):
            note(f"row {i}")
            yield {"id": i, "cost": 1 + i * 7 % 5 / 8 if costs == "unlike" else 1.0, "broken": broken.get(i, "")}


class Shards:
    """Shards of these sizes, and what was read of them."""

    def __init__(self, folder, sizes, costs="unlike", broken=()):
        self.folder, self.costs, self.broken = folder, costs, dict(broken)
        starts = np.cumsum([0, *sizes]).tolist()
        self.shards = [(i, starts[i], size) for i, size in enumerate(sizes)]
        self.logs = []

    def loader(self, rank=0, world=1, **settings):
        self.logs.append(self.folder / f"log-{len(self.logs)}.txt")
        self.logs[-1].touch()
        given = {"shards": self.shards, "log": str(self.logs[-1]), "costs": self.costs, "broken": self.broken}
        rows = IterableDataset.from_generator(deal, gen_kwargs=given)
        return loader(rows, rank, world, **{"streaming": True, "num_streams": 8, "shuffle_buffer": 48, **settings})

    def read(self, what, log=-1):
        return [int(line.split()[1]) for line in self.logs[log].read_text().splitlines() if line.startswith(what)]


@pytest.fixture
def shards(tmp_path):
    """Nine shards of unlike size, for eight streams."""
    return lambda sizes=(9, 21, 14, 30, 7, 18, 25, 11, 16), **more: Shards(tmp_path, sizes, **more)


def together(data, first, steps, world, places=None, **settings):
    """What `world` processes load, as one; and where they stand."""
    every = [data.loader(rank, world, **settings) for rank in range(world)]
    parts = [take(each, first, steps, places) for each in every]
    assert all(part for step in zip(*parts, strict=True) for part in step), "every process has its part"
    merged = [[batch for part in step for batch in part] for step in zip(*parts, strict=True)]
    return content(merged), json.loads(json.dumps(merge_stream_states(each.stream_states for each in every)))


@pytest.mark.parametrize("costs", ["alike", "unlike"])
@pytest.mark.parametrize(("batch_size", "micro"), [(24, 6), (36, 12)], ids=["whole groups", "parts of groups"])
def test_streamed_batches_are_the_same_for_any_number_of_processes_and_workers(shards, costs, batch_size, micro):
    settings = {"batch_size": batch_size, "micro_batch_size": micro}
    data = shards(costs=costs)
    one, places = together(data, 0, 7, 1, **settings)
    for world, workers in ARRANGEMENTS:
        assert together(data, 0, 7, world, workers=workers, **settings) == (one, places), (world, workers)
    assert together(data, 0, 7, 1, seed=9, **settings)[0] != one


def test_every_row_is_read_once_per_epoch(shards):
    data = shards((24,) * 8, costs="alike")
    for turn in (0, 8):
        ids = [int(row[0]) for step in together(data, turn, 8, 1)[0] for row in step]
        assert sorted(ids) == list(range(192))
    steps = [[int(row[0]) for row in step] for step in together(data, 0, 16, 1)[0]]
    assert steps[:8] != steps[8:] and all(step[-1] - step[0] > 24 for step in steps), "mixed, and anew in each pass"


def test_processes_and_workers_open_only_their_own_shards(shards):
    data = shards((60,) * 16)
    together(data, 0, 4, 1, workers=2)
    opened = data.read("shard")
    assert len(opened) == len(set(opened)) == 8
    together(data, 0, 4, 4)
    parts = [data.read("shard", log) for log in range(-4, 0)]
    assert sorted(shard for part in parts for shard in part) == sorted(opened)
    assert [len(part) for part in parts] == [2] * 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("sizes", [(50,), (30, 20, 45)], ids=["one shard", "three"])
def test_few_shards_are_shared_between_processes(shards, sizes):
    data = shards(sizes)
    one, _ = together(data, 0, 6, 1)
    for world, workers in ARRANGEMENTS:
        assert together(data, 0, 6, world, workers=workers)[0] == one, (world, workers)


def test_only_workers_that_divide_the_streams_are_used(shards, caplog):
    data = shards()
    data.loader(workers=3)
    assert "data.workers: only 2 of 3 workers are used, as they share 8 streams evenly" in caplog.text
    assert [data.loader(workers=n).workers for n in (0, 1, 2, 3, 7, 8, 17)] == [0, 1, 2, 2, 4, 8, 16]
    assert [data.loader(0, 4, workers=n).workers for n in (1, 3, 4)] == [1, 2, 4]
    assert data.loader(0, 3, workers=5, batch_size=36).workers == 4, "each of three reads every stream"
    assert shards((50,)).loader(workers=3).workers == 3


@pytest.mark.parametrize("step", [1, 5, 18, 31])
def test_resuming_from_stream_states_continues_the_batches(shards, step):
    """Over the ends of windows and passes (a pass has about six steps), with other processes and workers."""
    data = shards()
    whole, _ = together(data, 0, step + 3, 1)
    for before, after, workers in ((1, 1, 0), (1, 2, 2), (2, 1, 3), (4, 2, 0), (3, 4, 1)):
        size = {"batch_size": 72, "micro_batch_size": 6} if before == 3 else {}
        if size:  # three processes share every stream
            whole_3, _ = together(data, 0, step + 3, 1, **size)
        _, places = together(data, 0, step, before, **size)
        assert set(places) <= {str(i) for i in range(8)}
        resumed, _ = together(data, step, 3, after, places, workers=workers, **size)
        assert resumed == (whole_3 if size else whole)[step:], (before, after, workers)


def test_resuming_from_older_or_no_stream_states_continues_the_batches(shards):
    data = shards()
    whole, _ = together(data, 0, 12, 1)
    _, places = together(data, 0, 4, 1)
    assert together(data, 9, 3, 2, places)[0] == whole[9:]
    assert together(data, 9, 3, 2)[0] == whole[9:]


def test_resuming_re_reads_at_most_a_window_per_stream(shards):
    data = shards()
    _, places = together(data, 0, 60, 1)
    assert count_rows_read(places) > 900
    together(data, 60, 1, 1, places)
    groups, window, shard = 4, 24, 30
    assert len(data.read("row")) <= groups * (2 * window + shard)
    together(data, 60, 1, 1)
    assert len(data.read("row")) > 450


def test_stream_states_of_other_data_are_a_user_error(shards):
    with pytest.raises(UserError, match="the data has changed since the checkpoint was saved"):
        take(shards().loader(), 2, 1, {"0": [50, 3, 0, 0, 900]})


def test_batches_are_full_with_small_shards(shards):
    for step in take(shards((1, 0, 2, 3, 1, 2, 1, 1), costs="alike").loader(), 0, 9):
        assert [len(batch) for batch in step] == [6] * 4


BROKEN = {i: "bad" if i % 40 else "header" for i in range(0, 300, 20)}


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_streamed_rows_are_replaced_counted_and_logged(shards, workers):
    data = shards((25,) * 12, broken=BROKEN)
    one = data.loader(workers=workers, max_corrupt=0.06)
    steps = take(one, 0, 30)
    assert set(one.corrupt.names) == {f"row {i}: {'broken' if kind == 'bad' else 'no header'}" for i, kind in BROKEN.items()}
    assert not any(int(row[0]) in BROKEN for step in content(steps) for row in step)
    assert one.corrupt.total == count_rows_read(one.stream_states) > 450
    assert content(steps) == together(data, 0, 30, 2, max_corrupt=0.06)[0]
    with pytest.raises(RunStopped, match=r"of \d+ examples cannot be read, more than data.max_corrupt: 0.01 allows: row"):
        take(data.loader(workers=workers, max_corrupt=0.01), 0, 30)


def test_corrupt_counts_are_merged_across_processes_and_restarts(shards):
    data = shards((25,) * 12, broken=BROKEN)
    one = data.loader(max_corrupt=0.06)
    take(one, 0, 10)
    parts = [data.loader(rank, 2, max_corrupt=0.06) for rank in range(2)]
    for part in parts:
        take(part, 0, 10)
    names = [name for part in parts for name in part.corrupt.names]
    places = merge_stream_states(part.stream_states for part in parts)
    for part in parts:
        assert part.corrupt.total < one.corrupt.total
        part.synchronize(names, places)
        assert part.corrupt.total == one.corrupt.total and part.corrupt.names.keys() == one.corrupt.names.keys()
    resumed = data.loader(max_corrupt=0.06)
    resumed.corrupt.names |= dict.fromkeys(names)
    take(resumed, 10, 1, places)
    whole = data.loader(max_corrupt=0.06)
    take(whole, 0, 11)
    assert resumed.corrupt.total == whole.corrupt.total
    strict = data.loader(max_corrupt=0.01)
    with pytest.raises(RunStopped, match=f"of {one.corrupt.total} examples"):
        strict.synchronize(one.corrupt.names, one.stream_states)


def test_stream_without_usable_examples_is_a_user_error(shards):
    unreadable = dict.fromkeys(range(60), "header")
    with pytest.raises(UserError, match=r"no usable example: .* such as row \d+: no header"):
        take(shards((20, 20, 20), broken=unreadable).loader(), 0, 1)
    with pytest.raises(UserError, match="has no rows"):
        take(shards((0, 0)).loader(workers=1), 0, 1)
    some = take(shards((20, 20, 20), broken=dict.fromkeys(range(40), "header")).loader(max_corrupt=0.7), 0, 2)
    assert all(len(batch) for step in some for batch in step), "a shard without anything is passed over"


def test_merge_stream_states_keeps_the_furthest():
    one, other = {"0": [3, 0, 1, 2, 9], "1": [0, 0, 0, 0, 4]}, {"0": [2, 0, 1, 1, 8], "2": [1, 0, 0, 4, 5]}
    assert (
        merge_stream_states([one, other])
        == merge_stream_states([other, one])
        == {"0": one["0"], "1": one["1"], "2": other["2"]}
    )
    assert merge_stream_states([{}, {}]) == {}
