"""Trackers, which get the lines of metrics.jsonl as they are logged: TensorBoard, Weights & Biases, Trackio.

Each is imported only if `log.trackers` names it. A resumed run continues the same tracked run. CONTRIBUTING.md says
what to touch to add one.
"""

import importlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from data2vec.atomic_io import write_text
from data2vec.errors import UserError
from data2vec.recipe.recipe import Recipe


class Tracker(Protocol):
    """Gets metrics. `log` and `close` raise an OSError when the tracker fails, for example without a network."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log the metrics of one step."""

    def close(self) -> None:
        """Store what is still buffered."""


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases: its server, or files in `RUN/wandb`, as its own settings say."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        import wandb

        with startup_errors("wandb", wandb.Error, OSError):
            self.run = wandb.init(
                project=recipe.log.project,
                name=folder.name,
                id=_run_id(folder),
                resume="allow",
                dir=folder,
                config=recipe.model_dump(mode="json"),
            )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step, commit=True)  # otherwise it is buffered until the next step

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """Trackio: a local database, or a server, as its own settings say. It identifies a run by its name only."""

    def __init__(self, folder: Path, recipe: Recipe, step: int):
        import trackio

        with startup_errors("trackio", OSError, ValueError):
            trackio.init(
                project=recipe.log.project,
                name=f"{folder.name}-{_run_id(folder)}",
                resume="allow",
                config=recipe.model_dump(mode="json"),
            )
        self.trackio = trackio

    def log(self, step: int, values: dict[str, float]) -> None:
        self.trackio.log(values, step=step)

    def close(self) -> None:
        self.trackio.finish()


TRACKERS: dict[str, tuple[Callable[[Path, Recipe, int], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "torch.utils.tensorboard", "SummaryWriter"),
    "wandb": (WandB, "wandb", "init"),
    "trackio": (Trackio, "trackio", "init"),
}
"""By the name in `log.trackers`: the class, a module it needs, and an attribute that this module must have."""


def require_trackers(names: Sequence[str]) -> None:
    """Raises UserError when the package of a tracker is missing or incomplete."""
    for name in names:
        _, module, needed = TRACKERS[name]
        try:
            getattr(importlib.import_module(module), needed)
        except (ImportError, AttributeError) as error:  # a folder of that name is imported as an empty module
            raise UserError(f"log.trackers: {name} cannot be used ({error}): pip install 'data2vec[{name}]'") from None


def open_trackers(folder: Path, recipe: Recipe, step: int) -> dict[str, Tracker]:
    """The trackers that the recipe names, for the run in `folder` at step `step`. Raises UserError when one cannot start."""
    return {name: TRACKERS[name][0](folder, recipe, step) for name in recipe.log.trackers}


@contextmanager
def startup_errors(name: str, *failures: type[Exception]) -> Iterator[None]:
    """Turns a tracker's error at its start into a UserError."""
    try:
        yield
    except failures as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"log.trackers: {name} cannot start ({reason}); fix that or remove it from log.trackers, then use --resume"
        ) from None


def _run_id(folder: Path) -> str:
    """A unique id of this run; the same after a resume."""
    path = folder / "tracking_id.txt"
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8")
