"""What an adaptation has changed: losses, probes and drift before and after it, and their cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data2vec.console.quantities import format_duration
from data2vec.health.verdict import Verdict
from data2vec.run_dir import Run
from data2vec.settings import JsonDict


@dataclass(frozen=True)
class AdaptationRow:
    """A model and what was measured of it; None: not measured."""

    name: str
    """as released, adapted or from scratch."""
    steps: int
    """Optimizer steps of this run; 0 for the model as released."""
    valid_loss: float | None = None
    """On held-out data, per predicted position, against the model's own teacher."""
    probe_linear: float | None = None
    """Accuracy of the best layer, 0 to 1."""
    probe_knn: float | None = None
    keep_linear: float | None = None
    """The same on the data of --keep."""
    keep_knn: float | None = None
    drift_weights: float | None = None
    """‖w - w₀‖ / ‖w₀‖."""
    drift_features: float | None = None
    """1 minus the linear CKA of the features."""
    flops: float = 0.0
    """Floating-point operations of the run."""
    seconds: float = 0.0
    """Its duration, with evaluation."""


COLUMNS = {
    "valid_loss": ("held-out loss", ".4f"),
    "probe_linear": ("linear", ".1%"),
    "probe_knn": ("kNN", ".1%"),
    "keep_linear": ("kept: linear", ".1%"),
    "keep_knn": ("kept: kNN", ".1%"),
    "drift_weights": ("drift: weights", ".3f"),
    "drift_features": ("features", ".3f"),
}


@dataclass(frozen=True)
class Adaptation:
    """The result of `data2vec.adapt`; `str()` of it is a table."""

    run: Run
    """The run of the adaptation."""
    model: str
    """The model that was adapted."""
    rows: Sequence[AdaptationRow]
    notes: Sequence[str]
    verdict: Verdict

    def __getitem__(self, name: str) -> AdaptationRow:
        """The row of this name. Raises KeyError."""
        found = {row.name: row for row in self.rows}
        return found[name]

    def to_json(self) -> JsonDict:
        """All numbers, as they are in adapt.json."""
        return {
            "model": self.model,
            "run": str(self.run.folder),
            "rows": [asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "verdict": self.verdict.state,
        }

    def __str__(self) -> str:
        shown = [key for key in COLUMNS if any(getattr(row, key) is not None for row in self.rows)]
        table = [["", "steps", *(COLUMNS[key][0] for key in shown)]]
        for row in self.rows:
            values = [(getattr(row, key), COLUMNS[key][1]) for key in shown]
            table.append(
                [row.name, f"{row.steps:,}", *("–" if value is None else format(value, form) for value, form in values)]
            )
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(
                [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
            )
            for line in table
        ]
        costs = [f"{row.name} {row.flops:.3g} FLOPs, {format_duration(row.seconds)}" for row in self.rows if row.steps]
        return "\n".join([*lines, f"cost: {'; '.join(costs)}", *self.notes, str(self.verdict)])


def result_path(run: Path) -> Path:
    """Where the result of the adaptation in a run folder is written."""
    return run / "adapt.json"
