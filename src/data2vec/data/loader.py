"""The loader: the batches of every training step, the same for any number of processes and workers, from any step on.

Which examples share a micro-batch, how they are cropped and augmented, and what is masked depends only on the seed and the
number of the micro-batch. So the position in an indexed dataset is just a step number; in a streamed one it is also the state
of every stream.
"""

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, cycle, islice
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data2vec.batch import Batch
from data2vec.data.bucketing import ORDER, MicroBatch, bucket_by_length
from data2vec.data.cache import data_fingerprint, describe_change
from data2vec.data.corrupt import CorruptExamples
from data2vec.data.dataset import DataPipeline, DataSettings, ExampleDataset, Rows
from data2vec.data.masked_batches import (
    BatchDataset,
    MaskedBatches,
    MaskSettings,
    StreamedBatches,
    micro_batches_per_step,
    rank_slice,
    rank_stride,
)
from data2vec.data.streaming import Streams, StreamState, count_rows_read
from data2vec.errors import RunStopped, UserError, get_logger
from data2vec.settings import JsonDict, JsonMapping

log = get_logger(__name__)


class Loader:
    """Endless training steps of batches from `rows`: a `datasets.Dataset`, or an `IterableDataset` that is streamed.

    `masks` masks are drawn for each example; or `batches` builds the batches instead. `rank` of `world` processes gets its part
    of every step. `pin_memory`: batches are put into page-locked memory. `steps_per_epoch` is None when streaming.

    Raises UserError when the data is less than one step, RunStopped when too many examples are corrupt."""

    def __init__(
        self,
        modality: DataPipeline,
        mask: MaskSettings | None,
        rows: Rows,
        seed: int,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
        masks: int = 1,
        batches: BatchDataset | None = None,
    ):
        self.rows = rows
        self.modality, self.seed, self.rank, self.world, self.pin_memory = modality, seed, rank, world, pin_memory
        settings = modality.data
        self.workers = wanted = settings.num_workers
        self.per_step = micro_batches_per_step(settings.batch, settings.micro_batch)
        """Micro-batches of a step, over all processes."""
        self.micro_batch = settings.batch / self.per_step
        self.corrupt = CorruptExamples(settings.max_corrupt)
        self.seconds_per_step: float | None = None
        """What loading took of the last step taken, in one process; None before the first."""
        self.stream_states: dict[str, list[int]] = {}
        """The state of each stream that this process reads, after the last step taken; empty for indexed data."""
        self.examples: ExampleDataset | None = None
        self.streams: Streams | None = None
        self.steps_per_epoch: int | None = None
        self.draw_epoch = None if batches is None else batches.epoch_indices
        if hasattr(rows, "__len__"):
            self.examples = modality.examples(rows) if batches is None else batches.examples
            assert self.examples is not None
            self.steps_per_epoch = self._count_steps(self.examples)
        else:
            self.streams = Streams(modality, rows, seed, self.micro_batch)
            self.workers = self.streams.usable_workers(wanted, rank_stride(self.per_step, world))
            if self.workers < wanted and settings.workers is not None and rank == 0:
                log.warning(
                    "data.workers: only %d of %d workers are used, as they share %d streams evenly; make data.num_streams a "
                    "multiple of processes × workers, and use at least as many shards",
                    *(self.workers, wanted, self.streams.count),
                )
        if batches is None:
            assert mask is not None
            batches = MaskedBatches(modality, mask, masks, self.examples)
        self.batches = batches
        self.timeout_seconds = 60 * settings.timeout_minutes

    def share_workers(self, loaders: int) -> None:
        """Derive the number of workers as one of so many loaders of this process, unless `data.workers` says it."""
        if self.modality.data.workers is None:
            workers = max(1, self.modality.data.num_workers // loaders)
            stride = rank_stride(self.per_step, self.world)
            self.workers = workers if self.streams is None else self.streams.usable_workers(workers, stride)

    @property
    def corrupt_names(self) -> list[str]:
        """ "name: reason" of each corrupt example so far, in the order in which they were found."""
        return list(self.corrupt.names)

    def fingerprint(self) -> JsonDict:
        """The fingerprint of the data: see `data2vec.data.cache`."""
        kind, costs = getattr(self.modality, "kind", None), None if self.examples is None else self.examples.costs
        return data_fingerprint(self.rows, kind, self.modality.data.train, costs)

    def _count_steps(self, examples: ExampleDataset) -> int:
        """Steps of an epoch. Raises UserError for less than one."""
        settings = self.modality.data
        self.corrupt = CorruptExamples(settings.max_corrupt, examples.total)
        self.corrupt.add(examples.corrupt)
        batches = self._epoch_batches(examples, 0)
        if len(batches) < self.per_step:
            raise UserError(_less_than_a_step(settings, examples))
        return len(batches) // self.per_step

    def steps(self, first_step: int = 0, stream_states: Mapping[str, list[int]] | None = None) -> Generator[list[Batch]]:
        """This process's batches of each training step, from step `first_step` on, endlessly.

        `stream_states`: those of all processes at `first_step` or before (`merge_stream_states`); without them streams are read
        from their start. Raises UserError when streamed data has changed since."""
        self.stream_states = dict(stream_states or {})
        if self.streams is not None:
            self.corrupt.total = count_rows_read(self.stream_states)
        per_rank = self.per_step // rank_stride(self.per_step, self.world)
        with self._watched_workers(first_step) as loaded_batches:
            while True:
                step, seconds = [], 0.0
                for loaded in islice(loaded_batches, per_rank):
                    if isinstance(loaded, Exception):
                        raise loaded
                    if loaded.stream_state:
                        self._advance(*loaded.stream_state)
                    self.corrupt.add(loaded.corrupt)
                    step.append(loaded.batch)
                    seconds += loaded.seconds
                self.seconds_per_step = seconds
                yield step

    @contextmanager
    def _watched_workers(self, first_step: int) -> Iterator[Iterator[Any]]:
        """What the workers load, endlessly. Raises RunStopped when they cannot start, one dies, or they hang."""
        before = set(multiprocessing.active_children())
        try:
            if self.workers:
                multiprocessing.Queue().close()  # what fails first; a DataLoader that fails leaves tracebacks
            iterators = [iter(self._data_loader(first_step))]
        except OSError as error:  # such as no /dev/shm, or too many open files
            raise RunStopped(
                f"data.workers: the processes that load data cannot start ({error}); fix that, or {_NO_WORKERS}"
            ) from None
        workers = set(multiprocessing.active_children()) - before
        _poll_for_dead_workers()
        hung = threading.Event()

        def kill() -> None:
            for worker in workers:
                worker.kill()

        def stop_hung() -> None:
            hung.set()
            kill()  # the DataLoader notices that they are dead

        def watched() -> Iterator[Any]:
            while True:
                timer = threading.Timer(self.timeout_seconds, stop_hung)
                timer.daemon = True
                timer.start()
                try:
                    loaded = next(iterators[0])
                finally:
                    timer.cancel()
                yield loaded

        try:
            yield watched() if workers else iterators[0]
        except Exception as error:
            dead = [worker for worker in workers if not worker.is_alive()]
            problem = _worker_problem(error, dead, hung.is_set(), self.timeout_seconds)
            kill()  # a stopped or hung one would keep this process from ending
            if problem is None:
                raise
            raise RunStopped(problem) from None
        finally:
            iterators.clear()  # ends the workers now, instead of when the traceback of an error is released
            kill()

    def _data_loader(self, first_step: int) -> DataLoader[Any]:
        dataset: Any = self.batches
        if self.streams is not None:
            part = self.per_step, self.rank, self.world
            dataset = StreamedBatches(self.batches, self.streams, *part, first_step, self.stream_states.copy())
        workers: dict[str, Any] = {"prefetch_factor": 4, "worker_init_fn": init_worker} if self.workers else {}
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=MicroBatchSampler(self, first_step) if self.streams is None else None,
            num_workers=self.workers,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # otherwise the DataLoader would advance the global random state
            **workers,
        )

    def describe_change(self, before: Any, now: JsonMapping) -> str | None:
        """How the data of the fingerprint `now` differs from that of `before`, in words; None if it does not."""
        return describe_change(before, now)

    def recall_corrupt(self, names: Iterable[str]) -> None:
        """Take over the corrupt examples that were found before the run was interrupted."""
        self.corrupt.names |= dict.fromkeys(names)

    def next_epoch_states(self, first_step: int, stream_states: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Stream states to continue with from step `first_step` on streamed data that has changed: the start of the epoch after
        that of `stream_states`. Empty for indexed data."""
        if self.streams is None:
            return {}
        states = [StreamState(*state) for state in stream_states.values()]
        epoch = max((state.epoch for state in states), default=-1) + 1
        rows, number, count = count_rows_read(stream_states), first_step * self.per_step, self.streams.count
        return {
            str(stream): list(StreamState(-((stream - number) // count), epoch, 0, 0, rows if stream == 0 else 0))
            for stream in range(count)
        }

    def _advance(self, stream: str, state: list[int]) -> None:
        before = count_rows_read(self.stream_states)
        self.stream_states[stream] = state
        self.corrupt.total += count_rows_read(self.stream_states) - before

    def synchronize(self, corrupt: Iterable[str], stream_states: Mapping[str, list[int]]) -> None:
        """Take over the corrupt examples and the merged stream states of all processes.

        Raises RunStopped when too many examples are corrupt."""
        if stream_states:
            self.corrupt.total = count_rows_read(stream_states)
        self.corrupt.add(corrupt)

    def _epoch_batches(self, examples: ExampleDataset, epoch: int) -> list[np.ndarray]:
        """The indices of each micro-batch of an epoch, in the epoch's order."""
        rng = np.random.default_rng((self.seed, epoch, 0, ORDER))
        drawn = None if self.draw_epoch is None else self.draw_epoch(rng)
        if drawn is None:
            return bucket_by_length(examples.costs, self.micro_batch, rng)
        return [drawn[rows] for rows in bucket_by_length(examples.costs[drawn], self.micro_batch, rng)]

    def micro_batches(self, first_step: int) -> Iterator[MicroBatch]:
        """This process's micro-batches of indexed data, from step `first_step` on."""
        assert self.examples is not None
        assert self.steps_per_epoch
        costs = self.examples.costs
        first_epoch, skip = divmod(first_step, self.steps_per_epoch)
        for epoch in count(first_epoch):
            batches, wanted = self._epoch_batches(self.examples, epoch), self.steps_per_epoch * self.per_step
            batches = list(islice(cycle(batches), wanted))  # random draws of clips of several lengths may give fewer
            for number in range(skip * self.per_step, len(batches)):
                indices = batches[number]
                rows = rank_slice(indices, self.per_step, number, self.rank, self.world)
                if rows is not None:
                    yield MicroBatch(indices, rows, float(costs[indices].min()), (self.seed, epoch, number))
            skip = 0


class MicroBatchSampler(Sampler[MicroBatch]):
    """The micro-batches of a loader of indexed data, from step `first_step` on."""

    def __init__(self, loader: Loader, first_step: int):
        self.loader, self.first_step = loader, first_step

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.loader.micro_batches(self.first_step)


def init_worker(worker: int) -> None:
    """Set up a process that loads examples."""
    # Terminals and job schedulers signal every process of a job. The training process acts on it, and needs its workers until
    # the step is complete; one that it ends itself, or leaves behind, goes after a minute.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(60))
    # Threads of the tokenizers library do not survive the fork: a worker that used them would deadlock.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


_NO_WORKERS = "load in the training process by data.workers=0"


def _poll_for_dead_workers() -> None:
    """Let the DataLoader look every few seconds for workers that died.

    By default a signal handler raises an error wherever the training process is, also in the middle of an update of the
    weights, which then could not be saved."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGCHLD)
        if getattr(handler, "__module__", "").startswith("torch."):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _worker_problem(error: Exception, dead: Sequence[BaseProcess], hung: bool, timeout_seconds: float) -> str | None:
    """Why the workers failed, in one line; None if the error has another reason."""
    if hung:
        return (
            f"data.timeout_minutes: the processes that load data delivered nothing for {timeout_seconds / 60:g} minutes: "
            "a file system or decoder hangs; raise it if loading may take longer"
        )
    text = " ".join(str(error).split())
    if (isinstance(error, OSError) and error.errno == errno.EMFILE) or "Too many open files" in text:
        return f"too many open files: raise the limit (ulimit -n), or {_NO_WORKERS}"
    if "shared memory" in text or any(worker.exitcode == -signal.SIGBUS for worker in dead):
        return f"no shared memory (/dev/shm) for the processes that load data: enlarge it, or {_NO_WORKERS}"
    if dead and isinstance(error, RuntimeError) and "DataLoader worker" in text:
        worker = dead[0]
        code = worker.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        hint = "; if memory ran out, lower data.workers" if code == -signal.SIGKILL else ""
        return f"process {worker.pid}, which loads data, {how}{hint}"
    return None


def _less_than_a_step(settings: DataSettings, examples: ExampleDataset) -> str:
    key = next((name for name in type(settings).model_fields if name.startswith("batch")), "batch")
    total = float(examples.costs.sum())
    unit = "seconds" if key.endswith("seconds") else "examples"
    return f"data.{key}: a step has {settings.batch:g} {unit}, but the training data only has {total:g}: lower it"
