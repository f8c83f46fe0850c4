"""How long the loading of a step takes, beside the step: measured in the first steps of a run."""

from collections import defaultdict
from collections.abc import Mapping

from data2vec.console.quantities import format_duration
from data2vec.data.loader import Loader
from data2vec.train.planning.run_plan import describe_loading, shared_by_workers

TIMED_STEPS = 5
"""The steps of a part that are enough, after those in which decoders are imported and programs compiled: the first one, and the
first of each worker."""


class LoadingRate:
    """Collects what the first steps and their loading took, until there is enough of each part to report, once."""

    def __init__(self, loaders: Mapping[str, Loader]):
        self.loaders = loaders
        self._skip = {part: 1 + loader.workers for part, loader in loaders.items()}
        self._timed: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        self._reported = False

    def add(self, part: str, seconds: float) -> None:
        """Count a step of a part, the last that its loader has given, and the `seconds` that it took, with waiting for it."""
        self._skip[part] -= 1
        if not self._reported and self._skip[part] < 0:
            self._timed[part].append((self.loaders[part].seconds_per_step or 0.0, seconds))

    def describe(self) -> list[str]:
        """A line for each part; none before there is enough of all parts, and after they were given."""
        if self._reported or any(len(self._timed[part]) < TIMED_STEPS for part in self.loaders):
            return []
        self._reported = True
        return [self._line(part) for part in self.loaders]

    def _line(self, part: str) -> str:
        workers = self.loaders[part].workers
        loading, seconds = (sum(column) / len(self._timed[part]) for column in zip(*self._timed[part], strict=True))
        took = describe_loading(shared_by_workers(loading, workers), workers)
        return f"{f'{part}: ' if part else ''}loading takes {took}; a step takes {format_duration(seconds)}"
