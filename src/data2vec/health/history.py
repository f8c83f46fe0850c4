"""The figures of a run so far, as the signs of its health ask for them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data2vec.objective.diagnostics import HealthSettings, finite

STAYS = 3
"""A figure stays where it is when so many logged steps in a row say so."""


class History:
    """`lines`: the logged steps, oldest first, at least one; `recipe`: its settings as plain values by dotted key.

    Figures are those of the steps whose loss is a number; `last` is the last step, whatever it is."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]):
        self.recipe, self.last = recipe, lines[-1]
        self.lines = [line for line in lines if finite(line)]
        self.step: int = self.last["step"]
        self.limits = HealthSettings(
            **{key: recipe[name] for key in HealthSettings.model_fields if (name := f"objective.health.{key}") in recipe}
        )

    def values(self, name: str) -> list[float]:
        """A figure at every step: inf where it was no number, nan where it is missing, so that nothing follows of it."""
        return [math.inf if (value := line.get(name, math.nan)) is None else value for line in self.lines]

    def recent(self, name: str) -> float:
        """Its mean over the last steps."""
        values = self.values(name)[-STAYS:]
        return sum(values) / len(values)

    def peak(self, name: str) -> tuple[float, int]:
        """Its largest value, and the step of it."""
        return max(
            ((v, line["step"]) for v, line in zip(self.values(name), self.lines, strict=True) if v == v), default=(math.nan, 0)
        )

    def stays(self, name: str, below: float) -> bool:
        """Whether it was below a bound at each of the last steps."""
        values = self.values(name)[-STAYS:]
        return len(values) == STAYS and all(value < below for value in values)

    @property
    def low(self) -> int:
        """Where the loss was lowest: the index of that step."""
        loss = self.values("loss")
        return min(range(len(loss)), key=loss.__getitem__)

    def since_low(self, name: str) -> float:
        """How many times larger a figure is now than where the loss was lowest; 1 when that is only just past."""
        return self.recent(name) / self.values(name)[self.low] if self.low < len(self.lines) - STAYS else 1.0

    @property
    def richer(self) -> bool:
        """Whether the targets have gained spread or directions since then, so that there is more to predict."""
        return max(self.since_low("target_std"), self.since_low("target_rank")) > 1.1

    def path(self, name: str) -> str:
        """From where to where it went, in words."""
        values = self.values(name)
        return f"{name} {values[0]:.3g} at step {self.lines[0]['step']}, {values[-1]:.3g} at step {self.lines[-1]['step']}"

    @property
    def settled(self) -> bool:
        """Whether what every run goes through at its beginning, such as predicting the mean everywhere, should be over."""
        return self.step >= self.limits.grace_steps / 5 and len(self.lines) > STAYS
