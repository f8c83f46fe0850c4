"""The batches of a joint run: of each step those of the part that makes it, from that part's own loader.

Names of corrupt examples and states of streams are those of the parts, each behind the name of its part.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from data2vec.batch import Batch
from data2vec.data.loader import Loader
from data2vec.objective.part_schedule import PartSchedule
from data2vec.recipe.joint import errors_of_part
from data2vec.settings import JsonDict, JsonMapping


class JointLoader:
    """Training steps of batches, as `Loader`, from the loaders of the parts."""

    def __init__(self, loaders: Mapping[str, Loader], schedule: PartSchedule):
        self.loaders, self.schedule = loaders, schedule
        for loader in loaders.values():
            loader.share_workers(len(loaders))
        self._corrupt: dict[str, None] = {}

    @property
    def stream_states(self) -> dict[str, list[int]]:
        """The state of each stream that this process reads, after the last step taken."""
        return {
            f"{name}/{stream}": state for name, loader in self.loaders.items() for stream, state in loader.stream_states.items()
        }

    @property
    def corrupt_names(self) -> list[str]:
        """ "part/name: reason" of each corrupt example so far, in the order in which they were found."""
        self._corrupt |= {f"{name}/{each}": None for name, loader in self.loaders.items() for each in loader.corrupt_names}
        return list(self._corrupt)

    def fingerprint(self) -> JsonDict:
        """The fingerprint of the data of each part."""
        return {name: loader.fingerprint() for name, loader in self.loaders.items()}

    def describe_change(self, before: Any, now: JsonMapping) -> str | None:
        """How the data of the parts differs between these fingerprints, in words; None if it does not."""
        changes = {name: loader.describe_change((before or {}).get(name), now[name]) for name, loader in self.loaders.items()}
        return "; ".join(f"{name}: {change}" for name, change in changes.items() if change) or None

    def recall_corrupt(self, names: Iterable[str]) -> None:
        """Take over the corrupt examples that were found before the run was interrupted."""
        names = list(names)
        for name, loader in self.loaders.items():
            loader.recall_corrupt(_of_part(names, name))

    def synchronize(self, corrupt: Iterable[str], stream_states: Mapping[str, list[int]]) -> None:
        """Take over the corrupt examples and the merged stream states of all processes.

        Raises RunStopped when too many examples of a part are corrupt."""
        names = list(corrupt)
        for name, loader in self.loaders.items():
            with errors_of_part(name):
                loader.synchronize(_of_part(names, name), _states_of_part(stream_states, name))

    def next_epoch_states(self, first_step: int, stream_states: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Stream states to continue with from step `first_step` on streamed data that has changed."""
        return {
            f"{name}/{stream}": state
            for name, loader in self.loaders.items()
            for stream, state in loader.next_epoch_states(
                self.schedule.count(name, first_step), _states_of_part(stream_states, name)
            ).items()
        }

    def steps(self, first_step: int = 0, stream_states: Mapping[str, list[int]] | None = None) -> Generator[list[Batch]]:
        """This process's batches of each training step, from step `first_step` on, endlessly."""
        with ExitStack() as stack:
            steps = {
                name: stack.enter_context(
                    closing(loader.steps(self.schedule.count(name, first_step), _states_of_part(stream_states or {}, name)))
                )
                for name, loader in self.loaders.items()
            }
            step = first_step
            while True:
                step += 1
                part = self.schedule.part(step)
                with errors_of_part(part):
                    batches = next(steps[part])
                yield batches


def _of_part(names: Sequence[str], part: str) -> list[str]:
    """Those of `names` that belong to a part, without its name."""
    return [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]


def _states_of_part(states: Mapping[str, list[int]], part: str) -> dict[str, list[int]]:
    """The states of the streams of a part."""
    return {stream.removeprefix(f"{part}/"): state for stream, state in states.items() if stream.startswith(f"{part}/")}
