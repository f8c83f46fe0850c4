"""How fast the data is loaded, beside how fast it is trained on: measured in the first steps of a run."""

from collections import defaultdict
from collections.abc import Mapping

from data2vec.data.loader import Loader
from data2vec.train.planning.run_plan import describe_loading

TIMED_STEPS = 5
"""The fewest steps that are enough, without the first one, in which decoders are imported and programs compiled."""


class LoadingRate:
    """Collects what loading and computing took, until there is enough to report, once."""

    def __init__(self, loaders: Mapping[str, Loader]):
        self.loaders = loaders
        self._loading: defaultdict[str, float] = defaultdict(float)
        self._computing = 0.0
        self._steps = -1

    def add(self, part: str, seconds: float) -> None:
        """Count a step of a part, the one that its loader has given last, and the `seconds` that it was computed in."""
        self._steps += 1
        if self._steps > 0:
            self._loading[part] += self.loaders[part].seconds_per_step or 0.0
            self._computing += seconds

    def describe(self) -> list[str]:
        """A line for each part, as means over all steps; none before there are enough of them, and after they were given."""
        if self._steps < TIMED_STEPS or not self._loading:
            return []
        step_seconds = self._computing / self._steps
        lines = [
            f"{f'{part}: ' if part else ''}loading takes "
            + describe_loading(seconds / self._steps, self.loaders[part].workers, step_seconds)
            for part, seconds in self._loading.items()
        ]
        self._loading.clear()
        return lines
