"""Which part makes each step of a joint run: the same on every process, from the seed alone."""

from collections.abc import Mapping

import numpy as np

WINDOW = 16
"""Steps within which the order is random: no part waits for long, and none has a fixed beat."""


class PartSchedule:
    """The parts of steps 1 to `steps`, in the given shares: after any number of windows, each part has made its share of the
    steps to within one step or two. A longer run begins with the steps of a shorter one."""

    def __init__(self, shares: Mapping[str, float], steps: int, seed: int):
        self.names, windows = tuple(shares), -(-steps // WINDOW)
        length = WINDOW * windows
        # Step k of a part is due when its share of the steps has come to k - 1/2; what is due first comes first.
        due = [(np.arange(int(length * share) + 2) + 0.5) / share for share in shares.values()]
        part = np.repeat(np.arange(len(due)), [len(times) for times in due])
        evenly = part[np.argsort(np.concatenate(due), kind="stable")[:length]].reshape(windows, WINDOW)
        keys = np.random.default_rng((seed, len(due))).random((windows, WINDOW))
        self._order = np.take_along_axis(evenly, keys.argsort(1), 1).ravel()[:steps]
        self._steps = {name: np.flatnonzero(self._order == index) + 1 for index, name in enumerate(self.names)}

    def part(self, step: int) -> str:
        """The part that makes step number `step`, counted from 1."""
        return self.names[int(self._order[step - 1])]

    def number(self, step: int) -> int:
        """Which step of its part step number `step` is; both are counted from 1."""
        return self.count(self.part(step), step)

    def count(self, part: str, step: int | None = None) -> int:
        """The steps of a part up to step number `step`, by default all."""
        own = self._steps[part]
        return len(own) if step is None else int(np.searchsorted(own, step, side="right"))
