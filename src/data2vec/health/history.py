"""The metrics of a run so far, with the queries that the checks need."""

import math
from collections.abc import Sequence

from data2vec.health.collapse import health_limits, health_settings, is_finite, untrained_steps
from data2vec.settings import JsonMapping

NUM_RECENT = 3
"""A metric counts as staying low, or as its recent value, over this many of the last logged steps."""

MIN_R2 = 0.05
"""Below it the predictions are hardly better than the mean."""


class History:
    """`lines`: the logged steps, oldest first, at least one; `recipe`: its settings as plain values by dotted key.

    `lines` has the steps whose loss is finite; `last` is the last step in any case."""

    def __init__(self, lines: Sequence[JsonMapping], recipe: JsonMapping):
        self.recipe, self.last = recipe, lines[-1]
        self.lines = [line for line in lines if is_finite(line)]
        self.step: int = self.last["step"]
        self.limits = health_limits(recipe)

    def values(self, name: str) -> list[float]:
        """A metric at every step: inf where it was not finite; NaN where it is missing, which no comparison is true of."""
        return [math.inf if (value := line.get(name, math.nan)) is None else value for line in self.lines]

    def recent_mean(self, name: str) -> float:
        """The mean of a metric over the last steps."""
        values = self.values(name)[-NUM_RECENT:]
        return sum(values) / len(values)

    def peak(self, name: str) -> tuple[float, int]:
        """The largest value of a metric, and its step."""
        return max(
            ((v, line["step"]) for v, line in zip(self.values(name), self.lines, strict=True) if v == v), default=(math.nan, 0)
        )

    def stays_below(self, name: str, bound: float) -> bool:
        """Whether a metric was below a bound at each of the last steps."""
        values = self.values(name)[-NUM_RECENT:]
        return len(values) == NUM_RECENT and all(value < bound for value in values)

    def stays_above(self, name: str, bound: float) -> bool:
        """Whether a metric was finite and above a bound at each of the last steps."""
        values = self.values(name)[-NUM_RECENT:]
        return len(values) == NUM_RECENT and all(bound < value < math.inf for value in values)

    @property
    def lowest_loss_index(self) -> int:
        """The index in `lines` of the step with the lowest loss."""
        loss = self.values("loss")
        return min(range(len(loss)), key=loss.__getitem__)

    def growth_since_lowest_loss(self, name: str) -> float:
        """The recent mean of a metric over its value at the lowest loss; 1 when that is too recent to compare."""
        index = self.lowest_loss_index
        return self.recent_mean(name) / self.values(name)[index] if index < len(self.lines) - NUM_RECENT else 1.0

    def lowest(self, name: str) -> tuple[float, int]:
        """The lowest value of a metric, and its step; NaN and 0 if it is missing everywhere."""
        values = [(v, line["step"]) for v, line in zip(self.values(name), self.lines, strict=True) if v == v]
        return min(values, default=(math.nan, 0))

    def growth_since_own_lowest(self, name: str) -> float:
        """The recent mean of a metric over its lowest value; NaN if it is missing in one of the last steps, which no comparison
        is true of."""
        return self.recent_mean(name) / low if (low := self.lowest(name)[0]) > 0 else math.nan

    @property
    def growth_of_targets(self) -> dict[str, tuple[float, float]]:
        """Standard deviation and rank of the targets at the lowest loss and now, if grown: then there is more to predict."""
        lowest = self.lines[self.lowest_loss_index]
        names = [name for name in ("target_std", "target_rank") if self.growth_since_lowest_loss(name) > 1.1]
        return {name: (lowest[name], self.recent_mean(name)) for name in names}

    def describe_change(self, name: str) -> str:
        """First and last value of a metric, with their steps; the first one after those in which it is missing."""
        values = self.values(name)
        start = next((i for i, value in enumerate(values) if value == value), 0)
        first, last = (f"{values[i]:.3g} at step {self.lines[i]['step']}" for i in (start, -1))
        return f"{name} {first}, {last}"

    @property
    def warmup_steps(self) -> float:
        """Steps until the learning rate has reached its peak."""
        share = self.recipe.get("train.schedule.warmup", 0) * self.recipe["train.steps"]
        return float(self.recipe.get("train.schedule.warmup_steps", share))

    @property
    def settled_step(self) -> int:
        """Where the first phase should be over, in which every healthy run predicts the mean everywhere: after a fifth of the
        grace period, which a warm start delays."""
        return untrained_steps(self.recipe) + math.ceil(health_settings(self.recipe).grace_steps / 5)

    @property
    def past_warmup(self) -> bool:
        """Whether the first phase should be over, and enough steps are logged."""
        return self.step >= self.settled_step and len(self.lines) > NUM_RECENT

    @property
    def predicts_mean(self) -> bool:
        """Whether the predictions are hardly better than the mean, as those of every run are at first; not known without r2."""
        values = [value for value in self.values("r2")[-NUM_RECENT:] if value == value]
        return bool(values) and max(values) < MIN_R2

    def evaluations(self, name: str) -> list[tuple[float, int]]:
        """The finite values of a metric that is measured at some steps only, each with its step."""
        return [(value, step) for value, step in self.logged(name) if value is not None]

    def logged(self, name: str) -> list[tuple[float | None, int]]:
        """The values of such a metric, None where it was not finite, each with its step."""
        return [(line[name], line["step"]) for line in self.lines if name in line]

    def unlogged(self) -> str | None:
        """Why there are too few logged steps to judge by; None if there are enough."""
        if len(self.lines) > NUM_RECENT:
            return None
        few = f"{len(self.lines)} logged step{'s' * (len(self.lines) != 1)}"
        return f"{few}, where a trend needs {NUM_RECENT + 1} (log.every={self.recipe.get('log.every', '?')})"

    def warming_up(self) -> str | None:
        """Why the learning rate is too low yet to judge by; None if it has reached its peak."""
        return f"the learning rate warms up until step {self.warmup_steps:g}" if self.step <= self.warmup_steps else None
